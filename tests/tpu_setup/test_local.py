"""The life cycle, for real, with processes for hosts: a run that is killed and watched ends as one that is not."""

import json
import os
import re
import signal
import threading
import time

import pytest

from tpu_setup.__main__ import main

GIN = ["--gin_file=tests/smoke.gin", "--gin_bindings=train.steps = 20", "--gin_bindings=CheckpointConfig.every = 5"]
GIN += ["--gin_bindings=train.log_every = 1"]


@pytest.fixture
def local(tmp_path, monkeypatch, capsys):
  """The command line on a slice of two hosts with four devices each."""
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

  def call(command, *arguments, status=0):
    flags = ["--provider=local", f"--root={tmp_path}/slices", "--poll_seconds=1", "--backoff_seconds=0.1"]
    found = main([command, *flags, "--stop_seconds=30", *map(str, arguments)])
    output = "".join(capsys.readouterr())
    assert found == status, output
    return output

  yield call
  call("delete")


def wait_for(condition, seconds=240):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.2)


def steps(run_dir, stage="cotrain"):
  path = run_dir / stage / "metrics.jsonl"
  lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
  return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.slow
def test_killed_run_ends_as_an_undisturbed_one(local, tmp_path, capsys):
  """Create, bootstrap, launch on two hosts; one is killed while it co-trains; watch starts it again."""
  calm, shaken = tmp_path / "calm", tmp_path / "shaken"
  assert "hiermem: active" in local("create")
  assert "2 hosts are ready" in local("bootstrap")
  local("launch", f"--run_dir={calm}", "--", "quickstart", *GIN)
  wait_for((calm / "finished").exists)
  wait_for(lambda: "running" not in local("status"))
  local("launch", f"--run_dir={shaken}", "--", "quickstart", *GIN)
  wait_for(lambda: len(steps(shaken)) > 6)
  pid = int((tmp_path / "slices/hiermem/host_1/hiermem/job/pid").read_text())

  killer = threading.Timer(1.0, os.killpg, (pid, signal.SIGKILL))
  killer.start()
  output = local("watch", f"--run_dir={shaken}", "--", "quickstart", *GIN)
  assert "hiermem:1 died" in output and "try 1 of 5" in output and "started on 2 hosts" in output
  assert f"{shaken}: finished" in output
  assert "hiermem:0| " in local("logs", "--host=0")
  assert steps(shaken)[20] == steps(calm)[20]
  assert {path.name.split(".", 1)[1] for path in (shaken / "logs").iterdir()} >= {"host_0.log", "host_1.log"}


def test_lost_slice_is_made_anew(local, tmp_path, monkeypatch):
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


def test_code_that_differs_on_one_host_is_named(local, tmp_path):
  """The hosts of a run compare themselves where `train` starts; the one with other code is named."""
  local("create")
  local("bootstrap")
  changed = tmp_path / "slices/hiermem/host_1/hiermem/code/hiermem_jax/errors.py"
  changed.write_text(changed.read_text() + "# changed\n")
  local("launch", f"--run_dir={tmp_path}/run", "--", "quickstart", *GIN)
  wait_for(lambda: "running" not in local("status"))
  assert "(process 1): has hiermem_jax" in local("status")
