"""The descent without excluded clusters, and the k-th nearest leaf, against an enumeration of all leaves."""

import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.build import TreeConfig, build_tree
from hiermem_jax.retrieval.search import assign_excluding, exclude_clusters, exclude_own_cluster, kth_nearest_leaf


@pytest.fixture(scope="module")
def tree_and_examples():
  rng = np.random.default_rng(0)
  embeddings = rng.standard_normal((400, 6)).astype(np.float32)
  embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
  return build_tree(embeddings, config=TreeConfig(branching=3, depth=3), encoder_fingerprint="x"), embeddings[:60]


def descend(tree, example, excluded):
  """Greedy descent by brute force; `excluded` is a set of (level, node)."""

  def free(level, node):
    if (level, node) in excluded:
      return False
    return level == tree.depth or any(free(level + 1, node * 3 + child) for child in range(3))

  node = 0
  for level in range(1, tree.depth + 1):
    children = [node * 3 + child for child in range(3) if free(level, node * 3 + child)]
    node = min(children, key=lambda i: np.square(tree.centroids[level - 1][i] - example).sum())  # noqa: B023
  return node


def test_nothing_excluded_is_the_plain_descent(tree_and_examples):
  tree, examples = tree_and_examples
  np.testing.assert_array_equal(assign_excluding(tree, examples, exclude_clusters(tree, [])), tree.assign(examples))


@pytest.mark.parametrize("level", [1, 2, 3])
def test_own_cluster_is_avoided_and_the_rest_of_the_path_is_best(tree_and_examples, level):
  tree, examples = tree_and_examples
  leaf = tree.assign(examples)
  result = assign_excluding(tree, examples, exclude_own_cluster(tree, leaf, level))
  own = tree.ancestors(leaf)[:, level - 1]
  assert (tree.ancestors(result)[:, level - 1] != own).all()
  if level > 1:
    np.testing.assert_array_equal(tree.ancestors(result)[:, level - 2], tree.ancestors(leaf)[:, level - 2])
  expected = [descend(tree, example, {(level, node)}) for example, node in zip(examples, own.tolist())]
  np.testing.assert_array_equal(result, expected)


def test_chosen_clusters_are_avoided_by_all(tree_and_examples):
  tree, examples = tree_and_examples
  excluded = {(1, 0), (2, 4), (3, 24), (3, 25), (3, 26)}  # the last three are all children of node 8 of level 2
  result = assign_excluding(tree, examples, exclude_clusters(tree, excluded))
  np.testing.assert_array_equal(result, [descend(tree, example, excluded) for example in examples])
  assert not {(2, 8)} & {(2, int(node)) for node in tree.ancestors(result)[:, 1]}


@pytest.mark.parametrize("k", [1, 2, 5, 27])
def test_kth_nearest_leaf(tree_and_examples, k):
  tree, examples = tree_and_examples
  result = kth_nearest_leaf(tree, examples, k)
  for example, greedy, leaf in zip(examples, tree.assign(examples), result):
    distance = np.square(tree.centroids[-1].astype(np.float64) - example).sum(axis=1)
    order = [greedy, *(i for i in np.argsort(distance) if i != greedy)]
    assert leaf == order[k - 1]


def test_bad_clusters_and_ranks_are_named(tree_and_examples):
  tree, examples = tree_and_examples
  with pytest.raises(InputError, match="cluster 2:9: the tree has levels 1 to 3"):
    exclude_clusters(tree, [(2, 9)])
  with pytest.raises(InputError, match="every level-1 cluster that a question may go to is excluded"):
    assign_excluding(tree, examples, exclude_clusters(tree, [(1, 0), (1, 1), (1, 2)]))
  with pytest.raises(InputError, match="rank 28: the tree has 27 leaves"):
    kth_nearest_leaf(tree, examples, 28)
