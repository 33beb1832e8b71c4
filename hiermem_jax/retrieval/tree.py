"""The cluster tree: nested k-means clusters of a corpus, and the way down it (paper, Appendix C).

A path is one int32, the leaf's number. With branching b and depth K, the level-k ancestor
(k = 1..K) of a leaf is `leaf // b**(K - k)`, and node i of level k has the children
`i * b .. i * b + b - 1` on level k + 1.
"""

import dataclasses
import functools

import numpy as np

from hiermem_jax.retrieval import storage
from hiermem_jax.retrieval.kmeans import nearest_candidate, one_thread

_ASSIGN_CHUNK = 16384  # examples, of which the descent holds a copy


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
      node = nearest_children(embeddings, node, centroids, self.branching)
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


@one_thread
def nearest_children(embeddings: np.ndarray, node: np.ndarray, centroids: np.ndarray, branching: int) -> np.ndarray:
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
