"""gin at the edge: what is rejected, what a rehearsal leaves, what is saved; and who imports whom."""

import ast
import pathlib
import subprocess
import sys

import pytest

from hiermem_jax import configuration
from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / "hiermem_jax"
_A2 = str(_ROOT / "gin/runs/a2.gin")
_DATASET = "train.dataset = 'packed'"


def rejected(*bindings: str, files=(_A2,), verb: str = "train") -> str:
  """The message of the InputError that these bindings end in; always one line."""
  with pytest.raises(InputError) as caught:
    configuration.load(files, [_DATASET, *bindings])
    configuration.rehearse(verb, run_dir="")
  message = str(caught.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize(
  "binding, parts",
  [
    ("trian.steps = 4", ["--gin_bindings=trian.steps = 4", "No configurable matching 'trian'", "correct the name"]),
    ("train.stepz = 4", ["--gin_bindings=train.stepz = 4", "doesn't have a parameter named 'stepz'"]),
    ("train.memory = @Memory()", ["No configurable matching reference '@Memory()'"]),
    ("STEP = 4", ["gin macro STEP = 4: nothing reads it"]),
    ("train.steps = %STEP", ["gin macro STEP: read and not bound", 'bind with --gin_bindings="STEP = ..."']),
    ("train.steps == 4", ["--gin_bindings=train.steps == 4", "line 1", "correct the line"]),
    ("train.steps = (4", ["--gin_bindings=train.steps = (4", "close the bracket or quote"]),
    ("phase2/train.steps = 4", ["phase2/train.steps", "nothing refers to scope phase2"]),
    ("train.steps = '4'", ["train.steps = '4': must be int"]),
    ("train.steps = 4.0", ["train.steps = 4.0: must be int"]),
    ("train.memory = 4", ["train.memory = 4: must be MemoryConfig | None"]),
    ("train.memory = @MemoryConfig", ["write @MemoryConfig() to construct one"]),
    ("MemoryConfig.rows = (1, 2.5)", ["MemoryConfig.rows = (1, 2.5): must be tuple[int, ...]"]),
    ("AnchorConfig.norm = 'batchnorm'", ["must be Literal['layernorm', 'rmsnorm']"]),
    ("AnchorConfig.width = -512", ["AnchorConfig.width = -512: must be positive; bind another value"]),
  ],
)
def test_bad_binding_is_named_with_its_remedy(binding, parts):
  message = rejected(binding)
  assert all(part in message for part in parts), message


def test_an_int_is_a_float():
  configuration.load([_A2], [_DATASET, "train.z_loss = 1"])
  assert "train.z_loss = 1\n" in configuration.rehearse("train", run_dir="")


def test_missing_arguments_are_all_named():
  message = rejected(files=())
  assert message.startswith("train.anchor, train.memory, train.optimizer, train.steps, train.batch_size: not bound;")
  assert message.endswith('--gin_bindings="train.anchor = ..."')


@pytest.mark.parametrize(
  "text, line",
  [
    ("train.steps = 3\n\ntrain.batch_size = = 4\n", "3: "),
    ("train.steps = 'a\n", "1: "),
    ("train.steps = {\n\n", ""),  # Pythons differ in where the end of the file is
  ],
)
def test_syntax_error_names_file_and_line(tmp_path, text, line):
  path = tmp_path / "broken.gin"
  path.write_text(text)
  assert f"{path}, line {line}" in rejected(files=[str(path)])


def test_errors_in_an_included_file_name_that_file(tmp_path):
  (tmp_path / "part.gin").write_text("train.steps = 3\ntrain.stepz = 4\n")
  (tmp_path / "run.gin").write_text(f"include '{tmp_path}/part.gin'\n")
  assert f'In file "{tmp_path}/part.gin", line 2' in rejected(files=[str(tmp_path / "run.gin")])
  (tmp_path / "run.gin").write_text("include 'missing.gin'\n")
  assert "missing.gin" in rejected(files=[str(tmp_path / "run.gin")])


def test_missing_file_is_named():
  assert rejected(files=["nope.gin"]).startswith("--gin_file=nope.gin: no such file;")


@pytest.mark.parametrize("path", ["gin/runs/a2.gin", _A2])
def test_files_are_found_from_anywhere(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  configuration.load([path], [])
  assert configuration.bound_argument("train", "anchor") == AnchorConfig(
    num_layers=35, width=512, num_heads=12, head_dim=32, mlp_width=2048, tied_embeddings=True
  )


def test_later_bindings_win():
  configuration.load([_A2, str(_ROOT / "gin/models/410m.gin")], ["AnchorConfig.num_layers = 3"])
  anchor = configuration.bound_argument("train", "anchor")
  assert (anchor.num_layers, anchor.width) == (3, 1024)


def test_every_stage_of_a_chain_is_rehearsed(tmp_path):
  path = tmp_path / "chain.gin"
  path.write_text(
    "quickstart.stages = (@first/train, @second/train)\nsecond/train.steps = 'many'\nfirst/train.steps = 2\n"
  )
  message = rejected(files=[_A2, str(path)], verb="quickstart")
  assert message == "train.steps = 'many': must be int; bind such a value"


def test_rehearsal_runs_nothing_and_resolves_everything(tmp_path):
  configuration.load([_A2], [f"train.dataset = '{tmp_path}/packed'"])
  text = configuration.rehearse("train", run_dir=str(tmp_path / "run"))
  assert not list(tmp_path.iterdir())
  assert "train.log_every = 50\n" in text  # a default
  assert "OptimizerConfig.beta2 = 0.95\n" in text
  assert "cluster" not in text


def test_the_default_encoder_takes_bindings():
  configuration.load([], ["cluster.corpus = @JsonlSource()", "JsonlSource.pattern = 'x'", "LsaEncoder.dim = 8"])
  assert "LsaEncoder.dim = 8\n" in configuration.rehearse("cluster", run_dir="")
  configuration.load([], [])
  assert configuration.bound_argument("cluster", "encoder").dim == 128


def test_resolved_text_is_a_configuration_that_resolves_to_itself(tmp_path):
  configuration.load([_A2], [_DATASET])
  text = configuration.rehearse("train", run_dir="")
  path = tmp_path / "config.gin"
  path.write_text(text)
  configuration.load([str(path)], [])
  assert configuration.rehearse("train", run_dir="") == text


def test_save_accepts_the_same_and_rejects_another(tmp_path):
  path = str(tmp_path / "run" / "config.gin")
  configuration.save(path, "a = 1\nb = 2\n")
  configuration.save(path, "a = 1\nb = 2\n")
  with pytest.raises(InputError, match=r"config\.gin: .*'b = 2'.*'b = 3'.*use another --run_dir or delete"):
    configuration.save(path, "a = 1\nb = 3\n")
  assert pathlib.Path(path).read_text() == "a = 1\nb = 2\n"


def test_discard_keeps_a_run_that_has_begun(tmp_path):
  path = tmp_path / "config.gin"
  path.write_text("a = 1\n")
  (tmp_path / "checkpoints").mkdir()
  configuration.discard(str(path))
  assert path.exists()
  (tmp_path / "checkpoints").rmdir()
  configuration.discard(str(path))
  assert not path.exists()


# Who imports whom. -----------------------------------------------------------------------------------------------------

_HEAVY = ("tensorflow", "tensorflow_datasets", "seqio", "apache_beam", "sklearn", "torch")
_VERBS = (
  "cluster",
  "compile_pod",
  "prepare",
  "train",
  "train_tokenizer",
  "evaluate",
  "evaluate_tasks",
  "describe",
  "merge",
  "quickstart",
)
_ROOMS = ("models", "parallel", "retrieval", "data", "training", "inference", "evaluation")
# What each room may import of the package. `parallel` may know the row arithmetic of `models`, nothing else of it.
_MAY_IMPORT = {
  "models": {"models"},
  "parallel": {"parallel", "models.bank", "models.config"},
  "training": {"training", "models", "parallel"},
  "inference": {"inference", "models", "parallel"},
  "evaluation": {"evaluation", "training", "inference", "models", "parallel", "retrieval", "data.tokenizer"},
  "retrieval": {"retrieval"},
  "data": {"data", "retrieval"},
}


def imported_modules(path: pathlib.Path) -> set[str]:
  """Full names of the modules that a file imports anywhere, functions included."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def starts_with(name: str, prefix: str) -> bool:
  return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("room", _ROOMS)
def test_rooms_import_no_floor_above(room):
  allowed = {f"hiermem_jax.{name}" for name in _MAY_IMPORT[room]} | {"hiermem_jax.errors"}
  for path in (_PACKAGE / room).rglob("*.py"):
    own = {name for name in imported_modules(path) if starts_with(name, "hiermem_jax")}
    above = {name for name in own if not any(starts_with(name, prefix) for prefix in allowed)}
    assert not above, f"{path.relative_to(_ROOT)} imports {above}"


@pytest.mark.parametrize("room", ["models", "parallel", "training", "inference", "evaluation", "retrieval"])
def test_only_data_knows_tensorflow(room):
  for path in (_PACKAGE / room).rglob("*.py"):
    roots = {name.split(".")[0] for name in imported_modules(path)}
    assert not roots & {"tensorflow", "tensorflow_datasets", "seqio", "apache_beam"}, path


def test_nothing_imports_a_verb_but_the_configuration():
  for path in _PACKAGE.rglob("*.py"):
    if path.name != "configuration.py":
      assert not imported_modules(path) & {f"hiermem_jax.{verb}" for verb in _VERBS}, path


def test_only_the_command_line_parses_flags_and_only_the_configuration_knows_gin():
  for path in _PACKAGE.rglob("*.py"):
    names = imported_modules(path)
    assert path.name == "cli.py" or "absl.flags" not in names, path
    assert path.name == "configuration.py" or "gin" not in {name.split(".")[0] for name in names}, path


def test_importing_everything_but_the_tensorflow_modules_is_light():
  # These exist for TensorFlow, Beam and the evaluation harness only.
  skipped = (
    "seqio_tasks",
    "vocabulary",
    "world_tfds",
    "cluster_corpus",
    "route_corpus",
    "pack_corpus",
    "steps",
    "prepare",
  )
  modules = [
    ".".join(path.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__") for path in _PACKAGE.rglob("*.py")
  ]
  others = {"hiermem_jax.data.tasks.registry", "hiermem_jax.evaluation.harness"}
  modules = [name for name in modules if name not in {f"hiermem_jax.data.{module}" for module in skipped} | others]
  program = (
    f"import importlib, sys\nfor name in {sorted(modules)}: importlib.import_module(name)\n"
    f"loaded = [name for name in {_HEAVY} if name in sys.modules]\nassert not loaded, loaded"
  )
  result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=_ROOT, check=False)
  assert result.returncode == 0, result.stderr
