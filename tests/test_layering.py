"""Who imports whom: the plan of the library as a table, no cycles, and where every module is tested.

Imports are read from the source, those inside functions and those for type checking too. What follows
`if __name__ == "__main__":` is not part of a module and is left out.
"""

import ast
import functools
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from hiermem_jax.verbs import CONFIGURED, VERBS

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / "hiermem_jax"

_ALL_ROOMS = ("models", "parallel", "pod", "retrieval", "data", "training", "inference", "evaluation")
# What each room may import of the library, beside itself and these; lowest first.
_ANYWHERE = ("compilation_cache", "console", "errors", "files", "plugins", "run_identity")
_DATA_OF_EVALUATION = (
  "corpus.keys",
  "corpus.reading",
  "packed",
  "sources",
  "tasks.metrics",
  "tasks.requests",
  "tasks.table",
  "text",
)
_ROOMS = {
  "models": (),
  "parallel": ("models",),
  "pod": ("models", "parallel"),
  "retrieval": (),
  "data": ("retrieval",),
  "training": ("models", "parallel", "pod.peaks", "interrupts"),
  "inference": ("models", "parallel"),
  "evaluation": (
    *("models", "parallel", "retrieval", "training", "inference"),
    *(f"data.{name}" for name in _DATA_OF_EVALUATION),
  ),
}
# The same for the files beside the rooms. Verbs know all rooms, and neither each other nor the configuration.
_FILES = {
  "console": (),
  "errors": (),
  "files": (),
  "plugins": (),
  "run_identity": (),
  "compilation_cache": (),
  "arguments": (),
  "verbs": (),
  "sweep": (),
  "config_files": (),
  "config_reading": ("config_files", "verbs"),
  "config_params": ("arguments", "verbs", *CONFIGURED),
  "config_diff": ("config_files", "config_reading", "run_record", "verbs"),
  "run_record": ("config_files", "parallel.hosts"),
  "run_config": ("run_record", "parallel.distributed"),
  "saved_run": (*_ALL_ROOMS, "configuration", "verbs"),
  "stages": ("verbs",),
  "completion": ("verbs",),
  "interrupts": (),
  "lock": (),
  "plan": ("verbs",),
  "checks": ("plan", "data.sources", "evaluation", "parallel"),
  "configuration": (*_ALL_ROOMS, "arguments", "config_files", "config_reading", "plan", "verbs", *CONFIGURED),
  "execution": (
    *("checks", "configuration", "lock", "plan", "run_config", "run_record", "stages", "verbs"),
    "parallel.distributed",
  ),
  "cli": (
    *("completion", "configuration", "config_diff", "config_files", "config_params", "execution", "interrupts"),
    *("compare", "inspect", "saved_run", "verbs", "parallel.distributed"),
  ),
  "__main__": ("cli",),
  "__init__": ("errors", "evaluation.modes", "evaluation.topics", "language_model", "models.config"),  # when asked for
  "language_model": ("models", "retrieval", "evaluation", "data.packed", "data.text"),
  **dict.fromkeys(VERBS, _ALL_ROOMS),
  "run": ("parallel.distributed", "verbs"),
}
# And for the folders beside the library.
_FOLDERS = {
  "experiments": (*_ALL_ROOMS, "configuration", "cli", "sweep"),
  "tpu_setup": ("verbs", "sweep", "parallel.hosts", "pod.topology"),
}
_TENSORFLOW = ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "apache_beam")
# Modules that exist for TensorFlow, Beam or the evaluation harness, and cannot be imported without them.
_NOT_LIGHT = {
  "data.seqio_tasks",
  "data.corpus.cluster",
  "data.corpus.embed",
  "data.corpus.pack",
  "data.corpus.prepare",
  "data.corpus.route",
  "data.corpus.steps",
  "data.tasks.registry",
  "data.text.vocabulary",
  "data.world.tfds",
  "evaluation.harness",
}

# Where a module is tested that has no test file of its own name in the mirrored folder.
_TESTED_IN: dict[str, str] = {
  "__main__.py": "test_cli.py",
  "execution.py": "test_cli.py",
  "verbs.py": "test_cli.py",
  "cluster.py": "test_cli.py",
  "prepare.py": "test_cli.py",
  "evaluate.py": "test_cli.py",
  "compare.py": "evaluation/test_comparison.py",
  "evaluation/items.py": "evaluation/test_comparison.py",
  "inspect.py": "evaluation/test_inspection.py",
  "saved_run.py": "evaluation/test_inspection.py",
  "merge.py": "test_phases.py",
  "evaluate_tasks.py": "evaluation/test_evaluate_tasks.py",
  "models/anchor_config.py": "models/test_config.py",
  "models/remat.py": "training/test_remat.py",
  "models/rope.py": "models/test_anchor.py",
  "models/weights.py": "models/test_bfloat16.py",
  "models/losses.py": "training/test_step.py",
  "models/memory/base.py": "models/test_memory.py",
  "models/memory/ffn.py": "models/test_memory.py",
  "models/memory/kv.py": "models/test_memory.py",
  "models/memory/lora.py": "models/test_memory.py",
  "models/model.py": "models/test_config.py",
  "parallel/agreement.py": "multihost/test_checkpoints.py",
  "parallel/layout.py": "golden/test_shardings.py",
  "parallel/hosts.py": "tpu_setup/test_parts.py",
  "pod/collectives.py": "pod/test_hlo.py",
  "pod/cost.py": "pod/test_hlo.py",
  "pod/peaks.py": "training/test_telemetry.py",
  "pod/report.py": "test_compile_pod.py",
  "pod/tensor_names.py": "pod/test_hlo.py",
  "data/tasks/records.py": "data/tasks/test_formats.py",
  "data/tasks/table.py": "data/tasks/test_formats.py",
  "data/world/answers.py": "data/world/test_generate.py",
  "data/world/common.py": "data/world/test_generate.py",
  "data/world/relations.py": "data/world/test_generate.py",
  "data/world/topics.py": "data/world/test_generate.py",
  "retrieval/encoders/bert.py": "retrieval/encoders/test_sentence_transformer.py",
  "retrieval/encoders/model_directory.py": "retrieval/encoders/test_sentence_transformer.py",
  "training/checkpoint.py": "training/test_survival.py",
  "training/checkpoint_reader.py": "training/test_survival.py",
  "training/config.py": "training/test_telemetry.py",
  "training/digest.py": "training/test_survival.py",
  "training/merge.py": "training/test_regimes.py",
  "training/preemption.py": "test_traps.py",
  "training/program.py": "golden/test_shardings.py",
  "training/start.py": "training/test_regimes.py",
  "training/state.py": "parallel/test_mesh.py",
  "training/validation.py": "training/test_telemetry.py",
  "language_model.py": "evaluation/test_language_model.py",
  "evaluation/config.py": "evaluation/test_loading.py",
  "evaluation/store.py": "evaluation/test_evaluate_tasks.py",
  "evaluation/tasks.py": "evaluation/test_evaluate_tasks.py",
  "evaluation/topics.py": "evaluation/test_language_model.py",
}


def _sources() -> dict[str, pathlib.Path]:
  """Every Python file of the library and of the folders beside it, by the full name of its module."""
  paths = [path for folder in ("hiermem_jax", *_FOLDERS) for path in (_ROOT / folder).rglob("*.py")]
  return dict(sorted((".".join(path.relative_to(_ROOT).with_suffix("").parts), path) for path in paths))


@functools.cache
def _imports(path: pathlib.Path) -> frozenset[str]:
  """Full names of what a file imports; of `from a import b` the name a.b."""
  found = set()

  def visit(node: ast.AST) -> None:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
      return
    if isinstance(node, ast.Import):
      found.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}, line {node.lineno}: imports are absolute"
      found.update(f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
      visit(child)

  visit(ast.parse(path.read_text()))
  return frozenset(found)


def _module_of(name: str, path: pathlib.Path, sources: dict[str, pathlib.Path]) -> str | None:
  """The file of ours that a name imported by `path` is or comes from, as a key of `sources`; None for other libraries."""
  parts = name.split(".")
  if parts[0] in ("hiermem_jax", *_FOLDERS):
    prefixes = [""]
  elif path.is_relative_to(_ROOT / "experiments"):  # scripts, which import their neighbours by bare names
    prefixes = [".".join(path.parent.relative_to(_ROOT).parts) + "."]
  else:
    prefixes = []
  for prefix in prefixes:
    for end in range(len(parts), 0, -1):
      candidate = prefix + ".".join(parts[:end])
      for module in (candidate, f"{candidate}.__init__"):
        if module in sources:
          return module
  return None


@functools.cache
def _graph() -> dict[str, set[str]]:
  """The files that each file imports, by module name."""
  sources = _sources()
  graph = {name: {_module_of(imported, path, sources) for imported in _imports(path)} for name, path in sources.items()}
  graph["hiermem_jax.configuration"] |= {verb.module for verb in CONFIGURED.values()}  # by their names in the table
  return {name: {target for target in targets if target not in (None, name)} for name, targets in graph.items()}


def _below(name: str, prefix: str) -> bool:
  return name == prefix or name.startswith(prefix + ".")


def _allowed(name: str, target: str) -> bool:
  """Whether the plan lets a module import another."""
  (top, *rest), (target_top, *target_rest) = name.split("."), target.removesuffix(".__init__").split(".")
  if target_top != "hiermem_jax":
    return target_top == top
  if top != "hiermem_jax":
    allowed = _FOLDERS[top]
  else:
    allowed = (*_ROOMS[rest[0]], rest[0]) if rest[0] in _ROOMS else _FILES[rest[0]]
  return any(_below(".".join(target_rest), prefix) for prefix in (*allowed, *_ANYWHERE))


def test_every_import_is_in_the_plan():
  imports = {(name, target) for name, targets in _graph().items() for target in targets}
  assert {pair for pair in imports if not _allowed(*pair)} == set()


def test_the_plan_names_what_there_is():
  here = {path.stem if path.is_file() else path.name for path in _PACKAGE.iterdir() if path.suffix in ("", ".py")}
  assert here - {"__pycache__"} == set(_ROOMS) | set(_FILES)


def test_no_cycle_between_files():
  """No strongly connected component of the import graph has two files."""
  graph = _graph()
  number = {name: place for place, name in enumerate(graph)}
  edges = np.array([(number[name], number[target]) for name, targets in graph.items() for target in targets])
  matrix = csr_array((np.ones(len(edges)), edges.T), shape=(len(graph), len(graph)))
  count, labels = connected_components(matrix, directed=True, connection="strong")
  cycles = [frozenset(name for name in graph if labels[number[name]] == label) for label in range(count)]
  assert {cycle for cycle in cycles if len(cycle) > 1} == set()


def test_only_data_imports_tensorflow():
  """`data`, and benchmarks of it; every other part must work where TensorFlow is not installed."""
  for name, path in _sources().items():
    if not _below(name, "hiermem_jax.data") and not _below(name, "experiments"):
      assert not {imported.split(".")[0] for imported in _imports(path)} & set(_TENSORFLOW), name


def test_only_the_command_line_knows_flags_and_only_the_configuration_knows_gin():
  for name, path in _sources().items():
    if _below(name, "hiermem_jax"):
      flags = [one for one in _imports(path) if _below(one, "absl.flags") or _below(one, "argparse")]
      assert not flags or name in ("hiermem_jax.cli", "hiermem_jax.completion"), name
      assert not any(_below(one, "gin") for one in _imports(path)) or name.startswith("hiermem_jax.config"), name


def test_importing_a_module_is_light():
  """It must not load these for another module's sake: they take seconds, or are not installed."""
  heavy = (*_TENSORFLOW, "sklearn", "torch", "transformers", "matplotlib", "lm_eval")
  names = {name.removesuffix(".__init__") for name in _sources() if _below(name, "hiermem_jax")}
  names = sorted(names - {f"hiermem_jax.{name}" for name in _NOT_LIGHT})
  program = (
    f"import importlib, sys\nfor name in {names}:\n  importlib.import_module(name)\n"
    f"  loaded = [root for root in {heavy} if root in sys.modules]\n  assert not loaded, (name, loaded)"
  )
  result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=_ROOT, check=False)
  assert result.returncode == 0, result.stderr


def _modules() -> list[str]:
  """Paths of the library's modules below hiermem_jax/. A room's __init__.py, which hands names on, is none."""
  return sorted(str(path.relative_to(_PACKAGE)) for path in _PACKAGE.rglob("*.py") if path.name != "__init__.py")


def _mirrored(path: str) -> str:
  """Path below tests/ of the test of a module's own name."""
  folder, _, name = path.rpartition("/")
  return f"{folder}/test_{name}".removeprefix("/")


def test_every_module_has_a_test_of_its_name_or_a_line_that_says_where():
  untested = {
    path for path in _modules() if not (_ROOT / "tests" / _mirrored(path)).exists() and path not in _TESTED_IN
  }
  assert untested == set()


@pytest.mark.parametrize("path", _TESTED_IN)
def test_lines_that_say_where_are_needed_and_true(path):
  assert (_PACKAGE / path).exists() and (_ROOT / "tests" / _TESTED_IN[path]).exists()
  assert not (_ROOT / "tests" / _mirrored(path)).exists()
