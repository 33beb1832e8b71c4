"""What a run trains, and where it starts: the frozen anchor, parts of a bank, banks of other runs."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.models import MemoryConfig, ModelConfig
from hiermem_jax.models.model import init_params
from hiermem_jax.training import OptimizerConfig
from hiermem_jax.training.checkpoint import CheckpointStore, load_model
from hiermem_jax.training.merge import merge_parts


@pytest.fixture(scope="module")
def pretrained(toy, tmp_path_factory):
  """Directory and state of a run of the anchor alone."""
  run_dir = tmp_path_factory.mktemp("pretrained")
  state, _ = toy.run(run_dir, memory=None, steps=4)
  return str(run_dir), state


def below(toy, part):
  """Batches whose sequences are all below one level-1 cluster."""
  size = toy.memory.num_leaves // toy.memory.branching

  def batches(start):
    for step in itertools.count(start + 1):
      batch = toy.random_batch(1000 * part + step)
      yield batch | {"memory_leaf": batch["memory_leaf"] % size + part * size}

  return batches


def test_frozen_anchor_stays_bit_for_bit(toy, pretrained, tmp_path):
  state, scalars = toy.run(tmp_path, init_from=pretrained[0], frozen_anchor=True)
  toy.assert_equal(state.params["anchor"], pretrained[1].params["anchor"])
  assert all((np.asarray(table) != 0).any() for table in state.params["bank"].values())
  moments = [x for x in jax.tree.leaves(state.opt_state["anchor"]) if x.ndim]
  assert not moments
  assert "grad_norm/anchor" not in scalars and scalars["grad_norm/level_1"] > 0
  again, _ = toy.run(tmp_path, init_from=pretrained[0], frozen_anchor=True)  # restores its own optimizer state
  toy.assert_equal(again, state)


def test_frozen_anchor_trains_the_bank_as_the_whole_model_would(toy, pretrained, tmp_path):
  """The gradient of the rows is that of co-training: one step from the same start moves the bank alike."""
  no_clip = dataclasses.replace(toy.optimizer, clip_norm=1e9, warmup_steps=0)
  kwargs = {"init_from": pretrained[0], "steps": 1, "optimizer": no_clip}
  both, _ = toy.run(tmp_path / "both", **kwargs)
  frozen, _ = toy.run(tmp_path / "frozen", **kwargs, frozen_anchor=True)
  for name, table in both.params["bank"].items():
    np.testing.assert_allclose(frozen.params["bank"][name], table, atol=1e-6)


@pytest.mark.parametrize("changes", [{"memory": None}, {"init_from": None}])
def test_frozen_anchor_without_what_it_needs(toy, pretrained, tmp_path, changes):
  (name,) = changes
  owner = "ModelConfig" if name == "memory" else "train"
  with pytest.raises(InputError, match=f"frozen_anchor = True, {owner}.{name} = None.*bind {owner}.{name}"):
    toy.run(tmp_path, **{"init_from": pretrained[0], "frozen_anchor": True} | changes)


STANDSTILL = OptimizerConfig(peak_learning_rate=1e-30, final_learning_rate=1e-30, warmup_steps=0, weight_decay=0.0)


def same(a, b):
  """Equal but for one step at the rate of STANDSTILL."""
  np.testing.assert_allclose(a, b, rtol=0, atol=1e-29)


def test_subtree_jobs_merged_equal_one_run_fed_in_turn(toy, pretrained, tmp_path):
  """Paper, section 6.4: with a frozen anchor the loss falls apart by level-1 subtree. Rate constant, no clipping."""
  optimizer = dataclasses.replace(
    toy.optimizer, clip_norm=1e9, bank_update="lazy", final_learning_rate=0.02, warmup_steps=0
  )
  common = {"init_from": pretrained[0], "frozen_anchor": True, "generic_probability": 0.0, "optimizer": optimizer}
  whole, _ = toy.run(
    tmp_path / "whole",
    **common,
    steps=8,
    batches=lambda start: (below(toy, step % 2)(step // 2).__next__() for step in itertools.count(start)),
  )
  for part in range(2):
    memory = dataclasses.replace(toy.memory, part=part)
    state, _ = toy.run(tmp_path / f"subtree_{part}", **common, memory=memory, steps=4, batches=below(toy, part))
    assert state.params["bank"]["level_1"].shape[0] == 2 and state.params["bank"]["level_2"].shape[0] == 3
  generic, _ = toy.run(
    tmp_path / "generic",
    **common | {"generic_probability": 1.0},
    memory=dataclasses.replace(toy.memory, part="generic"),
    steps=4,
  )
  subtrees = [str(tmp_path / f"subtree_{part}") for part in (1, 0)]
  rules = toy.rules
  merge_parts(subtrees, str(tmp_path / "generic"), str(tmp_path / "merged"), toy.mesh, rules)
  merged = load_model(str(tmp_path / "merged"), toy.mesh)
  assert merged.memory == toy.memory and merged.metadata["tree_fingerprint"] == "feed"
  toy.assert_equal(merged.params["anchor"], pretrained[1].params["anchor"])
  for name, table in whole.params["bank"].items():
    np.testing.assert_allclose(merged.params["bank"][name][:-1], table[:-1], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(merged.params["bank"][name][-1], generic.params["bank"][name][-1])
    assert (np.asarray(generic.params["bank"][name][-1]) != np.asarray(table[-1])).any()

  with pytest.raises(InputError, match="merged: has a checkpoint already"):
    merge_parts(subtrees, None, str(tmp_path / "merged"), toy.mesh, rules)
  with pytest.raises(InputError, match=r"level-1 clusters \[0\] are missing beside \[1\]"):
    merge_parts(subtrees[:1], None, str(tmp_path / "other"), toy.mesh, rules)
  for arguments, setting in ((([str(tmp_path / "x")], None), "subtrees"), ((subtrees, str(tmp_path / "x")), "generic")):
    with pytest.raises(InputError, match=f"x: no checkpoint there .*; train it first or bind merge.{setting}"):
      merge_parts(*arguments, str(tmp_path / "other"), toy.mesh, rules)
  with pytest.raises(InputError, match="subtree_1/: has level-1 cluster 1, and so has .*subtree_1"):
    merge_parts([subtrees[0], subtrees[0] + "/"], None, str(tmp_path / "other"), toy.mesh, rules)
  with pytest.raises(InputError, match="whole: its bank's part is 'all', not a level-1 cluster"):
    merge_parts([str(tmp_path / "whole"), *subtrees], None, str(tmp_path / "other"), toy.mesh, rules)
  with pytest.raises(InputError, match="its bank's part is 1, not 'generic'"):
    merge_parts(subtrees, subtrees[0], str(tmp_path / "other"), toy.mesh, rules)
  assert not (tmp_path / "other").exists()

  with pytest.raises(InputError, match="parameters alone, which cannot be resumed"):
    toy.run(tmp_path / "merged", steps=16)
  source = str(tmp_path / "merged")
  state, _ = toy.run(tmp_path / "on", init_from=source, init_bank_from=source, steps=1, optimizer=STANDSTILL)
  jax.tree.map(same, state.params, merged.params)


def test_parts_of_other_anchors_are_not_merged(toy, pretrained, tmp_path):
  common = {"frozen_anchor": True, "steps": 1, "optimizer": dataclasses.replace(toy.optimizer, warmup_steps=0)}
  toy.run(tmp_path / "anchor", memory=None, steps=4, seed=1)
  for part, source in enumerate((pretrained[0], str(tmp_path / "anchor"))):
    memory = dataclasses.replace(toy.memory, part=part)
    toy.run(tmp_path / str(part), **common, memory=memory, init_from=source, batches=below(toy, part))
  with pytest.raises(InputError, match=r"has anchor \(digest\) .*, 1 has .*beside one frozen anchor"):
    merge_parts([str(tmp_path / "0"), str(tmp_path / "1")], None, str(tmp_path / "out"), toy.mesh, toy.rules)


def test_parts_that_differ_are_not_merged(toy, tmp_path):
  """Of another tree, of other sizes, beside another anchor; parts of different steps are merged, and that is noted."""

  def saved(name, part, step=1, tree="feed", rows=(2, 1), **anchor):
    config = ModelConfig(
      anchor=dataclasses.replace(toy.anchor, **anchor), memory=dataclasses.replace(toy.memory, part=part, rows=rows)
    )
    store = CheckpointStore(str(tmp_path / name))
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(jax.random.key(0), config)))
    params = jax.tree.map(lambda x: jax.device_put(np.ones(x.shape, x.dtype)), shapes)
    store.save_model(step, params, config.to_json() | {"tree_fingerprint": tree})
    store.close()
    return str(tmp_path / name)

  def merge(*sources):
    merge_parts(sources, None, str(tmp_path / "out"), toy.mesh, toy.rules)
    return load_model(str(tmp_path / "out"), toy.mesh).metadata

  first, second = saved("first", 0, step=1), saved("second", 1, step=2)
  for other, named in (
    (saved("tree", 1, tree="beef"), "has tree feed, tree has beef"),
    (saved("rows", 1, rows=(2, 2)), "has bank MemoryConfig.*, rows has MemoryConfig"),
    (saved("how", 1, logits_chunk=1), "has anchor configuration AnchorConfig.*, how has"),
  ):
    with pytest.raises(InputError, match=f"{named}.*; parts of one bank are trained beside one frozen anchor"):
      merge(first, other)
  metadata = merge(first, second)
  assert metadata["step"] == 2 and metadata["merged"] == {first: 1, second: 2}


def test_a_level_is_added_to_a_trained_bank(toy, whole, tmp_path):
  """As from (256, 64, 16, 0) to (256, 64, 16, 4): the old levels go on, the new one starts afresh."""
  first, _ = toy.run(tmp_path / "first", memory=MemoryConfig(rows=(2, 0), branching=2), steps=4)
  kwargs = {"steps": 1, "optimizer": STANDSTILL}
  state, _ = toy.run(tmp_path / "second", init_bank_from=str(tmp_path / "first"), **kwargs)
  same(state.params["bank"]["level_1"], first.params["bank"]["level_1"])
  fresh, _ = toy.run(tmp_path / "fresh", **kwargs)
  same(state.params["bank"]["level_2"], fresh.params["bank"]["level_2"])


@pytest.mark.parametrize(
  "changes, match",
  [
    ({"memory": MemoryConfig(rows=(2, 2), branching=2)}, r"rows of level_2 1 \(rows \(2, 1\)\), this run's has 2"),
    ({"memory": MemoryConfig(rows=(2, 0), branching=2)}, r"rows of level_2 1 .* this run's has 0 \(rows \(2, 0\)\)"),
    ({"memory": MemoryConfig(rows=(2, 1), branching=3)}, "its bank has branching 2 .* this run's has 3"),
    ({"memory": None}, "its bank is MemoryConfig.*, this run's None; both must have one"),
    ({"metadata": {"tree_fingerprint": "beef"}}, "its bank is of the tree feed, this run's dataset of beef"),
  ],
)
def test_banks_that_do_not_fit(toy, whole, tmp_path, changes, match):
  with pytest.raises(InputError, match=match):
    toy.run(tmp_path, init_bank_from=str(whole[0]), **changes)
  assert CheckpointStore(str(tmp_path)).latest_step is None


def test_constant_rate():
  """The ratio study's (paper, Appendix A.7): equal first and last rate after the warmup."""
  optimizer = OptimizerConfig(peak_learning_rate=1e-4, final_learning_rate=1e-4, warmup_steps=5, weight_decay=1e-3)
  rates = [float(optimizer.schedule(50)(step)) for step in range(51)]
  np.testing.assert_allclose(rates[5:], 1e-4, rtol=1e-6)
  np.testing.assert_allclose(rates[:5], [2e-5, 4e-5, 6e-5, 8e-5, 1e-4], rtol=1e-6)
