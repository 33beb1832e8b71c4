"""Other ways down the tree than the greedy one: around blocked clusters, and to leaves further away.

For probes of what a bank holds: what remains when the clusters that a question fetches are taken away (paper, Figure
6b), and how much a wrong turn costs.
"""

from collections.abc import Callable, Iterable

import numpy as np

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.tree import ClusterTree

Blocked = Callable[[int, np.ndarray], np.ndarray]  # level, nodes int [n, branching] -> bool [n, branching]

_CHUNK = 1024  # examples whose distances to all leaves are held at a time


def assign_around(tree: ClusterTree, embeddings: np.ndarray, blocked: Blocked) -> np.ndarray:
  """Greedy descent among the children that are not blocked.

  Args:
    tree: the tree.
    embeddings: float32 [n, E].
    blocked: which of the children that each example may go to next are blocked, given their level (1 is the root's
      children) and numbers. A node that is free must have a free child.

  Returns:
    int32 [n], leaf numbers.

  Raises:
    InputError: nothing is left for an example.
  """
  node = np.zeros(len(embeddings), np.int64)
  for level, centroids in enumerate(tree.centroids, start=1):
    children = node[:, None] * tree.branching + np.arange(tree.branching)
    distance = np.square(embeddings[:, None].astype(np.float32) - centroids[children]).sum(axis=-1)
    distance = np.where(blocked(level, children), np.inf, distance)
    if len(distance) and np.isinf(distance.min(axis=1)).any():
      raise InputError(f"every level-{level} cluster that a question may go to is blocked; leave some of them")
    node = children[np.arange(len(node)), distance.argmin(axis=1)]
  return node.astype(np.int32)


def around_own(tree: ClusterTree, leaf: np.ndarray, level: int) -> Blocked:
  """Blocks, for each example, the level's cluster on its own path (int32 [n] leaves)."""
  own = tree.ancestors(leaf)[:, level - 1]
  return lambda at, nodes: (nodes == own[:, None]) & (at == level)


def around_clusters(tree: ClusterTree, clusters: Iterable[tuple[int, int]]) -> Blocked:
  """Blocks clusters given as (level, number) for all examples, and with them nodes whose children are all blocked.

  Raises:
    InputError: the tree has no such cluster.
  """
  blocked = [np.zeros(len(centroids), bool) for centroids in tree.centroids]
  for level, number in clusters:
    if not 1 <= level <= tree.depth or not 0 <= number < len(blocked[level - 1]):
      raise InputError(f"cluster {level}:{number}: the tree has levels 1 to {tree.depth}, of {tree.branching}**level")
    blocked[level - 1][number] = True
  for level in range(tree.depth - 1, 0, -1):
    blocked[level - 1] |= blocked[level].reshape(-1, tree.branching).all(axis=1)
  return lambda level, nodes: blocked[level - 1][nodes]


def ranked_leaves(tree: ClusterTree, embeddings: np.ndarray, rank: int) -> np.ndarray:
  """The leaf that is `rank`-th for each example: first the one of the greedy descent, then the others by distance.

  Raises:
    InputError: the tree has fewer leaves.
  """
  if not 1 <= rank <= tree.num_leaves:
    raise InputError(f"rank {rank}: the tree has {tree.num_leaves} leaves; choose 1 to {tree.num_leaves}")
  greedy = tree.assign(embeddings)
  if rank == 1:
    return greedy
  centroids, result = tree.centroids[-1], np.empty(len(embeddings), np.int32)
  norms = np.square(centroids).sum(axis=1)
  for start in range(0, len(embeddings), _CHUNK):
    rows = slice(start, start + _CHUNK)
    distance = norms - 2 * embeddings[rows].astype(np.float32) @ centroids.T
    distance[np.arange(len(distance)), greedy[rows]] = -np.inf
    result[rows] = np.argpartition(distance, rank - 1, axis=1)[:, rank - 1]
  return result
