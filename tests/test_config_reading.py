"""Which bindings a verb reads: against what gin itself records in a dry run, and what is refused."""

import pathlib

import gin
import pytest
from gin import config_parser

from hiermem_jax import config_files, config_reading, configuration
from hiermem_jax.errors import InputError

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_QUICKSTART = str(_ROOT / "gin/runs/quickstart.gin")
_REAL_TEXT = ("CORPUS = '/data/train.jsonl'", "VALIDATION = '/data/validation.jsonl'")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """The complete configuration of the quickstart, as its run directory keeps it."""
  path = tmp_path_factory.mktemp("saved") / "config.gin"
  configuration.load([_QUICKSTART], [])
  path.write_text(configuration.dry_run("run", run_dir=""))
  return str(path)


def rejected(file, *bindings, verb="run", given=()):
  """The message of the InputError that bindings on a file end in."""
  configuration.load([file, *given], bindings)
  with pytest.raises(InputError) as caught:
    configuration.dry_run(verb, run_dir="")
  return str(caught.value)


@pytest.mark.parametrize(
  "run, verb",
  [
    *((run, verb) for run in ("quickstart", "real_text_small") for verb in ("run", "train", "cluster", "prepare")),
    *((run, verb) for run in ("quickstart", "a2") for verb in ("evaluate", "merge")),
  ],
)
def test_the_calls_are_those_that_gin_records(run, verb):
  bindings = _REAL_TEXT if run == "real_text_small" else ()
  configuration.load([str(_ROOT / f"gin/runs/{run}.gin")], bindings)
  text = configuration.dry_run(verb, run_dir="")
  recorded = set()
  for statement in config_parser.ConfigParser(text, config_files.References()):
    if statement.arg_name:
      recorded.add((statement.scope, statement.selector))
    else:
      recorded.add((statement.selector, "macro"))
  calls = config_reading.read_by(verb, ("run_dir",)).calls
  assert {(scope, name.rpartition(".")[2]) for scope, name in calls} == recorded
  for scope, name in calls:
    if "macro" not in name:
      with gin.config_scope(scope or None):
        bound = gin.get_bindings(name, resolve_references=False)
      assert {argument: value for argument, (_, value) in calls[scope, name].items()} == bound


@pytest.mark.parametrize(
  "binding, scopes",
  [
    ("MemoryConfig.kind = 'kv'", ["cotrain"]),
    ("OptimizerConfig.peak_learning_rate = 0.5", ["anchor", "baseline", "cotrain"]),
    ("train.batch_size = 99", ["anchor", "baseline", "cotrain"]),
  ],
)
def test_a_shadowed_binding_names_what_shadows_it(saved, tmp_path, binding, scopes):
  name = binding.partition(" = ")[0]
  scoped = ", ".join(f"{scope}/{name}" for scope in scopes)
  expected = f"{binding}: every scope that reads it binds its own: {scoped}; bind that instead"
  assert rejected(saved, binding) == expected
  (tmp_path / "mine.gin").write_text(f"include '{saved}'\n{binding}\n")  # a file that comes later is no better
  assert rejected(str(tmp_path / "mine.gin")) == f"{tmp_path}/mine.gin, line 2: {expected}"


def test_a_binding_that_some_scope_reads_is_accepted(saved):
  configuration.load([_QUICKSTART], ["MemoryConfig.kind = 'kv'", "Objective.generic_probability = 0.1"])
  text = configuration.dry_run("run", run_dir="")
  assert "cotrain/MemoryConfig.kind = 'kv'\n" in text and "cotrain/Objective.generic_probability = 0.25\n" in text
  assert "anchor/Objective.generic_probability = 0.1\n" in text
  configuration.load([saved], ["cotrain/MemoryConfig.kind = 'kv'", "STEPS = 50"])
  assert "cotrain/MemoryConfig.kind = 'kv'\n" in configuration.dry_run("run", run_dir="")


def test_defaults_that_a_later_file_narrows_are_accepted(tmp_path):
  (tmp_path / "mine.gin").write_text("anchor/train.steps = 1\nbaseline/train.steps = 2\ncotrain/train.steps = 3\n")
  configuration.load([_QUICKSTART, str(tmp_path / "mine.gin")], [])
  assert "cotrain/train.steps = 3\n" in configuration.dry_run("run", run_dir="")


@pytest.mark.parametrize(
  "verb, binding, message",
  [
    ("evaluate", "train.steps = 5", "train.steps = 5: evaluate does not read it, only train, run; leave it out"),
    ("run", "merge.directory = 'x'", "merge.directory = 'x': run does not read it, only merge; leave it out"),
    ("run", "train.run_dir = 'x'", "train.run_dir = 'x': the command line gives train.run_dir itself; leave it out"),
    (
      "run",
      "anchor/MemoryConfig.kind = 'kv'",
      "anchor/MemoryConfig.kind = 'kv': run reads it outside this scope, of cotrain/MemoryConfig;"
      " bind cotrain/MemoryConfig.kind",
    ),
    (
      "run",
      "RagConfig.level = 3",
      "RagConfig.level = 3: nothing that run reads constructs RagConfig; bind a reference"
      " @RagConfig() to what takes one, or leave it out",
    ),
  ],
)
def test_a_binding_of_the_command_line_that_the_verb_does_not_read(verb, binding, message):
  assert rejected(_QUICKSTART, binding, verb=verb) == message


def test_a_file_may_bind_for_other_verbs(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text(f"include '{_QUICKSTART}'\nmerge.directory = 'x'\nMemoryConfig.kind = 'kv'\n")
  configuration.load([str(path)], [])
  configuration.dry_run("evaluate", run_dir="")


def test_a_macro_whose_readers_were_replaced():
  configuration.load([_QUICKSTART], ["train.steps = 50"])
  assert "cotrain/train.steps = 50\n" in configuration.dry_run("run", run_dir="")
  message = "STEPS = 40: nothing reads it: what did is bound to another value; leave it out"
  assert rejected(_QUICKSTART, "train.steps = 50", "STEPS = 40") == message
  configuration.load([_QUICKSTART], ["STEPS = 40"])  # which only `train` reads
  configuration.dry_run("prepare", run_dir="")


def test_describe_reads_what_train_reads():
  configuration.load([_QUICKSTART], ["train.dataset = 'x'", "PackConfig.length = 64"])
  configuration.require_read("describe", ("as_json",))
  configuration.load([_QUICKSTART], ["evaluate.title = 'x'"])
  with pytest.raises(InputError, match=r"^evaluate.title = 'x': describe does not read it, only evaluate, run"):
    configuration.require_read("describe", ("as_json",))
