"""The training loop in two processes with four devices each, against this process with its one device."""

import importlib
import json
import os
import pathlib
import shutil

import pytest

HERE = pathlib.Path(__file__).parent
pytestmark = pytest.mark.slow


@pytest.fixture
def worker(monkeypatch):
  """What the two processes run, as a module."""
  monkeypatch.syspath_prepend(HERE)
  monkeypatch.syspath_prepend(HERE.with_name("parallel"))
  return importlib.import_module("worker")


def losses(run_dir):
  lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
  return {line["step"]: line["loss"] for line in lines}


def test_losses_do_not_depend_on_processes_or_mesh(tmp_path, worker, start, finish, free_port):
  """Nor do those of a run that two processes began and one resumed, on one device."""
  port = free_port()
  processes = [start(HERE / "worker.py", tmp_path, port, number) for number in range(2)]
  worker.train(tmp_path / "alone", 1, 1, [0])
  for status, _, errors in finish(processes):
    assert status == 0, errors[-3000:]
  alone = losses(tmp_path / "alone")
  assert list(alone) == [1, 2, 3, 4]
  assert len(set(alone.values())) == 4
  for name in worker.MESHES:
    assert losses(tmp_path / name) == pytest.approx(alone, rel=1e-5), name
    resumed = tmp_path / f"{name} resumed"
    shutil.copytree(tmp_path / name, resumed)
    shutil.rmtree(resumed / "checkpoints/4")  # as if killed after the first checkpoint
    os.truncate(resumed / "metrics.jsonl", 0)
    worker.train(resumed, 1, 1, [0])
    assert losses(resumed) == pytest.approx({step: alone[step] for step in (3, 4)}, rel=1e-5), name
