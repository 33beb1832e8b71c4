"""The life cycle, for real, with processes for hosts: a run that is killed and watched ends as one that is not."""

import json
import os
import pathlib
import re
import signal
import subprocess
import time

import numpy as np
import pytest

from tpu_setup.__main__ import main

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def local(tmp_path, capsys):
  """The command line on a slice of two hosts with four devices each."""

  def call(command, *arguments, status=0):
    flags = ["--provider=local", f"--root={tmp_path}/slices", "--poll_seconds=1", "--backoff_seconds=0.1"]
    found = main([command, *flags, "--stop_seconds=30", *map(str, arguments)])
    output = "".join(capsys.readouterr())
    assert found == status, output
    return output

  yield call
  call("delete")


@pytest.fixture
def bindings(write_packed, tmp_path):
  """Of a small training."""
  rng = np.random.default_rng(0)
  sequences = [(leaf, rng.integers(3, 1000, 16), np.ones(16, np.int32)) for leaf in rng.integers(0, 4, 64)]
  dataset = write_packed(str(tmp_path / "packed"), sequences, vocab_size=1000, num_leaves=4).directory
  return [f"train.dataset = '{dataset}'", "train.steps = 60", "train.log_every = 1", "CheckpointConfig.every = 15"]


@pytest.fixture
def job(bindings):
  """What to run: the verb and its flags."""
  files = ["gin/phases/joint.gin", "gin/phases/toy.gin"]
  return ["train", *(f"--gin_file={file}" for file in files), *(f"--gin_bindings={line}" for line in bindings)]


def wait_for(condition, seconds=600):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.2)


def steps(run_dir):
  path = run_dir / "metrics.jsonl"
  lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
  return {line["step"]: line["loss"] for line in lines}


@pytest.mark.slow
def test_killed_run_ends_as_an_undisturbed_one(local, bindings, job, tmp_path, capsys):
  """Create, bootstrap, launch on two hosts; one is killed; watch starts it again. Another run is left alone."""
  calm, shaken = tmp_path / "calm", tmp_path / "shaken"
  assert "hiermem: active" in local("create")
  assert "2 hosts are ready" in local("bootstrap")
  # To import TensorFlow, for TensorBoard's events, would take longer than the run.
  (tmp_path / "slices/hiermem/host_0/hiermem/code/tensorflow.py").write_text("raise ImportError('hidden by the test')")
  local("launch", f"--run_dir={calm}", "--", *job)
  wait_for((calm / "finished").exists)
  wait_for(lambda: "running" not in local("status"))
  local("launch", f"--run_dir={shaken}", "--", *job)
  wait_for(lambda: len(steps(shaken)) > 20)
  pid = int((tmp_path / "slices/hiermem/host_1/hiermem/job/pid").read_text())
  os.killpg(pid, signal.SIGKILL)
  output = local("watch", f"--run_dir={shaken}", "--", *job)
  assert "hiermem:1 died" in output and "try 1 of 5" in output and "started on 2 hosts" in output
  assert f"{shaken}: finished" in output
  assert "hiermem:0| " in local("logs", "--host=0")
  assert {path.name.split(".", 1)[1] for path in (shaken / "logs").iterdir()} >= {"host_0.log", "host_1.log"}
  assert steps(shaken) == steps(calm) and len(steps(calm)) == 60


def test_lost_slice_is_made_anew(local, tmp_path):
  """A slice marked lost, as a preemption leaves it, is deleted, created, set up and started again."""
  local("create")
  file = tmp_path / "slices/hiermem/slice.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"state": "lost"}))
  assert "hiermem: is lost (lost); create it first" in local("bootstrap", status=2)
  output = local("watch", "--tries=1", f"--run_dir={tmp_path}/run", "--", "train", "--gin_file=nowhere.gin", status=2)
  assert "the slice is lost; try 1 of 1" in output
  assert re.search(r"hiermem:[01]: error: .*nowhere\.gin.*; mend that, then watch again", output)


def test_name_in_use_and_no_slice(local):
  assert "is missing (missing); create it first" in local("stop", status=2)
  local("create")
  assert "exists in" in local("create", status=2)
  assert "a local slice has no buckets" in local("launch", "--run_dir=gs://bkt/x", "--", "train", status=2)
  assert "what to run is missing; write -- and then one of train" in local("launch", "--run_dir=x", status=2)


def test_code_that_differs_on_one_host_is_named(local, job, tmp_path):
  """The hosts of a run compare themselves where `train` starts; the one with other code is named."""
  local("create")
  local("bootstrap")
  changed = tmp_path / "slices/hiermem/host_1/hiermem/code/hiermem_jax/errors.py"
  changed.write_text(changed.read_text() + "# changed\n")
  local("launch", f"--run_dir={tmp_path}/run", "--", *job)
  wait_for(lambda: "running" not in local("status"))
  assert "(process 1): has hiermem_jax" in local("status")


@pytest.mark.parametrize(
  "status, log, expected",
  [
    ("2", "== start\nstep 1\nerror: no such file\n[Gloo] connected\n", "error: no such file"),
    ("2", "== start\nerror: of the try before\n== start\nusage: train\n", "usage: train"),
    ("1", "== start\nerror: handled\nValueError: x\n", "ValueError: x"),
  ],
)
def test_the_line_of_a_run_that_has_ended(tmp_path, status, log, expected):
  """Bad input is told by the run's own error line; a library may print after it."""
  job = tmp_path / "hiermem/job"
  job.mkdir(parents=True)
  for name, text in {"status": status, "command": "-m hiermem_jax.train", "log": log}.items():
    (job / name).write_text(text)
  script = ["bash", ROOT / "tpu_setup/host/status.sh"]
  output = subprocess.run(script, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=True)
  assert output.stdout.splitlines() == [f"exited {status}", "-m hiermem_jax.train", expected]
