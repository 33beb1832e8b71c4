"""The cluster tree against plain numpy loops, and its life on disk."""

import dataclasses
import json

import numpy as np
import pytest
from absl import logging as absl_logging

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval import tree as tree_module
from hiermem_jax.retrieval.tree import ClusterTree, build_tree, level_report, split_node


def _unit(x):
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _random_tree(rng, branching=3, depth=3, width=5):
  centroids = tuple(rng.standard_normal((branching**k, width)).astype(np.float32) for k in range(1, depth + 1))
  return ClusterTree(centroids=centroids, branching=branching, encoder_fingerprint="e" * 16)


def _brute_force_path(tree, x):
  """Greedy descent in loops: the node on each level."""
  path, node = [], 0
  for centroids in tree.centroids:
    best, best_distance = None, np.inf
    for child in range(node * tree.branching, (node + 1) * tree.branching):
      distance = sum((float(a) - float(b)) ** 2 for a, b in zip(x, centroids[child]))
      if distance < best_distance:
        best, best_distance = child, distance
    path.append(best)
    node = best
  return path


@pytest.fixture(scope="module")
def examples():
  rng = np.random.default_rng(0)
  topics = rng.standard_normal((12, 8))
  return _unit(topics[rng.integers(12, size=600)] + 0.4 * rng.standard_normal((600, 8)))


@pytest.fixture(scope="module")
def built(examples):
  return build_tree(examples, branching=4, depth=3, batch_size=100, encoder_fingerprint="abc", seed=7)


def test_assign_and_ancestors_agree_with_brute_force(examples, built):
  for tree, x in [
    (built, examples[:300]),
    (_random_tree(np.random.default_rng(1)), np.random.default_rng(2).standard_normal((40, 5))),
  ]:
    leaves = tree.assign(x.astype(np.float32))
    assert leaves.dtype == np.int32 and leaves.shape == (len(x),)
    paths = tree.ancestors(leaves)
    assert paths.dtype == np.int32
    np.testing.assert_array_equal(paths, [_brute_force_path(tree, row) for row in x.astype(np.float32)])


def test_leaf_counts_and_nested_ids_of_the_papers_tree():
  width_one = tuple(np.zeros((16**k, 1), np.float32) for k in range(1, 5))
  tree = ClusterTree(centroids=width_one, branching=16, encoder_fingerprint="")
  assert [len(level) for level in tree.centroids] == [16, 256, 4096, 65536]
  assert (tree.depth, tree.num_leaves) == (4, 65536)
  leaves = np.random.default_rng(0).integers(65536, size=(5, 7))
  paths = tree.ancestors(leaves)
  assert paths.shape == (5, 7, 4)
  np.testing.assert_array_equal(paths[..., -1], leaves)
  for k in range(1, 4):
    np.testing.assert_array_equal(paths[..., k - 1], paths[..., k] // 16)
  np.testing.assert_array_equal(tree.ancestors(65535), [15, 255, 4095, 65535])
  assert tree.ancestors(0).shape == (4,)


def test_ties_go_to_the_first_child():
  tree = ClusterTree(
    centroids=(np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32)),
    branching=2,
    encoder_fingerprint="",
  )
  np.testing.assert_array_equal(tree.assign(np.ones((3, 3), np.float32)), [0, 0, 0])


def test_a_leaf_does_not_depend_on_the_other_examples(monkeypatch):
  rng = np.random.default_rng(3)
  tree = _random_tree(rng, branching=2, depth=3, width=7)
  x = rng.standard_normal((600, 7)).astype(np.float32)
  whole = tree.assign(x)
  for size in (0, 1, 255, 256, 257):
    np.testing.assert_array_equal(tree.assign(x[:size]), whole[:size])
  order = rng.permutation(600)
  np.testing.assert_array_equal(tree.assign(x[order]), whole[order])
  monkeypatch.setattr(tree_module, "_ASSIGN_CHUNK", 64)
  np.testing.assert_array_equal(tree.assign(x), whole)
  half = x.astype(np.float16)
  np.testing.assert_array_equal(tree.assign(half), tree.assign(half.astype(np.float32)))


def test_a_tree_of_the_first_levels_finds_the_ancestors(examples, built):
  top = dataclasses.replace(built, centroids=built.centroids[:2])
  np.testing.assert_array_equal(top.assign(examples), built.ancestors(built.assign(examples))[:, 1])


def _split(examples, keys, **change):
  arguments = {"level": 2, "node": 3, "branching": 4, "steps": 3, "batch_size": 50, "balance": 1.5, "seed": 5}
  return split_node(examples, keys, parent=np.zeros(examples.shape[1], np.float32), **(arguments | change))


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
  for change in ({"level": 1}, {"node": 2}, {"seed": 6}):
    assert not np.array_equal(_split(examples, keys, **change), expected)


def test_few_examples_are_children_in_the_order_of_their_keys(examples):
  keys = np.array([2**63 + 7, 5, 2**64 - 1], np.uint64)
  first = examples[1], examples[0], examples[2]
  np.testing.assert_array_equal(_split(examples[:3], keys), [*first, first[0]])
  parent = np.arange(8, dtype=np.float32)
  none = split_node(examples[:0], keys[:0], parent=parent, level=1, node=0, branching=3)
  np.testing.assert_array_equal(none, [parent] * 3)


def test_keys_that_do_not_order_the_examples(examples):
  keys = np.arange(len(examples), dtype=np.uint64)
  with pytest.raises(ValueError, match="one uint64 for each"):
    _split(examples, keys.astype(np.int64))
  with pytest.raises(ValueError, match="one uint64 for each"):
    _split(examples, keys[1:])
  with pytest.raises(ValueError, match="share a key"):
    _split(examples, keys // np.uint64(2))


def test_a_tree_depends_on_the_pairs_of_example_and_key_only(examples):
  rng = np.random.default_rng(4)
  keys = rng.integers(2**64, size=len(examples), dtype=np.uint64)
  order = rng.permutation(len(examples))
  one, other = (
    build_tree(examples[rows], keys[rows], branching=4, depth=3, batch_size=30, steps=5, encoder_fingerprint="abc")
    for rows in (slice(None), order)
  )
  assert one.fingerprint == other.fingerprint


def test_a_tree_grown_node_by_node_from_scattered_parts_is_the_same(examples):
  rng = np.random.default_rng(5)
  keys = rng.integers(2**64, size=len(examples), dtype=np.uint64)
  settings = {"branching": 3, "steps": 4, "batch_size": 40, "balance": 1.5, "seed": 2}
  expected = build_tree(examples, keys, depth=3, encoder_fingerprint="abc", **settings)
  parts = np.array_split(rng.permutation(len(examples)), 7)
  levels = []
  for level in range(1, 4):
    above = dataclasses.replace(expected, centroids=tuple(levels)) if levels else None
    nodes = [above.assign(examples[part]) if above else np.zeros(len(part), int) for part in parts]
    children = []
    for node in rng.permutation(3 ** (level - 1)):
      rows = np.concatenate([part[at == node] for part, at in zip(parts, nodes)])
      parent = levels[-1][node] if levels else np.zeros(8, np.float32)
      children.append(
        (node, split_node(examples[rows], keys[rows], parent=parent, level=level, node=int(node), **settings))
      )
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
  real = tree_module.balanced_kmeans

  def spy(embeddings, num_clusters, **kwargs):
    calls.append((embeddings, kwargs["seed"]))
    return real(embeddings, num_clusters, **kwargs)

  monkeypatch.setattr(tree_module, "balanced_kmeans", spy)
  again = build_tree(examples, branching=4, depth=2, batch_size=100, encoder_fingerprint="abc", seed=7)
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
  real = tree_module.balanced_kmeans
  monkeypatch.setattr(
    tree_module, "balanced_kmeans", lambda x, *args, **kwargs: (sizes.append(len(x)), real(x, *args, **kwargs))[1]
  )
  build_tree(examples, branching=2, depth=1, steps=3, batch_size=50, encoder_fingerprint="")
  assert sizes == [150]


def test_children_are_near_the_means_of_their_examples(examples, built):
  paths = built.ancestors(built.assign(examples))
  for level in (0, 1):
    for node in np.unique(paths[:, level]):
      members = examples[paths[:, level] == node]
      if len(members) > 20:
        assert np.linalg.norm(built.centroids[level][node] - members.mean(0)) < 0.25


def test_deterministic_and_seeded(examples, built):
  again = build_tree(examples, branching=4, depth=3, batch_size=100, encoder_fingerprint="abc", seed=7)
  other = build_tree(examples, branching=4, depth=3, batch_size=100, encoder_fingerprint="abc", seed=8)
  assert again.fingerprint == built.fingerprint != other.fingerprint


def test_fingerprint_covers_everything():
  tree = _random_tree(np.random.default_rng(0))
  changed = [level.copy() for level in tree.centroids]
  changed[1][4, 2] = np.nextafter(changed[1][4, 2], np.float32(9))
  variants = [
    dataclasses.replace(tree, centroids=tuple(changed)),
    dataclasses.replace(tree, centroids=tree.centroids[:2]),
    dataclasses.replace(tree, encoder_fingerprint="f" * 16),
  ]
  assert len({tree.fingerprint, *(v.fingerprint for v in variants)}) == 4
  assert len(tree.fingerprint) == 16


def test_save_and_load(built, examples, tmp_path):
  built.save(str(tmp_path / "tree"))
  loaded = ClusterTree.load(str(tmp_path / "tree"))
  assert loaded.fingerprint == built.fingerprint
  assert loaded.encoder_fingerprint == "abc" and loaded.branching == 4 and loaded.depth == 3
  np.testing.assert_array_equal(loaded.assign(examples), built.assign(examples))


@pytest.mark.parametrize("name", ["tree.npz", "tree.json"])
def test_damaged_or_missing_files(built, tmp_path, name):
  built.save(str(tmp_path))
  path = tmp_path / name
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(InputError, match=name):
    ClusterTree.load(str(tmp_path))
  path.unlink()
  with pytest.raises(InputError, match=name):
    ClusterTree.load(str(tmp_path))


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
  tree = build_tree(x, branching=4, depth=2, balance=None, encoder_fingerprint="", seed=0)
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
  tree = build_tree(np.ones((30, 3), np.float32), branching=3, depth=3, encoder_fingerprint="")
  for level in tree.centroids:
    np.testing.assert_array_equal(level, np.ones_like(level))
  assert set(tree.assign(np.ones((2, 3), np.float32))) == {0}


def test_too_few_examples_names_both_numbers_and_the_remedy():
  with pytest.raises(InputError) as caught:
    build_tree(np.ones((1000, 4), np.float32), encoder_fingerprint="")
  message = str(caught.value)
  assert "1000 documents" in message and "65536" in message and "lower depth or branching" in message
  assert "\n" not in message


@pytest.mark.parametrize("setting", [{"branching": 1}, {"depth": 0}])
def test_settings_out_of_range(setting):
  with pytest.raises(InputError, match="branching >= 2 and depth >= 1"):
    build_tree(np.ones((10, 4), np.float32), encoder_fingerprint="", **setting)


def test_wrong_shapes_are_a_programmers_error():
  with pytest.raises(ValueError, match="branching"):
    ClusterTree(centroids=(np.zeros((4, 3), np.float32),), branching=2, encoder_fingerprint="")
  with pytest.raises(ValueError, match="branching"):
    ClusterTree(centroids=(), branching=2, encoder_fingerprint="")
  with pytest.raises(ValueError, match="float32"):
    ClusterTree(centroids=(np.zeros((2, 3)),), branching=2, encoder_fingerprint="")
