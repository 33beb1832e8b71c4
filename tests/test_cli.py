"""The verbs from their command line: a tiny chain on JSON lines, and one clear line for every bad input."""

import ast
import importlib
import inspect
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from absl import flags

from hiermem_jax import cli, configuration, lock
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.errors import InputError, Preempted
from hiermem_jax.evaluation import series as measuring
from hiermem_jax.retrieval.retriever import load_retriever
from hiermem_jax.training import loop
from hiermem_jax.verbs import VERBS

_ROOT = pathlib.Path(__file__).resolve().parents[1]

_TOPICS = (
  ("sailor", "harbour", "anchor", "mast", "tide", "keel", "rope", "deck", "storm", "captain"),
  ("baker", "oven", "flour", "yeast", "bread", "crust", "butter", "sugar", "cake", "kitchen"),
  ("planet", "orbit", "comet", "telescope", "galaxy", "moon", "crater", "rocket", "star", "eclipse"),
  ("violin", "concert", "melody", "chord", "rhythm", "opera", "flute", "choir", "tempo", "piano"),
)

_RUN = """
JsonlSource.pattern = '{corpus}'
probes/JsonlSource.pattern = '{probes}'
probes/JsonlSource.required = ('prompt', 'answer')
LsaEncoder.dim = 8
cluster.corpus = @JsonlSource()
cluster.tokenizer_vocab_size = 300
TreeConfig.branching = 2
TreeConfig.depth = 2
prepare.train = @JsonlSource()
prepare.validation = @JsonlSource()
PackConfig.length = 32
AnchorConfig.num_layers = 1
AnchorConfig.width = 16
AnchorConfig.num_heads = 2
AnchorConfig.head_dim = 8
AnchorConfig.mlp_width = 32
AnchorConfig.vocab_size = 300
AnchorConfig.dtype = 'float32'
MemoryConfig.branching = 2
MemoryConfig.rows = (2, 2)
OptimizerConfig.peak_learning_rate = 1e-3
OptimizerConfig.final_learning_rate = 1e-4
OptimizerConfig.warmup_steps = 1
OptimizerConfig.weight_decay = 0.0
ModelConfig.anchor = @AnchorConfig()
ModelConfig.memory = @MemoryConfig()
train.optimizer = @OptimizerConfig()
train.dataset = 'packed/train'
train.steps = 2
train.batch_size = 8
train.log_every = 1
evaluate.probes = @probes/JsonlSource()
run.stages = (@cluster, @prepare, @train)
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
  """(gin file, run directory) of a tiny chain that has run: 4 leaves, a one-layer model, two steps."""
  directory = tmp_path_factory.mktemp("chain")
  rng = np.random.default_rng(0)
  with open(directory / "corpus.jsonl", "w") as file:
    for number in range(200):
      words = rng.choice(_TOPICS[number % len(_TOPICS)], 12)
      file.write(json.dumps({"text": f"The {' '.join(words)}."}) + "\n")
  with open(directory / "probes.jsonl", "w") as file:
    file.write(json.dumps({"prompt": "The sailor and the", "answer": "harbour", "count": 3}) + "\n")
  gin_file = directory / "run.gin"
  gin_file.write_text(_RUN.format(corpus=directory / "corpus.jsonl", probes=directory / "probes.jsonl"))
  configuration.load([str(gin_file)], [])
  configuration.call("run", run_dir=str(directory / "run"))
  return gin_file, directory / "run"


@pytest.fixture
def run(capsys):
  """Runs a verb in this process; returns exit status, standard output and standard error."""

  def run_verb(verb, *arguments):
    status, values = 0, flags.FlagValues()
    cli.define(VERBS[verb], values)
    try:
      cli.run(VERBS[verb], cli.parse(VERBS[verb], [verb, *map(str, arguments)], values), values)
    except SystemExit as stop:
      status = stop.code
    output = capsys.readouterr()
    return status, output.out, output.err

  return run_verb


@pytest.fixture
def fails(run):
  """Runs a verb that must fail with status 2 and exactly one line, which it returns without "error: "."""

  def run_verb(verb, *arguments):
    status, output, errors = run(verb, *arguments)
    assert status == 2 and not output, (status, output, errors)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in errors, errors
    return lines[0].removeprefix("error: ")

  return run_verb


def python(*arguments, cwd=_ROOT):
  """Runs an interpreter of its own."""
  return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


# Processes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["-m", "hiermem_jax", "train"], ["-m", "hiermem_jax.train"]])
def test_help_shows_an_example_and_the_flags(arguments):
  result = python(*arguments, "--help")
  assert (result.returncode, result.stderr) == (0, "")
  assert "python -m hiermem_jax.train --gin_file=gin/runs/a2.gin" in result.stdout
  assert "--gin_bindings:" in result.stdout and "--run_dir:" in result.stdout
  assert "hiermem describe --params train lists what can be bound" in result.stdout
  assert "--[no]skip_damaged_checkpoints:" in result.stdout and "--runner" not in result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_begins_with_a_command_that_can_be_pasted(verb):
  """Behind the summary; it names files that are there, and has no brackets or capitals to fill in."""
  summary, empty, *rest = ast.get_docstring(ast.parse((_ROOT / f"hiermem_jax/{verb}.py").read_text())).splitlines()
  lines = list(itertools.takewhile(str.strip, rest))
  command = " ".join(line.strip().removesuffix("\\") for line in lines)
  first = command.split(" python -m")[0]
  module, *arguments = shlex.split(first)[2:]
  assert summary.endswith(".") and not empty and first.startswith("python -m") and module == f"hiermem_jax.{verb}"
  values = flags.FlagValues()
  cli.define(VERBS[verb], values)
  values([verb, *arguments])
  assert not set("[]<>") & set(first) and "..." not in first
  for path in values.gin_file if "gin_file" in VERBS[verb].flags else ():
    assert (_ROOT / path).exists()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("form", [["-m", "hiermem_jax.{}"], ["-m", "hiermem_jax", "{}"]])
def test_a_process_that_refuses_a_flag_imports_nothing_that_takes_seconds(verb, form):
  result = python("-X", "importtime", *(part.format(verb) for part in form), "--zzz")
  *imports, last = result.stderr.splitlines()
  assert (result.returncode, last) == (2, "error: Unknown command line flag 'zzz'; --help lists the flags")
  modules = {line.rpartition("|")[2].strip().split(".")[0] for line in imports}
  assert not modules & {"jax", "gin", "numpy", "tensorflow", "beartype", "rich", "argcomplete"}


def test_help_and_refused_flags_import_neither_jax_nor_gin():
  """They are to answer at once; importing jax alone takes a second."""
  program = """
    import contextlib, io, sys
    from absl import flags
    from hiermem_jax import cli
    from hiermem_jax.verbs import VERBS
    cli.command(["hiermem"])
    for verb in VERBS.values():
      for argument in ("--help", "--zzz", "positional"):
        values = flags.FlagValues()
        cli.define(verb, values)
        with contextlib.redirect_stderr(io.StringIO()) as errors:
          try:
            cli.run(verb, cli.parse(verb, [verb.name, argument], values), values)
          except SystemExit as stop:
            assert stop.code == (0 if argument == "--help" else 2), (verb, argument)
          else:
            assert False, (verb, argument)
        assert argument == "--help" or errors.getvalue().startswith("error: "), errors.getvalue()
    print([name for name in ("jax", "gin", "numpy", "tensorflow", "beartype") if name in sys.modules])
  """
  result = python("-c", textwrap.dedent(program))
  assert result.returncode == 0, result.stderr
  assert result.stdout.splitlines()[-1] == "[]"
  for verb in VERBS.values():
    assert f"  {verb.name} " in result.stdout and f"python -m hiermem_jax.{verb.name} " in result.stdout


def test_a_reader_that_has_seen_enough_is_no_error():
  for command in (
    "hiermem_jax",
    "hiermem_jax train --help",
    f"hiermem_jax describe --gin_file={_ROOT}/gin/runs/a2.gin",
  ):
    result = subprocess.run(
      ["bash", "-c", f"{sys.executable} -m {command} | true"], capture_output=True, text=True, cwd=_ROOT, check=False
    )
    assert (result.returncode, result.stderr) == (0, ""), command


def test_real_process_from_another_directory(tmp_path):
  arguments = ("-m", "hiermem_jax.train", f"--gin_file={_ROOT}/gin/runs/a2.gin", "--validate_only")
  result = python(*arguments, "--gin_bindings=train.dataset = 'x'", cwd=tmp_path)
  assert (result.returncode, result.stderr) == (0, "")
  assert "train.steps = 524288\n" in result.stdout
  result = python(*arguments, cwd=tmp_path)
  assert (result.returncode, result.stdout) == (2, "")
  assert (
    result.stderr
    == 'error: train.dataset: not bound; bind in a gin file or with --gin_bindings="train.dataset = ..."\n'
  )
  assert not list(tmp_path.iterdir())


# Flags and configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "argument, message",
  [
    ("--zzz", "Unknown command line flag 'zzz'; --help lists the flags"),
    ("--runner=x", "--runner: train does not take it, only cluster, prepare, run; leave it out"),
    ("--topology=v5e:2x2", "--topology: train does not take it, only describe, compile_pod; leave it out"),
    ("--process_id=1", "--process_id: says nothing without --distributed; add that or leave this out"),
    ("--num_processes=0", "flag --num_processes=0: 0 is not a positive integer; --help lists the flags"),
    ("gin/runs/a2.gin", "'gin/runs/a2.gin': arguments are given as --flags; --help lists them"),
    (
      "--gin_file=nope.gin",
      f"--gin_file=nope.gin: no such file; looked for {pathlib.Path.cwd()}/nope.gin; correct the path",
    ),
  ],
)
def test_bad_command_line(fails, argument, message):
  assert fails("train", argument, "--validate_only") == message


@pytest.mark.parametrize("verb", [verb for verb in VERBS.values() if not verb.distributed], ids=lambda verb: verb.name)
def test_verbs_of_one_process_say_so(fails, verb):
  message = fails(verb.name, "--distributed")
  assert message.startswith(f"--distributed: {verb.name} does not take it, only train, merge, evaluate")


@pytest.mark.parametrize("runs", [[], ["{a}"], ["{a}", "{a}"], ["{a}", "{a}/"]])
def test_compare_wants_two_runs(fails, tmp_path, runs):
  message = "compare: compares two or more different run directories; give it as compare RUN RUN..."
  assert fails("compare", *(run.format(a=tmp_path) for run in runs)) == message


def test_verbs_that_look_at_runs_create_nothing_where_there_is_none(fails, tmp_path):
  missing = tmp_path / "mistyped"
  message = f"--run_dir={missing}: no such directory; name the directory of a run"
  assert fails("inspect", f"--run_dir={missing}", "--tree") == message
  assert fails("inspect", "--tree") == "--run_dir is missing; name the directory of the run"
  assert fails("compare", tmp_path, missing) == f"compare {missing}: no such directory; name the directory of a run"
  assert not list(tmp_path.iterdir())


def test_inspect_and_compare_on_what_a_chain_has_left(chain, run, tmp_path):
  gin_file, made = chain
  directory = shutil.copytree(made, tmp_path / "one")
  configuration.load([str(gin_file)], [])
  (directory / "config.gin").write_text(configuration.dry_run("run", run_dir=""))
  before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
  status, output, _ = run("inspect", f"--run_dir={directory}", "--tree", "--leaf=1.2", "--token_budget", "--json")
  found = json.loads(output)
  assert status == 0 and list(found) == ["tree", "leaf", "token_budget"]
  assert found["tree"]["fingerprint"] == load_retriever(str(directory / "tree")).tree.fingerprint
  assert found["token_budget"]["sequences"] == sum(
    PackedDataset(directory / "packed/train").manifest.sequences_per_leaf.values()
  )
  assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before
  shutil.copytree(directory, tmp_path / "other")
  config = tmp_path / "other/config.gin"
  config.write_text(config.read_text().replace("peak_learning_rate = 0.001", "peak_learning_rate = 0.002"))
  status, output, _ = run("compare", directory, tmp_path / "other", f"--out={tmp_path}/out")
  assert status == 0 and "OptimizerConfig.peak_learning_rate: 0.001 -> 0.002" in output
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["losses.png", "report.json"]


def test_unknown_verb(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.command(["hiermem", "trian", "--gin_file=x"])
  assert stop.value.code == 2
  assert capsys.readouterr().err.startswith("error: 'trian': no such verb; did you mean train? The verbs are train_tok")


def test_the_table_of_verbs_is_what_the_modules_are():
  """Every module that ends in a command line is in the table, and takes a run directory where the table says so."""
  modules = {path.stem for path in (_ROOT / "hiermem_jax").glob("*.py") if "\n  cli.main(" in path.read_text()}
  assert modules == set(VERBS)
  for verb in VERBS.values():
    parameters = inspect.signature(getattr(importlib.import_module(verb.module), verb.name)).parameters
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert ("run_dir" in parameters) == verb.has_run_dir
    assert {argument for argument, _ in verb.reads} <= set(parameters)


@pytest.mark.parametrize(
  "verb, arguments, message",
  [
    ("train", ["--process_id=1"], "--process_id: says nothing without --distributed; add that or leave this out"),
    (
      "prepare",
      ["--distributed"],
      "--distributed: prepare does not take it, only train, merge, evaluate, evaluate_tasks, run; leave it out",
    ),
    (
      "train",
      ["--distributed", "--coordinator_address=host"],
      "--coordinator_address=host: has no port; give HOST:PORT of process 0",
    ),
    (
      "train",
      ["--distributed", "--coordinator_address=host:1", "--num_processes=2", "--process_id=2"],
      "--process_id=2: --num_processes=2 are counted from 0; give less",
    ),
  ],
)
def test_flags_of_several_processes_that_do_not_fit(chain, fails, tmp_path, verb, arguments, message):
  assert fails(verb, f"--gin_file={chain[0]}", f"--run_dir={tmp_path}/run", *arguments) == message
  assert not (tmp_path / "run").exists()


def test_missing_run_dir(chain, fails):
  assert fails("train", f"--gin_file={chain[0]}") == "--run_dir is missing; name the directory that the run may fill"


def test_run_dir_is_a_file(chain, fails, tmp_path):
  (tmp_path / "file").touch()
  message = fails("train", f"--gin_file={chain[0]}", f"--run_dir={tmp_path}/file")
  assert message == f"--run_dir={tmp_path}/file: is a file; name a directory, or one that may be created"


def test_bad_binding(chain, fails, tmp_path):
  message = fails("train", f"--gin_file={chain[0]}", "--gin_bindings=train.steps = '4'", f"--run_dir={tmp_path}/run")
  assert message == "train.steps = '4': must be int; bind such a value"
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["cluster", "prepare", "train", "evaluate", "evaluate_tasks", "run"])
def test_validate_only_prints_and_touches_nothing(chain, run, tmp_path, verb):
  before = sorted(chain[1].rglob("*"))
  for run_dir in [
    [f"--run_dir={chain[1]}"],
    [],
    *([[f"--run_dir={tmp_path}/run"]] if verb in ("cluster", "run") else []),
  ]:
    status, output, errors = run(verb, f"--gin_file={chain[0]}", *run_dir, "--validate_only")
    assert (status, errors) == (0, "")
    assert f"# Parameters for {verb}:" in output
  assert not list(tmp_path.iterdir()) and sorted(chain[1].rglob("*")) == before


def test_run_directory_of_another_configuration(chain, run, fails, tmp_path):
  arguments = train_arguments(chain, tmp_path)
  assert run(*arguments)[0] == 0
  before = (tmp_path / "run/config.gin").read_text()
  message = fails(*arguments, "--gin_bindings=train.seed = 3")
  assert message.startswith(f"{tmp_path}/run: train has been run here with another configuration")
  assert "there: 'train.seed = 0', now: 'train.seed = 3'" in message
  assert message.endswith("or delete checkpoints there, which would be made again")
  (tmp_path / "run/stages.json").unlink()  # as of a version that did not write it
  message = fails(*arguments, "--gin_bindings=train.seed = 3")
  assert message.startswith(f"{tmp_path}/run/config.gin: this directory is of a run with another configuration")
  assert (tmp_path / "run/config.gin").read_text() == before
  assert run(*arguments)[0] == 0
  assert "has been run here" in fails(*arguments, "--gin_bindings=train.seed = 3")
  assert (
    run(*arguments, "--gin_bindings=train.steps = 3", "--gin_bindings=train.log_every = 2")[0] == 0
  )  # the same past
  assert "train.log_every = 2\n" in (tmp_path / "run/config.gin").read_text()
  assert json.loads((tmp_path / "run/stages.json").read_text())["train ."]["finished"]
  changed = json.loads((tmp_path / "run/runs.jsonl").read_text().splitlines()[-1])["changed"]
  assert changed == {"train": {"train.steps": ["2", "3"], "train.log_every": ["1", "2"]}}
  assert (tmp_path / "run/checkpoints/3").is_dir()
  shutil.rmtree(tmp_path / "run/checkpoints")
  assert run(*arguments, "--gin_bindings=train.seed = 3")[0] == 0


def test_a_run_that_was_refused_can_be_corrected_in_place(chain, run, fails, tmp_path):
  """Refused before the first stage, in the first, and in a later one; what has finished is kept."""
  arguments = ("run", f"--gin_file={chain[0]}", f"--run_dir={tmp_path}/run")
  fails(*arguments, "--gin_bindings=OptimizerConfig.warmup_steps = 9")
  assert not (tmp_path / "run").exists()
  (tmp_path / "bad.jsonl").write_text("{\n" * 50)
  assert "malformed" in fails(*arguments, f"--gin_bindings=JsonlSource.pattern = '{tmp_path}/bad.jsonl'")
  other = [f"--gin_bindings=train.init_from = '{chain[1]}'", "--gin_bindings=AnchorConfig.mlp_width = 48"]
  assert "its anchor is" in fails(*arguments, *other)  # in the third stage
  tree = (tmp_path / "run/tree/tree.npz").stat().st_mtime_ns
  message = fails(*arguments, "--gin_bindings=LsaEncoder.dim = 7")
  assert message.startswith(f"{tmp_path}/run: cluster has been run here") and "delete tree, tokenizer.model" in message
  assert run(*arguments)[0] == 0
  assert (tmp_path / "run/tree/tree.npz").stat().st_mtime_ns == tree
  assert {entry["finished"] for entry in json.loads((tmp_path / "run/stages.json").read_text()).values()} == {True}


def test_a_run_that_broke_in_a_stage_can_be_corrected_in_place(chain, run, fails, tmp_path, monkeypatch):
  """As long as the training has saved nothing."""
  arguments = train_arguments(chain, tmp_path)

  def broken(*arguments, **settings):
    raise OSError("no space left on device")

  with monkeypatch.context() as patched:
    patched.setattr(loop, "train", broken)
    assert "no space left" in fails(*arguments)
  assert run(*arguments, "--gin_bindings=OptimizerConfig.weight_decay = 0.1")[0] == 0


def test_a_directory_in_use_is_refused(chain, fails, tmp_path):
  with lock.held(str(tmp_path / "run")):
    message = fails(*train_arguments(chain, tmp_path))
    assert message.startswith(f"{tmp_path}/run: in use by process {os.getpid()} on {socket.gethostname()}; wait for it")
  assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("verb", ["merge", "evaluate", "evaluate_tasks", "prepare", "train"])
def test_a_mistyped_run_dir_creates_nothing(chain, fails, tmp_path, verb):
  fails(verb, f"--gin_file={chain[0]}", f"--run_dir={tmp_path}/rum")
  assert not list(tmp_path.iterdir())


def test_signals_outside_of_training(chain, run, tmp_path, monkeypatch):
  """Status 75 and one line, without a traceback; the directory is free again."""
  for number in (signal.SIGINT, signal.SIGTERM):
    monkeypatch.setattr("hiermem_jax.data.corpus.prepare.prepare", lambda **_: os.kill(os.getpid(), number))  # noqa: B023
    arguments = [
      "--gin_bindings=" + f"prepare.{name} = '{chain[1]}/{path}'"
      for name, path in (("tree", "tree"), ("tokenizer", "tokenizer.model"))
    ]
    status, _, errors = run("prepare", f"--gin_file={chain[0]}", *arguments, f"--run_dir={tmp_path}/run")
    assert status == 75 and "Traceback" not in errors
    assert not (tmp_path / "run/.lock").exists()


def test_nothing_of_gin_stands_behind_our_line(chain, run, fails, tmp_path, monkeypatch, caplog):
  def raising(error):
    def broken(*arguments, **settings):
      raise error

    return broken

  arguments = train_arguments(chain, tmp_path)
  monkeypatch.setattr(loop, "train", raising(FloatingPointError("ten batches in a row")))
  assert fails(*arguments) == "ten batches in a row"
  monkeypatch.setattr(loop, "train", raising(Preempted("told to end")))
  status, _, errors = run(*arguments)
  assert status == 75 and "In call to configurable" not in errors + caplog.text


def test_a_run_keeps_two_configurations_and_a_record(chain, run, tmp_path):
  (tmp_path / "run.gin").write_text(f"JsonlSource.pattern = '{chain[0].parent}/corpus.jsonl'\n")
  binding = "--gin_bindings=train_tokenizer.corpus = @JsonlSource()"
  arguments = (f"--gin_file={tmp_path}/run.gin", binding, f"--run_dir={tmp_path}/run")
  assert run("train_tokenizer", *arguments, "--gin_bindings=train_tokenizer.vocab_size = 300")[0] == 0
  directory = tmp_path / "run"
  short = (directory / "train_tokenizer.config.short.gin").read_text().splitlines()
  assert short[2:] == [
    f"include '{tmp_path}/run.gin'",
    "train_tokenizer.corpus = @JsonlSource()",
    "train_tokenizer.vocab_size = 300",
  ]
  record = json.loads((directory / "runs.jsonl").read_text())
  assert (record["verb"], record["config"]) == ("train_tokenizer", "train_tokenizer.config.gin")
  for name in ("train_tokenizer.config.gin", "train_tokenizer.config.short.gin"):
    (tmp_path / "again").mkdir(exist_ok=True)
    assert run("train_tokenizer", f"--gin_file={directory}/{name}", f"--run_dir={tmp_path}/again")[0] == 0
  assert len((tmp_path / "again/runs.jsonl").read_text().splitlines()) == 2


def test_a_shadowed_binding_is_refused_by_every_kind_of_verb(chain, fails, tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text(
    f"include '{chain[0]}'\ninner/MemoryConfig.kind = 'ffn'\nModelConfig.memory = @inner/MemoryConfig()\n"
  )
  for verb in ("train", "describe", "compile_pod"):
    assert fails(verb, f"--gin_file={path}", "--gin_bindings=MemoryConfig.kind = 'kv'", *validate(verb)) == (
      "MemoryConfig.kind = 'kv': every scope that reads it binds its own: inner/MemoryConfig.kind; bind that instead"
    )


def validate(verb):
  return ["--validate_only"] if VERBS[verb].has_run_dir else []


def test_what_a_file_imports_is_said_before(run, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / "stranger_module.py").write_text("import sys\nprint('running', file=sys.stderr)\n")
  (tmp_path / "run.gin").write_text("import stranger_module\ninclude 'gin/runs/a2.gin'\ntrain.dataset = 'x'\n")
  said = f"{tmp_path}/run.gin, line 1: imports stranger_module\n"
  status, output, errors = run("train", f"--gin_file={tmp_path}/run.gin", "--validate_only")
  assert (status, errors) == (0, f"{said}running\n") and "import stranger_module\n" in output
  monkeypatch.delitem(sys.modules, "stranger_module")
  status, output, errors = run("describe", "--diff", tmp_path / "run.gin", "gin/runs/a2.gin")
  assert (status, errors) == (0, f"{said}running\n")
  assert output.splitlines()[1:] == ["  train.dataset: 'x' -> not bound"]


def test_describe_compares_and_lists(run, fails):
  status, output, errors = run("describe", "--diff", "gin/runs/a2.gin", "gin/runs/b2.gin", "--json")
  assert (status, errors) == (0, "")
  changed = {entry["name"]: (entry["a"], entry["b"]) for entry in json.loads(output)["configuration"]}
  assert changed["AnchorConfig.width"] == ("512", "1024")
  status, output, errors = run("describe", "--params", "train", "--gin_file=gin/runs/a2.gin")
  assert (status, errors) == (0, "") and "train.steps: int = 524288\n" in output
  assert fails("describe", "--diff", "a") == "--diff: compares two gin files or run directories; give it as --diff A B"
  message = fails("describe", "--diff", "gin/runs/a2.gin", "gin/runs/b2.gin", "--gin_bindings=train.steps = 3")
  assert message == "--gin_bindings: says nothing beside --diff A B; leave it out"
  assert fails("describe", "--params=nope").startswith("flag --params=nope: value should be one of <train_tokenizer|")
  assert fails("train", "--diff", "a", "b").startswith("--diff: train does not take it, only describe")


def test_some_stages_of_a_chain(chain, run, fails, tmp_path):
  """The others are not run; what they would have made must be there."""
  arguments = ("run", f"--gin_file={chain[0]}", f"--run_dir={tmp_path}/run")
  message = fails(*arguments, "--stages=train")
  assert message.startswith(
    f"{tmp_path}/run/packed: train reads it, and prepare, which makes it, has not finished here"
  )
  assert fails(*arguments, "--stages=merge", "--validate_only").startswith(
    "--stages=merge: 'merge' is no stage of this"
  )
  assert not (tmp_path / "run").exists()
  shutil.copytree(chain[1] / "tree", tmp_path / "run/tree")
  shutil.copytree(chain[1] / "packed", tmp_path / "run/packed")
  status, _, _ = run(*arguments, "--stages=train")
  assert status == 0 and json.loads((tmp_path / "run/report.json").read_text())["steps"] == 2
  assert not (tmp_path / "run/tokenizer.model").exists()  # which `cluster` would have made
  saved = (tmp_path / "run/config.gin").read_text()  # the whole chain's, so that other stages may follow
  assert re.sub(r"\s", "", saved).count("run.stages=(@cluster,@prepare,@train)") == 1


def test_failed_start_can_be_corrected_in_place(chain, fails, tmp_path):
  arguments = ("train", f"--gin_file={chain[0]}", f"--run_dir={tmp_path}/run")
  for dataset in ("nope", "nowhere"):  # the second is not refused as another configuration
    message = fails(*arguments, f"--gin_bindings=train.dataset = '{tmp_path}/{dataset}'")
    assert message.startswith(f"{tmp_path}/{dataset}/manifest.json: No such file")
  assert not (tmp_path / "run").exists()


# Corpora -----------------------------------------------------------------------------------------------------------------


def corpus_arguments(chain, tmp_path, lines):
  (tmp_path / "corpus.jsonl").write_text("".join(lines))
  pattern = f"--gin_bindings=JsonlSource.pattern = '{tmp_path}/corpus.jsonl'"
  return "cluster", f"--gin_file={chain[0]}", pattern, f"--run_dir={tmp_path}/run"


def test_malformed_line_is_named_and_can_be_skipped(chain, run, fails, tmp_path):
  lines = (chain[0].parent / "corpus.jsonl").read_text().splitlines(keepends=True)
  arguments = corpus_arguments(chain, tmp_path, [*lines[:2], '{"text": \n', *lines[2:], '{"body": "x"}\n'])
  message = fails(*arguments)
  counted = f"2 of {len(lines) + 2} records are malformed (1 malformed JSON, 1 field 'text' missing)"
  place = f"{tmp_path}/corpus.jsonl:3 (Expecting value, column 1)"
  assert message.startswith(f"{counted}, e.g. {place}: mend them") and "--skip_bad_records" in message
  status, _, _ = run(*arguments, "--skip_bad_records")
  assert status == 0
  report = json.loads((tmp_path / "run/tree/report.json").read_text())
  assert {kind: entry["count"] for kind, entry in report["corpus"]["bad_records"].items()} == {
    "malformed JSON": 1,
    "field 'text' missing": 1,
  }


def test_missing_corpus(chain, fails, tmp_path):
  arguments = corpus_arguments(chain, tmp_path, [])
  (tmp_path / "corpus.jsonl").unlink()
  message = fails(*arguments)
  assert message.startswith(f"no file matches {tmp_path}/corpus.jsonl ({tmp_path} has nothing")
  assert message.endswith("); give an existing path, URL or glob")


def test_empty_corpus(chain, fails, tmp_path):
  message = fails(*corpus_arguments(chain, tmp_path, ["\n"]))
  assert message.startswith(f"empty corpus: JsonlSource(pattern='{tmp_path}/corpus.jsonl'")


def test_fewer_documents_than_clusters(chain, fails, tmp_path):
  message = fails(
    "cluster", f"--gin_file={chain[0]}", "--gin_bindings=TreeConfig.depth = 12", f"--run_dir={tmp_path}/run"
  )
  assert "cannot fill the 4096 leaves of a tree with branching 2 and depth 12: lower TreeConfig.depth" in message


# Training and evaluation -------------------------------------------------------------------------------------------------


def train_arguments(chain, tmp_path, *bindings):
  dataset = f"train.dataset = '{chain[1]}/packed/train'"
  flags = [f"--gin_bindings={binding}" for binding in (dataset, *bindings)]
  return "train", f"--gin_file={chain[0]}", f"--run_dir={tmp_path}/run", *flags


@pytest.mark.parametrize(
  "bindings, parts",
  [
    (["MemoryConfig.rows = (2, 2, 2)"], ["its tree has 4 leaves", "has 8", "bind the tree's branching"]),
    (["AnchorConfig.vocab_size = 64"], ["300 pieces", "AnchorConfig.vocab_size is 64"]),
    (["OptimizerConfig.warmup_steps = 2"], ["OptimizerConfig.warmup_steps = 2", "the run's 2 steps", "bind fewer"]),
  ],
)
def test_training_inputs_that_do_not_fit(chain, fails, tmp_path, bindings, parts):
  message = fails(*train_arguments(chain, tmp_path, *bindings))
  assert all(part in message for part in parts), message


def test_init_from_another_anchor(chain, fails, tmp_path):
  message = fails(*train_arguments(chain, tmp_path, f"train.init_from = '{chain[1]}'", "AnchorConfig.mlp_width = 48"))
  assert message.startswith(f"{chain[1]}: its anchor is") and message.endswith("bind the same values")


@pytest.mark.slow
def test_training_without_tensorflow(chain, tmp_path):
  program = (
    "import sys; sys.modules['tensorflow'] = None\n"
    f"sys.argv = {list(train_arguments(chain, tmp_path))}\n"
    "from hiermem_jax import cli; cli.main('train')"
  )
  result = python("-c", program)
  assert result.returncode == 0, result.stderr
  assert "no TensorBoard events" in result.stderr
  lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [1, 2]
  assert json.loads((tmp_path / "run/report.json").read_text())["steps"] == 2


def test_evaluation_prints_and_writes_a_report(chain, run):
  status, output, _ = run("evaluate", f"--gin_file={chain[0]}", f"--run_dir={chain[1]}")
  assert status == 0
  report = json.loads((chain[1] / "evaluation/report.json").read_text())
  assert list(report["series"]) == ["none", "generic", "fetched"]
  for series in report["series"].values():
    assert f"{series['perplexity']:.2f}" in output
    assert [bucket["count"] for bucket in series["probes"]] == [1, 0, 0, 0]


def test_an_evaluation_of_the_same_is_kept_and_a_failed_one_changes_nothing(chain, run, fails, monkeypatch):
  arguments = (
    "evaluate",
    f"--gin_file={chain[0]}",
    f"--run_dir={chain[1]}",
    "--gin_bindings=evaluate.directory = 'kept'",
  )
  status, table, _ = run(*arguments)
  files = {path: path.read_bytes() for path in [*chain[1].glob("kept/*"), chain[1] / "evaluate.config.gin"]}
  assert status == 0 and len(files) == 5
  with monkeypatch.context() as patched:
    patched.setattr(measuring, "measure", lambda *arguments, **settings: pytest.fail("measured again"))
    status, again, _ = run(*arguments)
    assert status == 0 and again.splitlines()[:-1] == table.splitlines()[:-1] and "kept, being of the same" in again

    def broken(*arguments, **settings):
      raise InputError("no such thing")

    patched.setattr(measuring, "measure", broken)
    assert fails(*arguments, "--gin_bindings=evaluate.modes = ('none',)") == "no such thing"
  assert {path: path.read_bytes() for path in files} == files
  assert run(*arguments, "--gin_bindings=evaluate.modes = ('none',)")[0] == 0
  assert list(json.loads((chain[1] / "kept/report.json").read_text())["series"]) == ["none"]
  assert "evaluate.modes = ('none',)" in (chain[1] / "evaluate.config.gin").read_text()


def test_evaluation_of_routes_levels_and_documents(chain, run, fails):
  """In the directory where another evaluation was: a model may be measured in many ways."""
  extra = (
    "evaluate.modes = ('fetched', 'levels 2', 'blocked 1', 'blocked 2', 'rank 2', 'cut 50', 'rag none', 'rag fetched')",
    "evaluate.attribution = True",
    "evaluate.rag = @RagConfig()",
    "RagConfig.documents = @JsonlSource()",
    "evaluate.directory = 'probing'",
  )
  arguments = [f"--gin_file={chain[0]}", *(f"--gin_bindings={line}" for line in extra), f"--run_dir={chain[1]}"]
  status, output, errors = run("evaluate", *arguments)
  assert status == 0, errors
  report = json.loads((chain[1] / "probing/report.json").read_text())
  routes = ["blocked 1", "blocked 2", "rank 2", "cut 50"]
  assert list(report["series"]) == ["fetched", "levels 2", *routes, "rag none", "rag fetched"]
  assert all("loss" not in report["series"][name] for name in routes)
  assert report["series"]["rag fetched"]["relative_flops"] > report["series"]["rag none"]["relative_flops"] > 1
  assert report["documents"]["tokens"] > report["documents"]["plain_tokens"]
  (line,) = [json.loads(line) for line in (chain[1] / "probing/attribution.jsonl").read_text().splitlines()]
  assert line["prompt"] == "The sailor and the" and line["lost_without_level"].keys() == {"1", "2"}
  assert report["attribution"]["lost_without_level"][0] == pytest.approx(list(line["lost_without_level"].values()))
  assert "blocked 2" in output
  for binding, message in (
    ("evaluate.modes = ('best',)", "mode 'best': choose from none, generic, fetched"),
    ("evaluate.modes = ('blocked 3',)", "mode 'blocked 3': the tree has levels 1 to 2"),
    ("evaluate.modes = ('paraphrased',)", "no field `paraphrase`"),
    ("evaluate.modes = ('levels 3',)", "none on levels [3]"),
    ("evaluate.modes = ('rag none',)", "mode 'rag none': without documents"),
  ):
    flags = [f"--gin_bindings={line}" for line in (binding, "evaluate.directory = 'probing'")]
    assert message in fails("evaluate", f"--gin_file={chain[0]}", *flags, f"--run_dir={chain[1]}")


def test_tree_of_another_run(chain, fails, tmp_path):
  configuration.load([str(chain[0])], ["LsaEncoder.dim = 7"])
  configuration.call("cluster", run_dir=str(tmp_path / "other"))
  shutil.copytree(chain[1], tmp_path / "run", ignore=shutil.ignore_patterns("*.gin"))
  binding = f"--gin_bindings=ModelFiles.tree = '{tmp_path}/other/tree'"
  message = fails("evaluate", f"--gin_file={chain[0]}", binding, f"--run_dir={tmp_path}/run")
  fingerprints = {load_retriever(f"{tmp_path}/{run}/tree").tree.fingerprint for run in ("other", "run")}
  assert len(fingerprints) == 2 and all(fingerprint in message for fingerprint in fingerprints)
  assert message.endswith("use the ones of the same run")


def test_missing_checkpoint(chain, fails, tmp_path):
  shutil.copytree(chain[1], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "*.gin"))
  message = fails("evaluate", f"--gin_file={chain[0]}", f"--run_dir={tmp_path}/run")
  assert "no checkpoint there; train it first" in message
