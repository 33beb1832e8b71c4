"""Balanced mini-batch k-means: one node's split of the cluster tree (paper, Appendix C).

EM on fresh mini-batches from a k-means++ start. Where the paper is silent: the start is
chosen among the first batch, a centroid is the running mean over the examples it has
seen, an empty cluster is refilled by the same split that keeps clusters balanced.
"""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from hiermem_jax.errors import InputError

_SMALLEST_BATCH_SHAPE = 256


def balanced_kmeans(
  embeddings: np.ndarray,
  num_clusters: int,
  *,
  steps: int = 20,
  batch_size: int = 6400,
  balance: float | None = 1.5,
  seed: int = 0,
) -> np.ndarray:
  """Finds `num_clusters` centroids of the rows of `embeddings`.

  Every step assigns one batch to the nearest centroids (L2), evens out the sizes (see
  `rebalance`), and moves each centroid to the mean of all examples it has received so
  far. Batches walk through a shuffle of the examples and reshuffle when it runs out; with
  at most `batch_size` examples every batch is all of them. The rule acts on the
  centroids only: assigning afterwards is plain nearest centroid.

  Args:
    embeddings: float32 [n, E].
    num_clusters: k.
    steps: EM steps.
    batch_size: examples per step, and examples among which k-means++ chooses.
    balance: largest size of a cluster within a batch, in multiples of the mean size; None
      for no limit. The paper's 0.094 of the batch is 1.5 at k = 16.
    seed: of the shuffles, the start and the splits.

  Returns:
    float32 [k, E], the same for the same arguments on one platform. Not unit norm: means of unit vectors.

  Raises:
    InputError: fewer examples, or a smaller batch, than clusters; a setting out of range; an
      example that is not finite.
  """
  from sklearn.cluster import kmeans_plusplus

  num_examples = len(embeddings)
  _check_arguments(embeddings, num_clusters, steps, batch_size, balance)
  rng = np.random.default_rng(seed)
  batches = _batches(num_examples, batch_size, steps, rng)
  batch_shape = _padded_size(min(batch_size, num_examples), batch_size)
  limit = None if balance is None else balance / num_clusters
  centroids, received = None, np.zeros(num_clusters)
  for rows in batches:
    batch = np.zeros((batch_shape, embeddings.shape[1]), np.float32)
    batch[: len(rows)] = embeddings[rows]
    if centroids is None:
      start_seed = int(rng.integers(2**31))
      centroids, _ = kmeans_plusplus(batch[: len(rows)], num_clusters, random_state=start_seed)
      centroids = centroids.astype(np.float64)
    batch = jnp.asarray(batch)
    nearest = np.asarray(_nearest(batch, centroids.astype(np.float32)))[: len(rows)]
    received[np.bincount(nearest, minlength=num_clusters) == 0] = 0  # an abandoned centroid starts anew
    assignment = np.full(batch_shape, num_clusters, np.int32)  # padding belongs to no cluster
    assignment[: len(rows)] = rebalance(nearest, num_clusters, limit, rng)
    added = np.bincount(assignment, minlength=num_clusters)[:num_clusters]
    sums = np.asarray(_cluster_sums(batch, assignment, num_clusters), np.float64)
    # rebalance leaves no cluster empty, so the divisor is at least one.
    centroids = (centroids * received[:, None] + sums) / (received + added)[:, None]
    received += added
  return centroids.astype(np.float32)


def rebalance(
  assignment: np.ndarray, num_clusters: int, max_share: float | None, rng: np.random.Generator
) -> np.ndarray:
  """Splits the largest cluster with the smallest until none is too large and none is empty.

  A split moves random examples of the largest cluster to the smallest until the two are
  of equal size (an odd one stays with the larger), after Jegou et al. 2010.

  Args:
    assignment: int [n], clusters of the batch's examples; n >= num_clusters.
    num_clusters: k.
    max_share: largest share of the batch that a cluster may hold; None for no limit. Never
      taken below the even share, which could not be met.
    rng: source of the random choices.

  Returns:
    int32 [n], a copy.
  """
  assignment = assignment.astype(np.int32)
  sizes = np.bincount(assignment, minlength=num_clusters)
  limit = math.inf
  if max_share is not None:
    limit = max(max_share * len(assignment), math.ceil(len(assignment) / num_clusters))
  # Every split lowers the sum of squared sizes, so this ends.
  while sizes.max() > limit or sizes.min() == 0:
    largest, smallest = int(sizes.argmax()), int(sizes.argmin())
    moved = (sizes[largest] - sizes[smallest]) // 2
    chosen = rng.choice(np.flatnonzero(assignment == largest), moved, replace=False)
    assignment[chosen] = smallest
    sizes[largest] -= moved
    sizes[smallest] += moved
  return assignment


def squared_distances(examples: jax.Array, centroids: jax.Array) -> jax.Array:
  """Squared L2 distances less the examples' own norms, which do not change the order.

  Args:
    examples: float32 [n, E].
    centroids: float32 [k, E], or [n, k, E] for a choice of its own per example.

  Returns:
    float32 [n, k]. Full float32 products: the TPU's default of bfloat16 would send near ties elsewhere.
  """
  equation = "ne,ke->nk" if centroids.ndim == 2 else "ne,nke->nk"
  products = jnp.einsum(equation, examples, centroids, precision=jax.lax.Precision.HIGHEST)
  return jnp.sum(centroids * centroids, axis=-1) - 2.0 * products


@jax.jit
def _nearest(batch: jax.Array, centroids: jax.Array) -> jax.Array:
  return jnp.argmin(squared_distances(batch, centroids), axis=-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="num_clusters")
def _cluster_sums(batch: jax.Array, assignment: jax.Array, num_clusters: int) -> jax.Array:
  members = jax.nn.one_hot(assignment, num_clusters, dtype=jnp.float32)  # zeros for padding
  return jnp.einsum("nk,ne->ke", members, batch, precision=jax.lax.Precision.HIGHEST)


def _batches(
  num_examples: int, batch_size: int, steps: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
  """Yields `steps` arrays of row numbers, all of min(batch_size, num_examples) different rows."""
  size = min(batch_size, num_examples)
  order, start = rng.permutation(num_examples), 0
  for _ in range(steps):
    if start + size > num_examples:
      order, start = rng.permutation(num_examples), 0
    yield order[start : start + size]
    start += size


def _padded_size(size: int, batch_size: int) -> int:
  """Rounds a batch up to one of few shapes: thousands of nodes share the compiled steps."""
  shape = _SMALLEST_BATCH_SHAPE
  while shape < size:
    shape *= 2
  return max(size, min(shape, batch_size))


def _check_arguments(
  embeddings: np.ndarray, num_clusters: int, steps: int, batch_size: int, balance: float | None
) -> None:
  if num_clusters < 2 or steps < 1:
    raise InputError(
      f"k-means with {num_clusters} clusters and {steps} steps: set at least 2 clusters and 1 step"
    )
  if balance is not None and balance < 1.0:
    raise InputError(
      f"k-means balance is {balance}: set it to 1.0 or more (paper: 1.5), or to None for no limit"
    )
  if batch_size < num_clusters:
    raise InputError(
      f"k-means batch_size {batch_size} is below {num_clusters} clusters: raise it (paper: 6400)"
    )
  if len(embeddings) < num_clusters:
    raise InputError(
      f"k-means has {len(embeddings)} examples for {num_clusters} clusters: use fewer clusters or more"
      " documents"
    )
  if not np.isfinite(embeddings).all():
    raise InputError("k-means embeddings hold values that are not finite: check the encoder's output")
