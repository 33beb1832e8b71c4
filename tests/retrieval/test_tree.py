"""The cluster tree against plain numpy loops, and its life on disk."""

import dataclasses

import jax
import numpy as np
import pytest
from absl import logging as absl_logging

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval import tree as tree_module
from hiermem_jax.retrieval.tree import ClusterTree, build_tree


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


def test_any_number_of_examples_one_compilation():
  rng = np.random.default_rng(3)
  tree = _random_tree(rng, branching=2, depth=2, width=7)
  x = rng.standard_normal((600, 7)).astype(np.float32)
  before = tree_module._descend._cache_size()
  whole = tree.assign(x)
  for size in (0, 1, 255, 256, 257):
    np.testing.assert_array_equal(tree.assign(x[:size]), whole[:size])
  assert tree_module._descend._cache_size() == before + 1


def test_products_stay_in_float32():
  tree = _random_tree(np.random.default_rng(0))
  levels = tuple(map(np.asarray, tree.centroids))
  text = tree_module._descend.lower(np.zeros((256, 5), np.float32), np.zeros(256, np.int32), levels, 3).as_text()
  assert "precision = [HIGHEST, HIGHEST]" in text and "bf16" not in text


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
  np.testing.assert_array_equal(calls[0][0], examples)
  for node in range(4):
    np.testing.assert_array_equal(calls[1 + node][0], examples[level_1 == node])
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


def test_small_nodes_repeat_a_child_and_are_reported(monkeypatch):
  # 12 of 16 examples on one side: the other side's two nodes get two examples each at most.
  rng = np.random.default_rng(0)
  x = np.concatenate([rng.standard_normal((14, 4)) + 20, rng.standard_normal((2, 4)) - 20])
  x = x.astype(np.float32)
  lines = []
  monkeypatch.setattr(absl_logging, "warning", lambda text, *args: lines.append(text % args))
  tree = build_tree(x, branching=4, depth=2, balance=None, encoder_fingerprint="", seed=0)
  assert tree.num_leaves == 16 and all(np.isfinite(level).all() for level in tree.centroids)
  paths = tree.ancestors(tree.assign(x))
  repeated = 0
  for node in range(4):
    members = x[paths[:, 0] == node]
    children = tree.centroids[1][node * 4 : node * 4 + 4]
    if len(members) < 4:
      repeated += 4 - len(members)
      expected = members if len(members) else tree.centroids[0][node : node + 1]
      np.testing.assert_array_equal(children[: len(expected)], expected)
      np.testing.assert_array_equal(children[len(expected) :], np.tile(expected[:1], (4 - len(expected), 1)))
      assert not np.isin(node * 4 + np.arange(len(expected), 4), paths[:, 1]).any()
  assert repeated > 0
  assert len(lines) == 1 and lines[0].startswith(f"{repeated} of 20 clusters repeat a sibling")


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


def test_assign_is_unaffected_by_the_default_matmul_precision(examples, built):
  expected = built.assign(examples)
  with jax.default_matmul_precision("bfloat16"):
    np.testing.assert_array_equal(built.assign(examples), expected)
