"""Searches of the cluster tree that find other leaves than `ClusterTree.assign` does.

Two experiments need them. Figure 6b of the paper takes away the clusters that a question would use: `assign_excluding`
descends the tree without them. The question how much a wrong leaf costs needs the second-nearest leaf, the third, and
so on: `kth_nearest_leaf` finds it.
"""

from collections.abc import Callable, Iterable

import numpy as np

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.tree import ClusterTree

# Says which nodes of a level are excluded for each example: (level, nodes int [n, branching]) -> bool [n, branching].
Excluded = Callable[[int, np.ndarray], np.ndarray]

_CHUNK = 1024  # examples whose distances to all leaves are held in memory at a time


def assign_excluding(tree: ClusterTree, embeddings: np.ndarray, excluded: Excluded) -> np.ndarray:
  """Greedy descent as `ClusterTree.assign` does it, but excluded nodes are never chosen.

  Args:
    tree: the cluster tree.
    embeddings: float32 [n, E].
    excluded: called once per level, with the level (1 for the root's children) and the nodes int [n, branching] among
      which each example chooses; returns which of them are excluded, bool [n, branching]. If all children of a node are
      excluded, the node itself must be excluded too, because the descent does not go back up.

  Returns:
    int32 [n], leaf numbers.

  Raises:
    InputError: all children that an example may choose from are excluded.
  """
  node = np.zeros(len(embeddings), np.int64)
  for level, centroids in enumerate(tree.centroids, start=1):
    children = node[:, None] * tree.branching + np.arange(tree.branching)
    distance = np.square(embeddings[:, None].astype(np.float32) - centroids[children]).sum(axis=-1)
    distance = np.where(excluded(level, children), np.inf, distance)
    if len(distance) and np.isinf(distance.min(axis=1)).any():
      raise InputError(f"every level-{level} cluster that a question may go to is excluded; leave some of them")
    node = children[np.arange(len(node)), distance.argmin(axis=1)]
  return node.astype(np.int32)


def exclude_own_cluster(tree: ClusterTree, leaf: np.ndarray, level: int) -> Excluded:
  """Excludes, for each example, the one cluster of `level` that contains the example's leaf.

  Args:
    tree: the cluster tree.
    leaf: int32 [n], the leaf of each example.
    level: 1 to K.
  """
  own = tree.ancestors(leaf)[:, level - 1]
  return lambda at, nodes: (nodes == own[:, None]) & (at == level)


def exclude_clusters(tree: ClusterTree, clusters: Iterable[tuple[int, int]]) -> Excluded:
  """Excludes the same clusters for all examples.

  A node whose children are all excluded is excluded too.

  Args:
    tree: the cluster tree.
    clusters: (level, number) of each.

  Raises:
    InputError: the tree has no such cluster.
  """
  excluded = [np.zeros(len(centroids), bool) for centroids in tree.centroids]
  for level, number in clusters:
    if not 1 <= level <= tree.depth or not 0 <= number < len(excluded[level - 1]):
      raise InputError(
        f"cluster {level}:{number}: the tree has levels 1 to {tree.depth}, level k with {tree.branching}**k clusters"
      )
    excluded[level - 1][number] = True
  for level in range(tree.depth - 1, 0, -1):
    excluded[level - 1] |= excluded[level].reshape(-1, tree.branching).all(axis=1)
  return lambda level, nodes: excluded[level - 1][nodes]


def kth_nearest_leaf(tree: ClusterTree, embeddings: np.ndarray, k: int) -> np.ndarray:
  """The k-th nearest leaf of each example.

  The first is the leaf that `ClusterTree.assign` finds, which need not be the nearest of all, as the descent is greedy.
  The others follow by their distance (L2) to the example.

  Args:
    tree: the cluster tree.
    embeddings: float32 [n, E].
    k: 1 to the number of leaves.

  Returns:
    int32 [n], leaf numbers.

  Raises:
    InputError: the tree has fewer than `k` leaves.
  """
  if not 1 <= k <= tree.num_leaves:
    raise InputError(f"rank {k}: the tree has {tree.num_leaves} leaves; choose 1 to {tree.num_leaves}")
  greedy = tree.assign(embeddings)
  if k == 1:
    return greedy
  centroids, result = tree.centroids[-1], np.empty(len(embeddings), np.int32)
  norms = np.square(centroids).sum(axis=1)
  for start in range(0, len(embeddings), _CHUNK):
    chunk = slice(start, start + _CHUNK)
    distance = norms - 2 * embeddings[chunk].astype(np.float32) @ centroids.T
    distance[np.arange(len(distance)), greedy[chunk]] = -np.inf
    result[chunk] = np.argpartition(distance, k - 1, axis=1)[:, k - 1]
  return result
