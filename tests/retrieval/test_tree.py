"""The cluster tree against plain numpy loops, and its life on disk."""

import dataclasses

import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval import tree as tree_module
from hiermem_jax.retrieval.tree import ClusterTree


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


def test_wrong_shapes_are_a_programmers_error():
  with pytest.raises(ValueError, match="branching"):
    ClusterTree(centroids=(np.zeros((4, 3), np.float32),), branching=2, encoder_fingerprint="")
  with pytest.raises(ValueError, match="branching"):
    ClusterTree(centroids=(), branching=2, encoder_fingerprint="")
  with pytest.raises(ValueError, match="float32"):
    ClusterTree(centroids=(np.zeros((2, 3)),), branching=2, encoder_fingerprint="")
