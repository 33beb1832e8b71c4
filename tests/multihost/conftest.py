"""What the tests of this folder share: two processes that find each other on this machine, four CPU devices each."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def free_port():
  def find():
    with socket.socket() as listener:
      listener.bind(("127.0.0.1", 0))
      return listener.getsockname()[1]

  return find


@pytest.fixture(scope="session")
def environment(without_tensorflow):
  """Of processes without TensorFlow."""
  paths = [without_tensorflow, ROOT, ROOT / "tests/parallel"]
  return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}


@contextlib.contextmanager
def _starting(environment):
  processes = []

  def start_process(*arguments, **variables):
    process = subprocess.Popen(
      [sys.executable, *map(str, arguments)],
      env=environment | variables,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
    )
    processes.append(process)
    return process

  yield start_process
  for process in processes:
    process.kill()
    process.communicate()


@pytest.fixture
def start(environment):
  """Starts python with arguments and environment variables; what still runs when the test ends is killed."""
  with _starting(environment) as start_process:
    yield start_process


@pytest.fixture(scope="module")
def start_process(environment):
  """The same for what the tests of a file share."""
  with _starting(environment) as start_process:
    yield start_process


@pytest.fixture(scope="session")
def finish():
  """Waits for processes together; returns (status, standard output, standard error) of each."""

  def wait(processes, timeout=600):
    deadline = time.monotonic() + timeout
    results = [process.communicate(timeout=max(1, deadline - time.monotonic())) for process in processes]
    return [(process.returncode, *result) for process, result in zip(processes, results)]

  return wait
