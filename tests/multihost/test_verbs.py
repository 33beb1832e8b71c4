"""The verbs with --distributed: a chain in two processes, a training that is killed, and inputs that do not fit."""

import json
import pathlib
import signal
import time

import numpy as np
import pytest

from hiermem_jax import configuration

GIN_FILE = pathlib.Path(__file__).with_name("run.gin")
ROOT = pathlib.Path(__file__).parents[2]
WORDS = (
  ("sailor", "harbour", "anchor", "mast", "tide", "keel", "rope", "deck", "storm", "captain"),
  ("baker", "oven", "flour", "yeast", "bread", "crust", "butter", "sugar", "cake", "kitchen"),
  ("planet", "orbit", "comet", "telescope", "galaxy", "moon", "crater", "rocket", "star", "eclipse"),
  ("violin", "concert", "melody", "chord", "rhythm", "opera", "flute", "choir", "tempo", "piano"),
)
# A verb in a process that takes another for dead when it has been silent for ten seconds, where a minute is usual.
IMPATIENT = """
import sys
from hiermem_jax import cli
from hiermem_jax.parallel import distributed
distributed._HEARTBEAT_SECONDS = 10
sys.argv[0] = "hiermem_jax/{verb}.py"
cli.main("{verb}")
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """The binding of a file of sentences about four topics."""
  path, rng = tmp_path_factory.mktemp("corpus") / "corpus.jsonl", np.random.default_rng(0)
  texts = [f"The {' '.join(rng.choice(WORDS[number % 4], 12))}." for number in range(200)]
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  return f"CORPUS = '{path}'"


@pytest.fixture
def start_two(corpus, start, free_port):
  """Starts a verb in two processes with four devices each; `own` are bindings of one process."""

  def start_verb(verb, run_dir, *bindings, own=((), ()), impatient=False, **variables):
    arguments = ["-c", IMPATIENT.format(verb=verb)] if impatient else ["-m", f"hiermem_jax.{verb}"]
    arguments += [f"--gin_file={GIN_FILE}", f"--run_dir={run_dir}"]
    arguments += ["--distributed", f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
    arguments = [
      [*arguments, f"--process_id={number}", *(f"--gin_bindings={x}" for x in (corpus, *bindings, *own[number]))]
      for number in range(2)
    ]
    return [start(*each, JAX_NUM_CPU_DEVICES="4", **variables) for each in arguments]

  return start_verb


def run_alone(verb, run_dir, *bindings):
  """The same in this process, on its one device."""
  configuration.load([str(GIN_FILE)], bindings)
  configuration.call(verb, run_dir=str(run_dir))


def losses(run_dir):
  lines = (run_dir / "metrics.jsonl").read_text().splitlines()
  return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def assert_same_losses(run, expected):
  assert list(run) == list(expected)
  np.testing.assert_allclose(list(run.values()), list(expected.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def chain(corpus, tmp_path_factory):
  """Directory of a run that this process has prepared, trained and evaluated."""
  run_dir = tmp_path_factory.mktemp("chain")
  run_alone("run", run_dir, corpus)
  return run_dir


def test_whole_chain_in_two_processes(chain, tmp_path, start_two, finish):
  """One of them clusters, prepares, reports and prints; both train and score, with a model axis of two."""
  run_dir = tmp_path / "run"
  (first, output, errors), (second, other_output, other_errors) = finish(
    start_two("run", run_dir, "MeshConfig.model = 2", PYTHONPATH=str(ROOT))  # with TensorFlow
  )
  assert (first, second) == (0, 0), errors[-3000:] + other_errors[-3000:]
  assert_same_losses(losses(run_dir), losses(chain))
  assert json.loads((run_dir / "report.json").read_text())["steps"] == 5
  reports = [json.loads((path / "evaluation/report.json").read_text())["series"] for path in (run_dir, chain)]
  assert reports[0].keys() == reports[1].keys() == {"none", "generic", "fetched"}
  for name, series in reports[0].items():
    assert series["loss"] == pytest.approx(reports[1][name]["loss"], rel=1e-5)
  assert "fetched memory" in output and "[3/4 train] loss" in errors and "/4 " not in other_output + other_errors
  assert "step 5: loss" in (run_dir / "log.txt").read_text() and (run_dir / "log.1.txt").exists()
  assert len(list(run_dir.glob("events.out.tfevents.*"))) == 1
  assert sorted(path.name for path in run_dir.glob("*.gin*")) == ["config.gin", "config.short.gin"]
  assert len((run_dir / "runs.jsonl").read_text().splitlines()) == 1
  results = finish(start_two("evaluate", run_dir, "evaluate.modes = ('none', 'fetched')"))
  assert [status for status, *_ in results] == [0, 0], results[0][2][-3000:]
  assert list(json.loads((run_dir / "evaluation/report.json").read_text())["series"]) == ["none", "fetched"]


@pytest.fixture(scope="module")
def training(chain):
  """Bindings of a training that is long enough to be disturbed."""
  return (f"train.dataset = '{chain / 'packed/train'}'", "train.steps = 300", "CheckpointConfig.every = 20")


@pytest.fixture(scope="module")
def undisturbed(corpus, training, tmp_path_factory):
  """Its losses where nothing disturbs it, in this process."""
  run_dir = tmp_path_factory.mktemp("undisturbed")
  run_alone("train", run_dir, corpus, *training)
  return losses(run_dir)


def wait_for(condition, processes):
  """Until a run is where the test wants it, or has ended."""
  deadline = time.monotonic() + 600
  while time.monotonic() < deadline and all(process.poll() is None for process in processes):
    if condition():
      return
    time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_of_two_saves_and_ends_both(undisturbed, training, corpus, tmp_path, start_two, finish, number):
  """They agree on a step, exit with status 75, and the same command goes on from there."""
  bindings, run_dir = (*training, "CheckpointConfig.every = 1000"), tmp_path / "run"
  processes = start_two("train", run_dir, *bindings)
  scalars = run_dir / "metrics.jsonl"
  wait_for(lambda: scalars.exists() and len(scalars.read_text().splitlines()) >= 20, processes)
  processes[1].send_signal(number)
  results = finish(processes)
  assert [status for status, _, _ in results] == [75, 75], results[0][2][-3000:] + results[1][2][-3000:]
  (step,) = (int(entry.name) for entry in (run_dir / "checkpoints").iterdir())
  assert 20 <= step < 300 and list(losses(run_dir)) == list(range(1, step + 1))
  assert f"told to end after step {step} of 300" in results[0][2]
  assert not (run_dir / ".lock").exists()
  run_alone("train", run_dir, corpus, *bindings)
  assert_same_losses(losses(run_dir), undisturbed)


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_of_two_dies_the_other_ends_with_an_error(
  undisturbed, training, corpus, tmp_path, start_two, finish, victim
):
  """What has been saved is good: this process goes on from there, on its one device."""
  run_dir = tmp_path / "run"
  processes = start_two("train", run_dir, *training, impatient=True)
  wait_for((run_dir / "checkpoints/20").exists, processes)
  processes[victim].send_signal(signal.SIGKILL)
  results = finish(processes)
  assert results[victim][0] == -signal.SIGKILL
  assert results[1 - victim][0] not in (0, 2, 75), results[1 - victim][2][-3000:]
  assert 20 <= len(losses(run_dir)) < 300
  run_alone("train", run_dir, corpus, *training)
  assert_same_losses(losses(run_dir), undisturbed)


def test_processes_with_different_configurations_all_stop(chain, tmp_path, start_two, finish):
  """Process 1 has another learning rate: both say so, and none of them trains."""
  rates = [[f"OptimizerConfig.peak_learning_rate = {rate}"] for rate in (0.001, 0.002)]
  processes = start_two("train", tmp_path / "run", f"train.dataset = '{chain / 'packed/train'}'", own=rates)
  for number, (status, _, errors) in enumerate(finish(processes)):
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1, errors[-3000:]
    assert "peak_learning_rate = 0.001', now: 'OptimizerConfig.peak_learning_rate = 0.002'" in lines[0]
    assert ("process 1: " in lines[0]) == (number == 0)


def test_number_of_processes_that_nothing_says(corpus, tmp_path, start, finish):
  """Other flags that do not fit are in test_cli.py."""
  flags = [f"--gin_file={GIN_FILE}", f"--gin_bindings={corpus}", f"--run_dir={tmp_path}/run"]
  ((status, _, errors),) = finish(
    [start("-m", "hiermem_jax.train", *flags, "--distributed", "--coordinator_address=127.0.0.1:1")]
  )
  assert (status, errors.splitlines()[-1]) == (
    2,
    "error: --distributed: Number of processes must be defined, and nothing here says it; give --coordinator_address,"
    " --num_processes and --process_id",
  )
  assert not (tmp_path / "run").exists()
