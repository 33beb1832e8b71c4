"""gin at the edge: what is rejected, what a dry run resolves, what another verb may read of a run."""

import dataclasses
import pathlib

import pytest

from hiermem_jax import configuration
from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_A2 = str(_ROOT / "gin/runs/a2.gin")
_DATASET = "train.dataset = 'packed'"


def rejected(*bindings: str, files=(_A2,), verb: str = "train") -> str:
  """The message of the InputError that these bindings end in; always one line."""
  with pytest.raises(InputError) as caught:
    configuration.load(files, [_DATASET, *bindings])
    configuration.dry_run(verb, run_dir="")
  message = str(caught.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize(
  "binding, parts",
  [
    ("trian.steps = 4", ["--gin_bindings=trian.steps = 4", "No configurable matching 'trian'", "correct the name"]),
    ("train.stepz = 4", ["--gin_bindings=train.stepz = 4", "doesn't have a parameter named 'stepz'"]),
    ("train.step = 4", ["did you mean train.steps? correct the name"]),
    ("LsaEncodr.dim = 4", ["did you mean LsaEncoder? correct the name"]),
    ("cluster.encoder = @LsaEncodr()", ["did you mean LsaEncoder? correct the name"]),
    ("train.dataset = packed", ["line 1: 'train.dataset = packed': not a value; text stands in quotes ('text')"]),
    ("train.dataset = /data/packed", ["not a value; text stands in quotes ('text')"]),
    ("ModelConfig.memory = @Memory()", ["No configurable matching reference '@Memory()'"]),
    ("STEP = 4", ["gin macro STEP = 4: nothing reads it"]),
    ("train.steps = %STEP", ["gin macro STEP: read and not bound", 'bind with --gin_bindings="STEP = ..."']),
    ("train.steps == 4", ["--gin_bindings=train.steps == 4", "line 1", "correct the line"]),
    ("train.steps = (4", ["--gin_bindings=train.steps = (4", "close the bracket or quote"]),
    ("phase2/train.steps = 4", ["phase2/train.steps", "nothing refers to scope phase2"]),
    ("train.steps = '4'", ["train.steps = '4': must be int"]),
    ("train.steps = 4.0", ["train.steps = 4.0: must be int"]),
    ("ModelConfig.memory = 4", ["ModelConfig.memory = 4: must be MemoryConfig | None"]),
    ("ModelConfig.memory = @MemoryConfig", ["write @MemoryConfig() to construct one"]),
    ("MemoryConfig.rows = (1, 2.5)", ["MemoryConfig.rows = (1, 2.5): must be tuple[int, ...]"]),
    (f"MemoryConfig.rows = {(1,) * 300 + (2.5,)}", ["2.5): must be tuple[int, ...]"]),  # each element is looked at
    ("AnchorConfig.norm = 'batchnorm'", ["must be Literal['layernorm', 'rmsnorm']"]),
    ("AnchorConfig.width = -512", ["AnchorConfig.width = -512: must be positive; bind another value"]),
  ],
)
def test_bad_binding_is_named_with_its_remedy(binding, parts):
  message = rejected(binding)
  assert all(part in message for part in parts), message


def test_an_int_is_a_float():
  configuration.load([_A2], [_DATASET, "Objective.z_loss = 1"])
  assert "Objective.z_loss = 1\n" in configuration.dry_run("train", run_dir="")


def test_missing_arguments_are_all_named():
  message = rejected(files=())
  assert (
    message == 'ModelConfig.anchor: not bound; bind in a gin file or with --gin_bindings="ModelConfig.anchor = ..."'
  )
  message = rejected("ModelConfig.anchor = @AnchorConfig()", files=["gin/models/160m.gin"])
  assert message.startswith("train.optimizer, train.steps, train.batch_size: not bound;")
  assert message.endswith('--gin_bindings="train.optimizer = ..."')


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


def test_missing_file_is_named():
  assert rejected(files=["nope.gin"]).startswith("--gin_file=nope.gin: no such file;")


@pytest.mark.parametrize("path", ["gin/runs/a2.gin", _A2])
def test_files_are_found_from_anywhere(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  configuration.load([path], [])
  assert configuration.bound_argument("train", "model").anchor == AnchorConfig(
    num_layers=35, width=512, num_heads=12, head_dim=32, mlp_width=2048, tied_embeddings=True
  )


def test_later_bindings_win():
  configuration.load([_A2, str(_ROOT / "gin/models/410m.gin")], ["AnchorConfig.num_layers = 3"])
  anchor = configuration.bound_argument("train", "model").anchor
  assert (anchor.num_layers, anchor.width) == (3, 1024)


def test_every_stage_of_a_chain_is_checked(tmp_path):
  path = tmp_path / "chain.gin"
  path.write_text("run.stages = (@first/train, @second/train)\nsecond/train.steps = 'many'\nfirst/train.steps = 2\n")
  message = rejected(files=[_A2, str(path)], verb="run")
  assert message == "train.steps = 'many': must be int; bind such a value"


def test_dry_run_calls_nothing_and_resolves_everything(tmp_path):
  configuration.load([_A2], [f"train.dataset = '{tmp_path}/packed'"])
  text = configuration.dry_run("train", run_dir=str(tmp_path / "run"))
  assert not list(tmp_path.iterdir())
  assert "train.log_every = 50\n" in text  # a default
  assert "OptimizerConfig.beta2 = 0.95\n" in text
  assert "cluster" not in text


def test_the_default_encoder_takes_bindings():
  configuration.load([], ["cluster.corpus = @JsonlSource()", "JsonlSource.pattern = 'x'", "LsaEncoder.dim = 8"])
  assert "LsaEncoder.dim = 8\n" in configuration.dry_run("cluster", run_dir="")
  configuration.load([], [])
  assert configuration.bound_argument("cluster", "encoder").dim == 128


def test_resolved_text_is_a_configuration_that_resolves_to_itself(tmp_path):
  configuration.load([_A2], [_DATASET])
  text = configuration.dry_run("train", run_dir="")
  path = tmp_path / "config.gin"
  path.write_text(text)
  configuration.load([str(path)], [])
  assert configuration.dry_run("train", run_dir="") == text


@dataclasses.dataclass(frozen=True)
class Run:
  """Some of what `train` is given."""

  dataset: str
  batch_size: int
  log_every: int  # which has a default in the verb
  steps: int | None = None


def test_bound_arguments_of_a_verb_are_one_object():
  configuration.load([], ["train.batch_size = 4", "train.dataset = 'packed'"])
  assert configuration.bound_arguments("train", Run) == Run(dataset="packed", batch_size=4, log_every=50, steps=None)
  configuration.load([], ["train.batch_size = 4", "train.dataset = 'packed'", "train.steps = 7", "train.log_every = 9"])
  assert configuration.bound_arguments("train", Run) == Run(dataset="packed", batch_size=4, log_every=9, steps=7)
  configuration.load([], ["train.steps = 7"])
  with pytest.raises(InputError, match=r"^train.dataset, train.batch_size: not bound; name a run with --gin_file"):
    configuration.bound_arguments("train", Run)
  configuration.load([], ["train.batch_size = 'many'", "train.dataset = 'packed'"])
  with pytest.raises(InputError, match="^train.batch_size = 'many': must be int"):
    configuration.bound_arguments("train", Run)
