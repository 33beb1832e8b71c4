"""Traps: what must go wrong when the memory is the wrong one, and what must not change when a run is killed.

If any of these gains survived its trap, the effect that the experiments report would not be the memory's.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from hiermem_jax import configuration

ROOT = pathlib.Path(__file__).parents[1]
GIN_FILE = ROOT / "tests/traps.gin"
pytestmark = pytest.mark.slow


def _run(run_dir, bindings=()):
  configuration.load([str(GIN_FILE)], list(bindings))
  configuration.call("run", run_dir=str(run_dir))


def _report(run_dir, directory="evaluation"):
  return json.loads((run_dir / directory / "report.json").read_text())["series"]


def _rare(series, name):
  """Log-likelihood per token of the answers to facts stated less than 16 times, the mean of both buckets."""
  cells = series[name]["probes"][:2]
  return sum(c["log_likelihood_per_token"] * c["count"] for c in cells) / sum(c["count"] for c in cells)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """A trained chain; and on the same tree and anchor a bank trained with leaves dealt out at random."""
  run_dir = tmp_path_factory.mktemp("traps")
  _run(run_dir)
  _run(
    run_dir,
    [
      "prepare.directory = 'shuffled'",
      "PackConfig.shuffle_leaves = True",
      "cotrain/train.dataset = 'shuffled/train'",
      "cotrain/train.directory = 'cotrain_shuffled'",
      "ModelFiles.directory = 'cotrain_shuffled'",
      "evaluate.directory = 'evaluation_shuffled'",
    ],
  )
  return run_dir


def test_fetched_memory_beats_the_baseline_on_rare_facts(world):
  series = _report(world)
  assert _rare(series, "fetched") > _rare(series, "baseline") + 0.3  # several standard errors
  assert series["fetched"]["loss"] < series["baseline"]["loss"] - 0.1


def test_with_a_shuffled_tree_the_gain_disappears(world):
  """Leaf sizes, block sizes and tokens are the same; only the leaf no longer says anything about the text."""
  true, shuffled = _report(world), _report(world, "evaluation_shuffled")
  gain = _rare(true, "fetched") - _rare(true, "baseline")
  assert _rare(shuffled, "fetched") - _rare(shuffled, "baseline") < 0.2 * gain
  loss_gain = true["baseline"]["loss"] - true["fetched"]["loss"]
  assert shuffled["baseline"]["loss"] - shuffled["fetched"]["loss"] < 0.2 * loss_gain


def test_with_the_wrong_leaf_the_rare_facts_are_lost(world):
  series = _report(world)
  assert _rare(series, "wrong") < min(_rare(series, name) for name in ("baseline", "generic")) - 0.3
  assert series["wrong"]["loss"] > series["generic"]["loss"]


def test_a_killed_run_continues_bit_for_bit(world, tmp_path, without_tensorflow):
  """SIGKILL of a process between two checkpoints; the loss curve is that of a run that was left alone, in this process."""
  bindings = [
    f"train.dataset = '{world / 'packed/train'}'",
    "ModelConfig.memory = @MemoryConfig()",
    "train.steps = 40",
    "train.log_every = 1",
    "CheckpointConfig.every = 10",
  ]

  def train(run_dir):
    configuration.load([str(GIN_FILE)], bindings)
    configuration.call("train", run_dir=str(run_dir))

  def losses(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"], line["grad_norm"]) for line in map(json.loads, lines)]

  broken, whole = tmp_path / "broken", tmp_path / "whole"
  command = [sys.executable, "-m", "hiermem_jax.train", f"--gin_file={GIN_FILE}", f"--run_dir={broken}"]
  command += [f"--gin_bindings={binding}" for binding in bindings]
  environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(without_tensorflow), str(ROOT)])}
  process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment)
  scalars, deadline = broken / "metrics.jsonl", time.monotonic() + 600
  while not scalars.exists() or scalars.read_text().count("\n") < 25:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  assert 25 <= scalars.read_text().count("\n") < 40
  train(broken)
  train(whole)
  assert losses(broken) == losses(whole)
