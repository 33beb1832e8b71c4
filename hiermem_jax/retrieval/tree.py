"""The cluster tree: nested k-means clusters of a corpus, and the way down it (paper, Appendix C).

A path is one int32, the leaf's number. With branching b and depth K, the level-k ancestor
(k = 1..K) of a leaf is `leaf // b**(K - k)`, and node i of level k has the children
`i * b .. i * b + b - 1` on level k + 1.
"""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval import storage
from hiermem_jax.retrieval.kmeans import balanced_kmeans, squared_distances

_ASSIGN_CHUNK = 256  # rows per compiled call; each gathers [256, branching, E] floats per level
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
      embeddings: float32 [n, E].

    Returns:
      int32 [n], leaf numbers.
    """
    node = np.zeros(len(embeddings), np.int32)
    levels = self._device_centroids
    return _in_chunks(lambda x, node: _descend(x, node, levels, self.branching), embeddings, node)

  @functools.cached_property
  def _device_centroids(self) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(level) for level in self.centroids)

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
  *,
  branching: int = 16,
  depth: int = 4,
  steps: int = 20,
  batch_size: int = 6400,
  balance: float | None = 1.5,
  encoder_fingerprint: str,
  seed: int = 0,
) -> ClusterTree:
  """Grows the tree from the root to the leaves (paper, Appendix C).

  Each node is split by `balanced_kmeans` on examples that fall in it, at most
  `steps * batch_size` of them drawn at random; then all examples go to their nearest
  child. A node's randomness comes from (seed, level, node) alone.

  Args:
    embeddings: float32 [n, E], unit norm rows.
    branching: children per node.
    depth: levels.
    steps: see `balanced_kmeans`.
    batch_size: see `balanced_kmeans`.
    balance: see `balanced_kmeans`.
    encoder_fingerprint: of the encoder that made the embeddings.
    seed: of everything random.

  Returns:
    The tree. A node with fewer examples than `branching` has its examples as children;
    the missing ones repeat its first child and stay empty. Their number is logged.

  Raises:
    InputError: fewer examples than leaves, or a setting out of range.
  """
  if branching < 2 or depth < 1:
    raise InputError(
      f"cluster tree with branching {branching}, depth {depth}: set branching >= 2 and depth >= 1"
    )
  if len(embeddings) < branching**depth:
    raise InputError(
      f"{len(embeddings)} documents cannot fill the {branching**depth} leaves of branching {branching},"
      f" depth {depth}: lower depth or branching, or give more documents"
    )
  node = np.zeros(len(embeddings), np.int32)
  parents = np.zeros((1, embeddings.shape[1]), np.float32)  # never read: the root is not empty
  levels = []
  num_repeated = 0
  for level in range(1, depth + 1):
    started = time.monotonic()
    order = np.argsort(node, kind="stable")
    bounds = np.searchsorted(node[order], np.arange(len(parents) + 1))
    children = []
    for i, parent in enumerate(parents):
      rows = order[bounds[i] : bounds[i + 1]]
      rng = np.random.default_rng((seed, level, i))
      if len(rows) > steps * batch_size:
        rows = rng.choice(rows, steps * batch_size, replace=False)
      if len(rows) < branching:
        children.append(_few_children(embeddings[rows], parent, branching))
        num_repeated += branching - len(rows)
      else:
        children.append(
          balanced_kmeans(
            embeddings[rows],
            branching,
            steps=steps,
            batch_size=batch_size,
            balance=balance,
            seed=int(rng.integers(2**31)),
          )  # fmt: skip
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
    parents = np.concatenate(children)
    levels.append(parents)
    node = _nearest_children(embeddings, node, parents, branching)
    sizes = np.bincount(node, minlength=len(parents))
    logging.info(
      "level %d/%d: %d clusters in %.0f s, %d to %d examples each, median %d",
      level, depth, len(parents), time.monotonic() - started, sizes.min(), sizes.max(), np.median(sizes),
    )  # fmt: skip
  if num_repeated:
    logging.warning(
      "%d of %d clusters repeat a sibling and stay empty, as their parents hold fewer than %d documents",
      num_repeated, sum(map(len, levels)), branching,
    )  # fmt: skip
  return ClusterTree(centroids=tuple(levels), branching=branching, encoder_fingerprint=encoder_fingerprint)


def _few_children(examples: np.ndarray, parent: np.ndarray, branching: int) -> np.ndarray:
  """Children [branching, E] of a node with m < branching examples: those, then repeats of the first.

  A node without examples passes on its own centroid, so that every path has an end.
  """
  children = np.tile(examples[:1] if len(examples) else parent[None], (branching, 1))
  children[: len(examples)] = examples
  return children


def _in_chunks(step, embeddings: np.ndarray, node: np.ndarray) -> np.ndarray:
  """Runs step(float32 [256, E], int32 [256]) -> int32 [256] over all rows; the last chunk is padded."""
  result = np.empty(len(embeddings), np.int32)
  for start in range(0, len(embeddings), _ASSIGN_CHUNK):
    rows = slice(start, min(start + _ASSIGN_CHUNK, len(embeddings)))
    size = rows.stop - rows.start
    x = np.zeros((_ASSIGN_CHUNK, embeddings.shape[1]), np.float32)
    x[:size] = embeddings[rows]
    at = np.zeros(_ASSIGN_CHUNK, np.int32)
    at[:size] = node[rows]
    result[rows] = np.asarray(step(x, at))[:size]
  return result


def _nearest_children(
  embeddings: np.ndarray, node: np.ndarray, centroids: np.ndarray, branching: int
) -> np.ndarray:
  """One level of the descent for all examples: int32 [n] nodes -> int32 [n] nodes of the next level."""
  levels = (jnp.asarray(centroids),)
  return _in_chunks(lambda x, node: _descend(x, node, levels, branching), embeddings, node)


@functools.partial(jax.jit, static_argnames="branching")
def _descend(x: jax.Array, node: jax.Array, levels: tuple[jax.Array, ...], branching: int) -> jax.Array:
  """Moves each example from its node down through `levels`: [n, E], int32 [n] -> int32 [n]."""
  for centroids in levels:
    children = centroids.reshape(-1, branching, centroids.shape[-1])[node]  # [n, branching, E]
    node = node * branching + jnp.argmin(squared_distances(x, children), axis=-1).astype(jnp.int32)
  return node
