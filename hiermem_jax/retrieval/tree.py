"""The cluster tree: nested clusters of a corpus, and the leaf of an embedding (paper, Appendix C).

A path from the root to a leaf is one int32, the number of the leaf. With branching b and depth K,
the ancestor of a leaf on level k (k = 1..K) is `leaf // b**(K - k)`. The children of node i of
level k are the nodes `i * b` to `i * b + b - 1` of level k + 1. For example, with b = 16 and K = 2,
leaf 37 is child 5 of node 2.
"""

import dataclasses
import functools

import numpy as np

from hiermem_jax.retrieval import storage
from hiermem_jax.retrieval.kmeans import nearest_candidate, one_thread

_ASSIGN_CHUNK = 16384  # examples that are copied and compared at a time


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ClusterTree:
  """Centroids of all levels.

  Attributes:
    centroids: for each level k = 1..K, the root's children first, float32 [branching**k, E].
    branching: children per node (paper: 16).
    encoder_fingerprint: of the encoder whose embeddings were clustered.

  Raises:
    ValueError: the centroids are not of these shapes, or not float32.
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
    """The nodes on the path to each leaf, level 1 first: int [...] -> int32 [..., K]."""
    divisors = self.branching ** np.arange(self.depth - 1, -1, -1)
    return (np.asarray(leaf)[..., None] // divisors).astype(np.int32)

  def assign(self, embeddings: np.ndarray) -> np.ndarray:
    """Finds the leaf of each embedding by greedy descent.

    From the root down, each step goes to the nearest child by L2, or to the first one on a tie. The leaf of an
    embedding does not depend on the other embeddings of the call.

    Args:
      embeddings: float32 or float16 [n, E].

    Returns:
      int32 [n], numbers of the leaves.
    """
    node = np.zeros(len(embeddings), np.int32)
    for centroids in self.centroids:
      node = nearest_children(embeddings, node, centroids, self.branching)
    return node

  def save(self, directory: str) -> None:
    """Writes `tree.npz` and `tree.json` under `directory`."""
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


@one_thread
def nearest_children(embeddings: np.ndarray, node: np.ndarray, centroids: np.ndarray, branching: int) -> np.ndarray:
  """One step of the descent.

  Args:
    embeddings: float32 or float16 [n, E].
    node: int32 [n], the node of each embedding.
    centroids: float32 [c * branching, E], of the next level.
    branching: children per node.

  Returns:
    int32 [n], the nearest child of each embedding's node, by its number on the next level.
  """
  children = np.empty_like(node)
  for start in range(0, len(node), _ASSIGN_CHUNK):
    # Sorted by node, so that the examples of one node are compared with its children in one product.
    chunk = start + np.argsort(node[start : start + _ASSIGN_CHUNK], kind="stable")
    examples = embeddings[chunk].astype(np.float32, copy=False)
    first = node[chunk] * branching
    products, norms = np.empty((2, len(chunk), branching), np.float32)
    firsts, starts = np.unique(first, return_index=True)
    for i, begin, end in zip(firsts.tolist(), starts.tolist(), [*starts[1:].tolist(), len(chunk)]):
      candidates = centroids[i : i + branching]
      np.matmul(examples[begin:end], candidates.T, out=products[begin:end])
      norms[begin:end] = np.einsum("ke,ke->k", candidates, candidates)
    children[chunk] = first + nearest_candidate(examples, centroids, first, products, norms)
  return children
