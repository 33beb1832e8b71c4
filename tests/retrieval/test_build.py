"""How a tree is built: one node's split, and the levels in turn, against enumeration and hand-made cases."""

import dataclasses
import json

import numpy as np
import pytest
from absl import logging as absl_logging

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval import build as build_module
from hiermem_jax.retrieval.build import TreeConfig, build_tree, level_report, split_node

CONFIG = TreeConfig(branching=4, depth=3, batch_size=100, seed=7)


def build(examples, keys=None, **config):
  return build_tree(examples, keys, config=dataclasses.replace(CONFIG, **config), encoder_fingerprint="abc")


def _split(examples, keys, *, level=2, node=3, parent=None, **config):
  parent = np.zeros(examples.shape[1], np.float32) if parent is None else parent
  config = TreeConfig(**{"branching": 4, "steps": 3, "batch_size": 50, "seed": 5} | config)
  return split_node(examples, keys, parent=parent, level=level, node=node, config=config)


def test_a_split_is_a_function_of_the_set_of_examples(examples):
  rng = np.random.default_rng(1)
  keys = rng.integers(2**64, size=len(examples), dtype=np.uint64)
  expected = _split(examples, keys)
  assert expected.shape == (4, 8) and expected.dtype == np.float32
  order = rng.permutation(len(examples))
  np.testing.assert_array_equal(_split(examples[order], keys[order]), expected)
  # Examples of larger keys than the 150 that the steps can see may be left out.
  used = rng.permutation(np.argsort(keys)[:150])
  np.testing.assert_array_equal(_split(examples[used], keys[used]), expected)
  assert not np.array_equal(_split(examples[used[1:]], keys[used[1:]]), expected)
  # Only the order of the keys counts.
  ranks = np.argsort(np.argsort(keys)).astype(np.uint64)
  np.testing.assert_array_equal(_split(examples, ranks), expected)
  half = examples.astype(np.float16)
  np.testing.assert_array_equal(_split(half, keys), _split(half.astype(np.float32), keys))
  changes = ({"level": 1}, {"node": 2}, {"seed": 6}, {"steps": 2}, {"batch_size": 40}, {"balance": 1.0})
  for change in changes:
    assert not np.array_equal(_split(examples, keys, **change), expected), change


def test_few_examples_are_children_in_the_order_of_their_keys(examples):
  keys = np.array([2**63 + 7, 5, 2**64 - 1], np.uint64)
  first = examples[1], examples[0], examples[2]
  np.testing.assert_array_equal(_split(examples[:3], keys), [*first, first[0]])
  parent = np.arange(8, dtype=np.float32)
  np.testing.assert_array_equal(_split(examples[:0], keys[:0], parent=parent), [parent] * 4)


def test_keys_that_do_not_order_the_examples(examples):
  keys = np.arange(len(examples), dtype=np.uint64)
  with pytest.raises(ValueError, match="one uint64 for each"):
    _split(examples, keys.astype(np.int64))
  with pytest.raises(ValueError, match="one uint64 for each"):
    _split(examples, keys[1:])
  with pytest.raises(ValueError, match="have the same key"):
    _split(examples, keys // np.uint64(2))


def test_a_tree_depends_on_the_pairs_of_example_and_key_only(examples):
  rng = np.random.default_rng(4)
  keys = rng.integers(2**64, size=len(examples), dtype=np.uint64)
  order = rng.permutation(len(examples))
  one, other = (build(examples[i], keys[i], batch_size=30, steps=5) for i in (slice(None), order))
  assert one.fingerprint == other.fingerprint


def test_a_tree_grown_node_by_node_from_scattered_parts_is_the_same(examples):
  rng = np.random.default_rng(5)
  keys = rng.integers(2**64, size=len(examples), dtype=np.uint64)
  config = TreeConfig(branching=3, depth=3, steps=4, batch_size=40, seed=2)
  expected = build_tree(examples, keys, config=config, encoder_fingerprint="abc")
  parts = np.array_split(rng.permutation(len(examples)), 7)
  levels = []
  for level in range(1, 4):
    above = dataclasses.replace(expected, centroids=tuple(levels)) if levels else None
    nodes = [above.assign(examples[part]) if above else np.zeros(len(part), int) for part in parts]
    children = []
    for node in rng.permutation(3 ** (level - 1)):
      inside = np.concatenate([part[at == node] for part, at in zip(parts, nodes)])
      parent = levels[-1][node] if levels else np.zeros(8, np.float32)
      split = split_node(examples[inside], keys[inside], parent=parent, level=level, node=int(node), config=config)
      children.append((node, split))
    levels.append(np.concatenate([found for _, found in sorted(children, key=lambda child: child[0])]))
  for found, level in zip(levels, expected.centroids):
    assert found.tobytes() == level.tobytes()


def test_level_report():
  sizes = np.array([5, 0, 1, 10, 2, 0, 0, 0, 3])
  assert level_report(sizes, 3) == {
    "clusters": 9,
    "empty": 4,
    "min": 0,
    "median": 1.0,
    "max": 10,
    "mean": 21 / 9,
    "largest_over_mean": 10 / (21 / 9),
    "small_nodes": 0,
  }
  assert level_report(sizes[[0, 1, 2, 3, 4, 5, 6, 7, 1]], 3)["small_nodes"] == 1
  json.dumps(level_report(sizes, 3))


def test_every_node_is_trained_on_its_own_examples_only(examples, built, monkeypatch):
  calls = []
  real = build_module.balanced_kmeans

  def spy(embeddings, num_clusters, **kwargs):
    calls.append((embeddings, kwargs["seed"]))
    return real(embeddings, num_clusters, **kwargs)

  monkeypatch.setattr(build_module, "balanced_kmeans", spy)
  again = build(examples, depth=2)
  assert len(calls) == 1 + 4
  level_1 = again.ancestors(again.assign(examples))[:, 0]

  def as_set(rows):
    return rows[np.lexsort(rows.T)]

  np.testing.assert_array_equal(as_set(calls[0][0]), as_set(examples))
  for node in range(4):
    np.testing.assert_array_equal(as_set(calls[1 + node][0]), as_set(examples[level_1 == node]))
  assert len({seed for _, seed in calls}) == 5
  # A tree of fewer levels is the top of a deeper one: no node's randomness depends on another's.
  for shallow, deep in zip(again.centroids, built.centroids):
    np.testing.assert_array_equal(shallow, deep)


def test_a_nodes_examples_are_sampled_down_to_what_its_steps_can_see(examples, monkeypatch):
  sizes = []
  real = build_module.balanced_kmeans
  monkeypatch.setattr(
    build_module, "balanced_kmeans", lambda x, *args, **kwargs: (sizes.append(len(x)), real(x, *args, **kwargs))[1]
  )
  build(examples, branching=2, depth=1, steps=3, batch_size=50)
  assert sizes == [150]


def test_children_are_near_the_means_of_their_examples(examples, built):
  paths = built.ancestors(built.assign(examples))
  for level in (0, 1):
    for node in np.unique(paths[:, level]):
      members = examples[paths[:, level] == node]
      if len(members) > 20:
        assert np.linalg.norm(built.centroids[level][node] - members.mean(0)) < 0.25


def test_deterministic_and_seeded(examples, built):
  again, other = build(examples), build(examples, seed=8)
  assert again.fingerprint == built.fingerprint != other.fingerprint


def _ranks(members, children):
  """Where each member is among the children, which hold all of them."""
  return [int((children == row).all(axis=1).argmax()) for row in members]


def test_small_nodes_repeat_a_child_and_are_reported(monkeypatch):
  # 12 of 16 examples on one side: the other side's two nodes get two examples each at most.
  rng = np.random.default_rng(0)
  x = np.concatenate([rng.standard_normal((14, 4)) + 20, rng.standard_normal((2, 4)) - 20])
  x = x.astype(np.float32)
  lines = []
  monkeypatch.setattr(absl_logging, "info", lambda text, *args: lines.append(text % args))
  tree = build(x, depth=2, batch_size=6400, balance=None, seed=0)
  assert tree.num_leaves == 16 and all(np.isfinite(level).all() for level in tree.centroids)
  paths = tree.ancestors(tree.assign(x))
  small = 0
  for node in range(4):
    members = x[paths[:, 0] == node]
    children = tree.centroids[1][node * 4 : node * 4 + 4]
    if len(members) < 4:
      small += 1
      members = members[np.argsort(_ranks(members, children))]
      expected = members if len(members) else tree.centroids[0][node : node + 1]
      np.testing.assert_array_equal(children[: len(expected)], expected)
      np.testing.assert_array_equal(children[len(expected) :], np.tile(expected[:1], (4 - len(expected), 1)))
      assert not np.isin(node * 4 + np.arange(len(expected), 4), paths[:, 1]).any()
  assert small > 0
  assert lines[1].startswith("level 2/2 in 0 s: ") and f"'small_nodes': {small}" in lines[1]


def test_an_empty_node_passes_its_centroid_on():
  tree = build(np.ones((30, 3), np.float32), branching=3)
  for level in tree.centroids:
    np.testing.assert_array_equal(level, np.ones_like(level))
  assert set(tree.assign(np.ones((2, 3), np.float32))) == {0}


def test_too_few_examples_names_both_numbers_and_the_remedy():
  with pytest.raises(InputError) as caught:
    build_tree(np.ones((1000, 4), np.float32), config=TreeConfig(), encoder_fingerprint="")
  message = str(caught.value)
  assert (
    "1000 documents" in message and "65536" in message and "lower TreeConfig.depth or TreeConfig.branching" in message
  )
  assert "\n" not in message


@pytest.mark.parametrize(
  "name, value, least",
  [
    ("branching", 1, 2),
    ("depth", 0, 1),
    ("steps", 0, 1),
    ("batch_size", 15, 16),
    ("balance", 0.99, 1),
    ("seed", -1, 0),
  ],
)
def test_settings_out_of_range(name, value, least):
  with pytest.raises(InputError, match=f"TreeConfig.{name} = {value}: give at least {least}"):
    TreeConfig(**{name: value})
  TreeConfig(**{name: least})


def test_defaults_are_the_papers():
  config = TreeConfig()
  assert config.num_leaves == 65536
  assert config.balance / config.branching == pytest.approx(0.094, abs=5e-4)  # largest share of a batch, Appendix C
