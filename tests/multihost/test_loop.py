"""The training loop in two processes with four devices each, against one process with one device."""

import json
import pathlib

import numpy as np
import pytest

WORKER = pathlib.Path(__file__).with_name("worker.py")
pytestmark = pytest.mark.slow


@pytest.fixture
def losses(tmp_path, start, finish, free_port):
  """Losses of every step, by run: the two processes' on several meshes, then those of one process."""
  port = free_port()
  for arguments in ([(tmp_path, port, 0), (tmp_path, port, 1)], [(tmp_path,)]):
    for status, _, errors in finish([start(WORKER, *each) for each in arguments]):
      assert status == 0, errors[-3000:]
  runs = {path.parent.name: path.read_text().splitlines() for path in tmp_path.glob("*/metrics.jsonl")}
  return {name: {line["step"]: line["loss"] for line in map(json.loads, lines)} for name, lines in runs.items()}


def test_losses_do_not_depend_on_processes_or_mesh(losses):
  """Nor do those of a run that two processes began and one resumed, on one device or eight."""
  alone = losses.pop("alone")
  assert list(alone) == [1, 2, 3, 4]
  assert len(set(alone.values())) == 4
  whole, resumed = ("2x4x1 interleaved", "1x4x2 across"), ("resumed on one", "resumed on eight")
  assert losses.keys() == {*whole, *resumed}
  for name, run in losses.items():
    assert list(run) == ([1, 2, 3, 4] if name in whole else [3, 4])
    np.testing.assert_allclose(list(run.values()), [alone[step] for step in run], rtol=1e-5, err_msg=name)
