"""The lock of a run directory: one live process, and none that has died."""

import errno
import fcntl
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from hiermem_jax import lock
from hiermem_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
HOLDER = "import sys, time\nfrom hiermem_jax import lock\nwith lock.held(sys.argv[1]):\n  print('held', flush=True)\n  time.sleep(600)"


@pytest.fixture
def holder(tmp_path):
  """A process that holds the lock of tmp_path / 'run'."""
  command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()


def test_a_live_process_is_named_and_a_dead_one_gives_way(tmp_path, holder):
  run = str(tmp_path / "run")
  named = rf"{run}: in use by process {holder.pid} on {socket.gethostname()}; wait for it"
  for _ in range(2):  # the first refusal leaves the file as it is
    with pytest.raises(InputError, match=named), lock.held(run):
      pass
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert os.path.exists(f"{run}/.lock")
  with lock.held(run):
    assert json.loads(pathlib.Path(run, ".lock").read_text())["pid"] == os.getpid()
  assert os.listdir(run) == []


def test_a_directory_is_created_and_freed_also_after_a_failure(tmp_path):
  run = str(tmp_path / "a" / "run")
  with pytest.raises(ZeroDivisionError), lock.held(run):
    assert os.listdir(run) == [".lock"]
    raise ZeroDivisionError
  assert os.listdir(run) == []


def test_where_the_file_system_has_no_locks_the_run_goes_on(tmp_path, monkeypatch):
  def flock(descriptor, operation):
    raise OSError(errno.ENOTSUP, "not supported")

  monkeypatch.setattr(fcntl, "flock", flock)
  with lock.held(str(tmp_path)):
    pass


def test_a_file_that_is_removed_while_one_waits_is_not_taken_for_the_lock(tmp_path, monkeypatch):
  """Between opening and locking, the holder removes the file: the lock is then on one that nobody else would open."""
  flock, removed = fcntl.flock, []

  def remove_first(descriptor, operation):
    if not removed:
      removed.append(os.unlink(tmp_path / ".lock"))
    flock(descriptor, operation)

  monkeypatch.setattr(fcntl, "flock", remove_first)
  with lock.held(str(tmp_path)):
    monkeypatch.undo()
    with pytest.raises(InputError, match=f"process {os.getpid()} on"), lock.held(str(tmp_path)):
      pass
