"""Whole runs: killed and resumed, started from another run's anchor, stopped by a loss that is not finite."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.models import AnchorConfig, MemoryConfig
from hiermem_jax.parallel import make_mesh
from hiermem_jax.training import OptimizerConfig
from hiermem_jax.training.checkpoint import CheckpointStore, load_model
from hiermem_jax.training.loop import train
from hiermem_jax.training.metrics import JsonlWriter

ANCHOR = AnchorConfig(num_layers=1, width=8, num_heads=1, head_dim=4, mlp_width=8, vocab_size=13, dtype="float32")
MEMORY = MemoryConfig(rows=(2, 1), branching=2)
OPTIMIZER = OptimizerConfig(peak_learning_rate=0.02, final_learning_rate=0.01, warmup_steps=2, weight_decay=0.01)
MESH = make_mesh(devices=jax.devices()[:1])


def random_batch(step):
  """The batch of a step, a function of its number alone."""
  rng = np.random.default_rng(step)
  inputs, targets = rng.integers(0, ANCHOR.vocab_size, (2, 6, 5)).astype(np.int32)
  return {
    "decoder_input_tokens": inputs,
    "decoder_target_tokens": targets,
    "decoder_segment_ids": np.ones((6, 5), np.int32),
    "decoder_positions": np.tile(np.arange(5, dtype=np.int32), (6, 1)),
    "decoder_loss_weights": np.ones((6, 5), np.float32),
    "memory_leaf": rng.integers(0, MEMORY.num_leaves, 6).astype(np.int32),
  }


def batches(start):
  step = start
  while True:
    step += 1
    yield random_batch(step)


def run(run_dir, **changes):
  settings = {
    "run_dir": str(run_dir),
    "anchor": ANCHOR,
    "memory": MEMORY,
    "optimizer": OPTIMIZER,
    "batches": batches,
    "steps": 12,
    "batch_size": 6,
    "mesh": MESH,
    "metadata": {"tree_fingerprint": "feed"},
    "open_writer": lambda start: JsonlWriter(f"{run_dir}/metrics.jsonl", start),
    "generic_probability": 0.3,
    "checkpoint_every": 4,
    "log_every": 1,
  }
  return train(**settings | changes)


def metrics(run_dir):
  """Lines of metrics.jsonl without the throughput, which is the clock's."""
  lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
  return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Directory, final state, last scalars and hooked steps of a run that nothing disturbed."""
  run_dir, hooked = tmp_path_factory.mktemp("whole"), []
  state, scalars = run(run_dir, hooks=[hooked.append])
  return run_dir, state, scalars, hooked


def test_undisturbed_run(whole):
  run_dir, state, scalars, hooked = whole
  lines = metrics(run_dir)
  assert [line["step"] for line in lines] == hooked == list(range(1, 13))
  assert int(state.step) == 12
  for line in lines:
    rate = float(OPTIMIZER.schedule(12)(line["step"] - 1))
    assert line["learning_rate"] == pytest.approx(rate)
    assert line["tokens"] == 30
  assert lines[-1]["loss"] == scalars["loss"]
  assert np.mean([line["loss"] for line in lines[-3:]]) < np.mean([line["loss"] for line in lines[:3]])
  assert sorted(int(entry.name) for entry in (run_dir / "checkpoints").iterdir()) == [8, 12]  # keeps two


def test_checkpoint_holds_the_final_model(whole):
  run_dir, state, _, _ = whole
  model = load_model(str(run_dir), MESH)
  assert (model.anchor, model.memory) == (ANCHOR, MEMORY)
  assert model.metadata["step"] == 12
  assert model.metadata["tree_fingerprint"] == "feed"
  assert_equal(model.params, state.params)


@pytest.mark.parametrize("killed_before", [5, 7])
def test_killed_and_resumed_equals_undisturbed(whole, tmp_path, killed_before):
  """Killed right after a checkpoint or between two: afterwards every bit and every line is as it would have been."""

  def until_killed(start):
    for step in range(start + 1, killed_before):
      yield random_batch(step)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, batches=until_killed)
  with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
    file.write('{"step": 9, "lo')  # a line that the kill cut short
  starts = []

  def resumed(start):
    starts.append(start)
    return batches(start)

  state, _ = run(tmp_path, batches=resumed)
  assert starts == [4]
  assert_equal(state, whole[1])
  assert metrics(tmp_path) == metrics(whole[0])


def test_finished_run_is_left_alone(whole):
  """Also when what it once started from is gone."""
  run_dir, state, _, _ = whole
  before = metrics(run_dir)
  again, scalars = run(run_dir, init_from="/nowhere")
  assert scalars == {}
  assert_equal(again, state)
  assert metrics(run_dir) == before


def test_starts_from_another_runs_anchor(whole, tmp_path):
  """The anchor is taken over; bank and optimizer are fresh. The first step has rate zero, so it shows the start."""
  source, target = tmp_path / "source", tmp_path / "target"
  alone, _ = run(source, memory=None, steps=3)
  assert alone.params.keys() == {"anchor"}
  assert load_model(str(source), MESH).memory is None

  def one_batch(start):
    yield random_batch(start + 1)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(target, init_from=str(source), batches=one_batch, checkpoint_every=1)
  store = CheckpointStore(str(target))
  state = store.restore(whole[1])
  store.close()
  assert_equal(state.params["anchor"], alone.params["anchor"])
  for level, neurons in ((1, 2), (2, 1)):
    table = np.asarray(state.params["bank"][f"level_{level}"]).reshape(2**level + 1, neurons, 3, 8)
    assert (table[:, :, :2] != 0).all()
    np.testing.assert_array_equal(table[:, :, 2], 0)  # M3 of a fresh bank
  counts = [int(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == np.int32]
  assert counts == [1] * len(counts)  # not 3 + 1
  assert counts


def test_starting_points_that_do_not_fit(whole, tmp_path):
  other = dataclasses.replace(ANCHOR, rope_base=50.0)  # of the same sizes
  with pytest.raises(InputError, match="its anchor is .*rope_base=100000.0.* this run's is .*rope_base=50.0"):
    run(tmp_path / "other", anchor=other, init_from=str(whole[0]))
  with pytest.raises(InputError, match="no checkpoint there"):
    run(tmp_path / "fresh", init_from=str(tmp_path / "nowhere"))
  (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
  with pytest.raises(InputError, match="no complete checkpoint there"):
    load_model(str(tmp_path / "empty"), MESH)


@pytest.mark.parametrize(("log_every", "checkpoint_every"), [(1, 2), (100, 1)])
def test_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, log_every, checkpoint_every):
  """A step without a single token has no mean loss. Whether it is logged or not, no checkpoint may follow it."""

  def poisoned(start):
    for batch in batches(start):
      start += 1
      yield batch | ({"decoder_loss_weights": np.zeros((6, 5), np.float32)} if start == 3 else {})

  with pytest.raises(FloatingPointError, match="step 3: loss is nan"):
    run(tmp_path, batches=poisoned, checkpoint_every=checkpoint_every, log_every=log_every)
  store = CheckpointStore(str(tmp_path))
  assert store.latest_step == 2
  store.close()


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"metadata": {"tree_fingerprint": "beef"}}, "tree_fingerprint feed, this run has beef"),
    ({"memory": MemoryConfig(rows=(2, 2), branching=2)}, "memory"),
    ({"anchor": dataclasses.replace(ANCHOR, rope_base=10.0)}, "anchor"),
  ],
)
def test_a_directory_of_another_run_is_not_resumed(whole, changes, named):
  with pytest.raises(InputError, match=named):
    run(whole[0], steps=16, **changes)


def test_batches_that_end_early_are_an_error(tmp_path):
  with pytest.raises(InputError, match="ended after step 3 of 12"):
    run(tmp_path, batches=lambda start: (random_batch(step) for step in range(3)))
