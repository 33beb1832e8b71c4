"""Who imports whom."""

import ast
import pathlib
import subprocess
import sys

import pytest

from hiermem_jax.verbs import VERBS

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / "hiermem_jax"

_HEAVY = ("tensorflow", "tensorflow_datasets", "seqio", "apache_beam", "sklearn", "torch")
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
      assert not imported_modules(path) & {verb.module for verb in VERBS.values()}, path


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
