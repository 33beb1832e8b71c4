"""Whole runs: killed and resumed, started from another run's anchor."""

import dataclasses

import jax
import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.models import MemoryConfig
from hiermem_jax.training import loop
from hiermem_jax.training.checkpoint import CheckpointStore, load_model
from hiermem_jax.training.validation import HeldOut


def test_undisturbed_run(toy, whole):
  run_dir, state, scalars, hooked = whole
  lines = toy.metrics(run_dir)
  assert [line["step"] for line in lines] == hooked == list(range(1, 13))
  assert int(state.step) == 12
  for line in lines:
    rate = float(toy.optimizer.schedule(12)(line["step"] - 1))
    assert line["learning_rate"] == pytest.approx(rate)
    assert line["tokens"] == 30
  assert lines[-1]["loss"] == scalars["loss"]
  assert np.mean([line["loss"] for line in lines[-3:]]) < np.mean([line["loss"] for line in lines[:3]])
  assert sorted(int(entry.name) for entry in (run_dir / "checkpoints").iterdir()) == [8, 12]  # keeps two


def test_checkpoint_holds_the_final_model(toy, whole):
  run_dir, state, _, _ = whole
  model = load_model(str(run_dir), toy.mesh)
  assert (model.anchor, model.memory) == (toy.anchor, toy.memory)
  assert model.metadata["step"] == 12
  assert model.metadata["tree_fingerprint"] == "feed"
  toy.assert_equal(model.params, state.params)


@pytest.mark.parametrize("killed_before", [5, 7])
def test_killed_and_resumed_equals_undisturbed(toy, whole, tmp_path, killed_before):
  """Killed right after a checkpoint or between two: afterwards every bit and every line is as it would have been."""

  def until_killed(start):
    for step in range(start + 1, killed_before):
      yield toy.random_batch(step)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    toy.run(tmp_path, batches=until_killed)
  with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
    file.write('{"step": 9, "lo')  # a line that the kill cut short
  starts = []

  def resumed(start):
    starts.append(start)
    return toy.batches(start)

  state, _ = toy.run(tmp_path, batches=resumed)
  assert starts == [4]
  toy.assert_equal(state, whole[1])
  assert toy.metrics(tmp_path) == toy.metrics(whole[0])


def test_several_steps_in_one_call_are_the_same_steps(toy, whole, tmp_path):
  """By threes, with a checkpoint at every fourth: steps 1-3 and 10-12 are calls, the others go one by one.

  Rounding may differ from that of single steps, which are another program; a run that is killed and resumed has the
  same calls, and every bit.
  """

  def until_killed(start):
    for step in range(start + 1, 7):
      yield toy.random_batch(step)
    raise KeyboardInterrupt

  hooked = []
  undisturbed, _ = toy.run(tmp_path / "undisturbed", steps_per_call=3)
  with pytest.raises(KeyboardInterrupt):
    toy.run(tmp_path / "killed", steps_per_call=3, batches=until_killed)
  state, _ = toy.run(tmp_path / "killed", steps_per_call=3, hooks=[hooked.append])
  assert hooked == list(range(5, 13))
  toy.assert_equal(state, undisturbed)
  lines, singly = toy.metrics(tmp_path / "killed"), toy.metrics(whole[0])
  assert lines == toy.metrics(tmp_path / "undisturbed")
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, whole[1])
  assert len(lines) == len(singly)
  for line, single in zip(lines, singly):
    assert line == pytest.approx(single, rel=1e-5)


@pytest.mark.parametrize(
  "step, together, every, held_out, count",
  [
    (0, 1, 4, None, 1),
    (0, 4, 4, None, 4),
    (4, 4, 4, 2, 1),  # a measurement is due in between
    (4, 4, 100, 8, 4),
    (6, 4, 100, None, 1),  # resumed between two calls: one by one until the next begins
    (8, 4, 100, None, 4),
    (12, 4, 100, None, 1),  # the run ends before
  ],
)
def test_how_many_steps_are_one_call(toy, step, together, every, held_out, count):
  run = toy.training_run({"steps_per_call": together, "every": every}, steps=15)
  held_out = held_out and HeldOut(batches=(), every=held_out)
  assert loop._steps_of_call(step, run, held_out) == count


def test_batches_of_several_lengths_are_calls_of_their_own():
  batches = [{"decoder_target_tokens": np.zeros((1, length))} for length in (2, 2, 4)]
  assert loop._calls(batches[:2]) == [batches[:2]]
  assert loop._calls(batches) == [[batch] for batch in batches]


def test_finished_run_is_left_alone(toy, whole):
  """Also when what it once started from is gone."""
  run_dir, state, _, _ = whole
  before = toy.metrics(run_dir)
  again, scalars = toy.run(run_dir, init_from="/nowhere")
  assert scalars == {}
  toy.assert_equal(again, state)
  assert toy.metrics(run_dir) == before


def test_starts_from_another_runs_anchor(toy, whole, tmp_path):
  """The anchor is taken over; bank and optimizer are fresh. One step at a rate of almost nothing shows the start."""
  source, target = tmp_path / "source", tmp_path / "target"
  alone, _ = toy.run(source, memory=None, steps=3)
  assert alone.params.keys() == {"anchor"}
  assert load_model(str(source), toy.mesh).memory is None

  def one_batch(start):
    yield toy.random_batch(start + 1)
    raise KeyboardInterrupt

  standstill = dataclasses.replace(toy.optimizer, peak_learning_rate=1e-30, final_learning_rate=1e-30)
  with pytest.raises(KeyboardInterrupt):
    toy.run(target, init_from=str(source), batches=one_batch, every=1, optimizer=standstill)
  store = CheckpointStore(str(target))
  state = store.restore(whole[1])
  store.close()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-28), state.params["anchor"], alone.params["anchor"]
  )
  for level, neurons in ((1, 2), (2, 1)):
    table = np.asarray(state.params["bank"][f"level_{level}"]).reshape(2**level + 1, neurons, 3, 8)
    assert (table[:, :, :2] != 0).all()
    np.testing.assert_allclose(table[:, :, 2], 0, atol=1e-28)  # M3 of a fresh bank
  counts = [int(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == np.int32]
  assert counts == [1] * len(counts)  # not 3 + 1
  assert counts


def test_starting_points_that_do_not_fit(toy, whole, tmp_path):
  other = dataclasses.replace(toy.anchor, rope_base=50.0)  # of the same sizes
  with pytest.raises(InputError, match="its anchor is .*rope_base=100000.0.* this run's is .*rope_base=50.0"):
    toy.run(tmp_path / "other", anchor=other, init_from=str(whole[0]))
  with pytest.raises(InputError, match="no checkpoint there"):
    toy.run(tmp_path / "fresh", init_from=str(tmp_path / "nowhere"))
  (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
  with pytest.raises(InputError, match="no complete checkpoint there"):
    load_model(str(tmp_path / "empty"), toy.mesh)


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"metadata": {"tree_fingerprint": "beef"}}, "tree_fingerprint feed, this run has beef"),
    ({"memory": MemoryConfig(rows=(2, 2), branching=2)}, "memory"),
    ({"rope_base": 10.0}, "anchor"),
  ],
)
def test_a_directory_of_another_run_is_not_resumed(toy, whole, changes, named):
  if "rope_base" in changes:
    changes = {"anchor": dataclasses.replace(toy.anchor, **changes)}
  with pytest.raises(InputError, match=named):
    toy.run(whole[0], steps=16, **changes)


def test_batches_that_end_early_are_an_error(toy, tmp_path):
  with pytest.raises(InputError, match="ended after step 3 of 12"):
    toy.run(tmp_path, batches=lambda start: (toy.random_batch(step) for step in range(3)))
