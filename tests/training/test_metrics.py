"""metrics.jsonl: one line a step, also after a run was killed."""

import json

import numpy as np

from hiermem_jax.training.metrics import JsonlWriter


def steps(path):
  return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_writes_one_object_a_line(tmp_path):
  path = tmp_path / "new" / "metrics.jsonl"
  writer = JsonlWriter(str(path), 0)
  writer.write_scalars(np.int64(1), {"loss": np.float32(0.5), "tokens": 7})
  writer.write_scalars(2, {"loss": 0.25})
  lines = [json.loads(line) for line in path.read_text().splitlines()]  # readable while the run goes on
  assert lines == [{"step": 1, "loss": 0.5, "tokens": 7.0}, {"step": 2, "loss": 0.25}]
  writer.flush()


def test_resumed_file_keeps_no_step_beyond_the_start(tmp_path):
  path = tmp_path / "metrics.jsonl"
  writer = JsonlWriter(str(path), 0)
  for step in range(1, 8):
    writer.write_scalars(step, {"loss": 1.0})
  resumed = JsonlWriter(str(path), 4)
  assert steps(path) == [1, 2, 3, 4]
  resumed.write_scalars(5, {"loss": 2.0})
  assert steps(path) == [1, 2, 3, 4, 5]
  assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_last_line_that_was_cut_off_is_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  for tail in ('{"step": 3, "lo', '{"step": 3, "loss": 1.0}'):  # the second is whole but for its end of line
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n' + tail)
    JsonlWriter(str(path), 2).write_scalars(3, {"loss": 2.0})
    assert steps(path) == [1, 2, 3]
    assert json.loads(path.read_text().splitlines()[2])["loss"] == 2.0


def test_new_run_starts_an_empty_file(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1, "loss": 1.0}\n')
  JsonlWriter(str(path), 0)
  assert path.read_text() == ""
