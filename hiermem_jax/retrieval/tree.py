"""The cluster tree: nested k-means clusters of a corpus, and the way down it (paper, Appendix C).

A path is one int32, the leaf's number. With branching b and depth K, the level-k ancestor
(k = 1..K) of a leaf is `leaf // b**(K - k)`, and node i of level k has the children
`i * b .. i * b + b - 1` on level k + 1.
"""

import dataclasses
import functools
import time

import numpy as np
from absl import logging

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval import storage
from hiermem_jax.retrieval.kmeans import balanced_kmeans, nearest_candidate, one_thread

_ASSIGN_CHUNK = 16384  # examples, of which the descent holds a copy
_LOG_EVERY_SECONDS = 30


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClusterTree:
  """Centroids of all levels.

  Attributes:
    centroids: per level k = 1..K, root's children first, float32 [branching**k, E].
    branching: children per node (paper: 16).
    encoder_fingerprint: of the encoder whose embeddings were clustered.
  """

  centroids: tuple[np.ndarray, ...]
  branching: int
  encoder_fingerprint: str

  def __post_init__(self):
    shapes = [level.shape for level in self.centroids]
    width = shapes[0][-1] if shapes else 0
    if not shapes or shapes != [(self.branching ** (k + 1), width) for k in range(len(shapes))]:
      raise ValueError(f"centroid shapes {shapes} are not [branching**k, E] for branching {self.branching}")
    if any(level.dtype != np.float32 for level in self.centroids):
      raise ValueError("centroids must be float32")

  @property
  def depth(self) -> int:
    """Levels below the root, K."""
    return len(self.centroids)

  @property
  def num_leaves(self) -> int:
    """Clusters of the deepest level, branching**K."""
    return self.branching**self.depth

  @functools.cached_property
  def fingerprint(self) -> str:
    """First 16 hex characters of a sha256 over branching, centroids and encoder fingerprint."""
    return storage.digest(self._meta(), self._arrays())

  def ancestors(self, leaf: np.ndarray | int) -> np.ndarray:
    """Nodes on the paths to leaves: int [...] -> int32 [..., K], level 1 first."""
    divisors = self.branching ** np.arange(self.depth - 1, -1, -1)
    return (np.asarray(leaf)[..., None] // divisors).astype(np.int32)

  def assign(self, embeddings: np.ndarray) -> np.ndarray:
    """Greedy descent: at each level the nearest child by L2, the first one on a tie.

    Args:
      embeddings: float32 or float16 [n, E].

    Returns:
      int32 [n], leaf numbers. An example's leaf does not depend on the examples beside it.
    """
    node = np.zeros(len(embeddings), np.int32)
    for centroids in self.centroids:
      node = _nearest_children(embeddings, node, centroids, self.branching)
    return node

  def save(self, directory: str) -> None:
    """Writes `tree.npz` and `tree.json` under `directory`; each file appears whole or not at all."""
    storage.write_artifact(directory, "tree", self._meta(), self._arrays())

  @classmethod
  def load(cls, directory: str) -> "ClusterTree":
    """Reads what `save` wrote.

    Raises:
      InputError: a file is missing or damaged.
    """
    meta, arrays = storage.read_artifact(directory, "tree")
    levels = tuple(arrays[f"level_{k}"] for k in range(1, meta["depth"] + 1))
    return cls(centroids=levels, branching=meta["branching"], encoder_fingerprint=meta["encoder_fingerprint"])

  def _meta(self) -> dict[str, int | str]:
    return {
      "branching": self.branching,
      "depth": self.depth,
      "encoder_fingerprint": self.encoder_fingerprint,
    }

  def _arrays(self) -> dict[str, np.ndarray]:
    return {f"level_{k}": level for k, level in enumerate(self.centroids, start=1)}


def build_tree(
  embeddings: np.ndarray,
  keys: np.ndarray | None = None,
  *,
  branching: int = 16,
  depth: int = 4,
  steps: int = 20,
  batch_size: int = 6400,
  balance: float | None = 1.5,
  encoder_fingerprint: str,
  seed: int = 0,
) -> ClusterTree:
  """Grows the tree from the root to the leaves, in memory (paper, Appendix C).

  Each node is split by `split_node` on the examples that fall in it; then all examples go to their nearest child.

  Args:
    embeddings: float32 or float16 [n, E], unit norm rows.
    keys: uint64 [n], see `split_node`; by default a permutation drawn from `seed`.
    branching: children per node.
    depth: levels.
    steps: see `balanced_kmeans`.
    batch_size: see `balanced_kmeans`.
    balance: see `balanced_kmeans`.
    encoder_fingerprint: of the encoder that made the embeddings.
    seed: of everything random.

  Returns:
    The tree, the same for the same pairs of example and key in any order. The number of nodes with fewer examples than
    `branching`, some of whose children stay empty, is logged.

  Raises:
    InputError: fewer examples than leaves, or a setting out of range.
    ValueError: keys that `split_node` does not take.
  """
  if branching < 2 or depth < 1:
    raise InputError(f"cluster tree with branching {branching}, depth {depth}: set branching >= 2 and depth >= 1")
  if len(embeddings) < branching**depth:
    raise InputError(
      f"{len(embeddings)} documents cannot fill the {branching**depth} leaves of branching {branching},"
      f" depth {depth}: lower depth or branching, or give more documents"
    )
  if keys is None:
    keys = np.random.default_rng(seed).permutation(len(embeddings)).astype(np.uint64)
  node = np.zeros(len(embeddings), np.int32)
  parents = np.zeros((1, embeddings.shape[1]), np.float32)  # never read: the root is not empty
  levels = []
  for level in range(1, depth + 1):
    started = time.monotonic()
    children = np.empty((len(parents), branching, embeddings.shape[1]), np.float32)
    rows_by_node = _rows_by_node(node)
    for i in range(len(parents)):
      rows = rows_by_node.get(i, np.zeros(0, np.int64))
      children[i] = split_node(
        embeddings[rows],
        keys[rows],
        parent=parents[i],
        level=level,
        node=i,
        branching=branching,
        steps=steps,
        batch_size=batch_size,
        balance=balance,
        seed=seed,
      )
      logging.log_every_n_seconds(
        logging.INFO,
        "level %d/%d: %d of %d nodes split",
        _LOG_EVERY_SECONDS,
        level,
        depth,
        i + 1,
        len(parents),
      )
    parents = children.reshape(-1, embeddings.shape[1])
    levels.append(parents)
    node = _nearest_children(embeddings, node, parents, branching)
    report = level_report(np.bincount(node, minlength=len(parents)), branching)
    logging.info("level %d/%d in %.0f s: %s", level, depth, time.monotonic() - started, report)
  return ClusterTree(centroids=tuple(levels), branching=branching, encoder_fingerprint=encoder_fingerprint)


def split_node(
  embeddings: np.ndarray,
  keys: np.ndarray,
  *,
  parent: np.ndarray,
  level: int,
  node: int,
  branching: int = 16,
  steps: int = 20,
  batch_size: int = 6400,
  balance: float | None = 1.5,
  seed: int = 0,
) -> np.ndarray:
  """Splits one node of the tree, as a function of the set of its examples.

  `balanced_kmeans` sees the `steps * batch_size` examples of smallest key, in the order of their keys, with randomness
  from (seed, level, node) alone. So a pipeline may bring a node's examples together in any order, and may leave out
  those of larger keys.

  Args:
    embeddings: float32 or float16 [n, E], examples that fall in the node.
    keys: uint64 [n], all different: random numbers, as they decide which examples are used.
    parent: float32 [E], the node's own centroid; for the root, which has none, any.
    level: the children's level, 1 for the root's.
    node: the node's number on its own level.
    branching: children.
    steps: see `balanced_kmeans`.
    batch_size: see `balanced_kmeans`.
    balance: see `balanced_kmeans`.
    seed: of the tree.

  Returns:
    float32 [branching, E]. A node with fewer examples than `branching` has its examples as children; the missing ones
    repeat the first (without any, the parent) and stay empty.

  Raises:
    InputError: see `balanced_kmeans`.
    ValueError: keys that are not one uint64 per example, or not all different.
  """
  if keys.dtype != np.uint64 or keys.shape != (len(embeddings),):
    raise ValueError(f"keys are {keys.dtype} {keys.shape} for {len(embeddings)} examples: give one uint64 for each")
  order = np.argsort(keys)[: steps * batch_size]
  if np.any(np.diff(keys[order]) == 0):
    raise ValueError(f"two examples of node {node} share a key, so their order is open: give each a key of its own")
  examples = embeddings[order].astype(np.float32, copy=False)
  if len(examples) < branching:
    return _few_children(examples, parent, branching)
  return balanced_kmeans(
    examples,
    branching,
    steps=steps,
    batch_size=batch_size,
    balance=balance,
    seed=int(np.random.default_rng((seed, level, node)).integers(2**31)),
  )


def level_report(sizes: np.ndarray, branching: int) -> dict[str, int | float]:
  """What there is to know about the sizes of one level's clusters, ready for JSON.

  Args:
    sizes: int [clusters], examples in each cluster of the level.
    branching: children per node.

  Returns:
    `clusters`, `empty`, `min`, `median`, `max`, `mean`, `largest_over_mean`, and `small_nodes`: how many parents
    hold fewer examples than `branching`, so that missing children repeat the first.
  """
  return {
    "clusters": len(sizes),
    "empty": int(np.count_nonzero(sizes == 0)),
    "min": int(sizes.min()),
    "median": float(np.median(sizes)),
    "max": int(sizes.max()),
    "mean": float(sizes.mean()),
    "largest_over_mean": float(sizes.max() / sizes.mean()),
    "small_nodes": int(np.count_nonzero(sizes.reshape(-1, branching).sum(axis=1) < branching)),
  }


def _few_children(examples: np.ndarray, parent: np.ndarray, branching: int) -> np.ndarray:
  """Children [branching, E] of a node with m < branching examples: those, then repeats of the first.

  A node without examples passes on its own centroid, so that every path has an end.
  """
  children = np.tile(examples[:1] if len(examples) else parent[None], (branching, 1))
  children[: len(examples)] = examples
  return children


def _rows_by_node(node: np.ndarray) -> dict[int, np.ndarray]:
  """The rows of the examples in each node that has any: int [m], ascending."""
  order = np.argsort(node, kind="stable")
  nodes, starts = np.unique(node[order], return_index=True)
  return dict(zip(nodes.tolist(), np.split(order, starts[1:])))


@one_thread
def _nearest_children(embeddings: np.ndarray, node: np.ndarray, centroids: np.ndarray, branching: int) -> np.ndarray:
  """One level of the descent: int32 [n] nodes -> int32 [n] nodes of the next level, whose centroids are given."""
  children = np.empty_like(node)
  for start in range(0, len(node), _ASSIGN_CHUNK):
    rows = start + np.argsort(node[start : start + _ASSIGN_CHUNK], kind="stable")
    examples = embeddings[rows].astype(np.float32, copy=False)
    first = node[rows] * branching
    # Examples of one node lie together and read its children once.
    products, norms = np.empty((2, len(rows), branching), np.float32)
    firsts, starts = np.unique(first, return_index=True)
    for i, begin, end in zip(firsts.tolist(), starts.tolist(), [*starts[1:].tolist(), len(rows)]):
      candidates = centroids[i : i + branching]
      np.matmul(examples[begin:end], candidates.T, out=products[begin:end])
      norms[begin:end] = np.einsum("ke,ke->k", candidates, candidates)
    children[rows] = first + nearest_candidate(examples, centroids, first, products, norms)
  return children
