"""Checkpoints of two processes when one of them fails: both learn of it, in words, and neither waits for long."""

import json
import pathlib

import pytest

HERE = pathlib.Path(__file__).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory, start_process, finish, free_port):
  """What each fault of faults.py came to in both processes: fault -> (of the first, of the second)."""
  run_dir, port = tmp_path_factory.mktemp("faults"), free_port()
  processes = [start_process(HERE / "faults.py", run_dir, port, number) for number in range(2)]
  for status, output, errors in finish(processes, timeout=120):
    assert status == 0, output[-3000:] + errors[-3000:]
  both = [json.loads((run_dir / f"{number}.json").read_text()) for number in range(2)]
  return {name: (both[0][name], both[1][name]) for name in both[0]}


@pytest.mark.parametrize("fault, failed", [("disk full", 1), ("save raises", 2)])
def test_a_save_that_fails_in_one_process_fails_in_both_and_both_go_on(found, fault, failed):
  for process in found[fault]:
    assert "error" not in process
    assert process["failed"] == failed and process["steps"] == [1, 2]
  for process in found["saved again"]:
    assert process["steps"] == [1, 2, 4] and process["restored"]


def test_best_model_and_checkpoint_at_the_same_step(found):
  for process in found["best at the same step"]:
    assert process["restored"] and process["best"] == 0.5 and process["failed"] == 2


@pytest.mark.parametrize(
  "fault, reason",
  [
    ("read times out", "TimeoutError: the server does not answer"),
    ("no memory", "MemoryError: no room for the bank"),
    ("read hangs", "not done within 5 s"),
    ("does not come", "no answer within 6 s"),
  ],
)
def test_what_is_no_damage_is_named_as_what_it_is_and_nothing_is_set_aside(found, fault, reason):
  first, second = found[fault]
  assert first["error"] == second["error"]
  assert first["error"].startswith("UnreadableCheckpointError: ") and "could not be read (process 1" in first["error"]
  assert "/checkpoints" in first["error"] and reason in first["error"] and "skip_damaged" not in first["error"]
  assert first["steps"] == [1, 2, 4, 5]


def test_what_passes_is_tried_again(found):
  assert all(process["restored"] for process in found["read times out once"])


def test_damage_that_one_process_finds_is_named_by_both_and_set_aside_by_both(found):
  first, second = found["damaged"]
  assert first["error"] == second["error"]
  assert first["error"].startswith("DamagedCheckpointError: ") and "--skip_damaged_checkpoints" in first["error"]
  assert "process 1 (" in first["error"] and "item bank, " in first["error"] and "checkpoints/5/bank/" in first["error"]
  for process in found["set aside"]:
    assert process["restored"] and process["steps"] == [1, 2, 4]
