"""Balanced mini-batch k-means: one node's split of the cluster tree (paper, Appendix C).

EM on fresh mini-batches from a k-means++ start. Where the paper is silent: the start is
chosen among the first batch, a centroid is the running mean over the examples it has
seen, an empty cluster is refilled by the same split that keeps clusters balanced.

All of it runs on one core of the host: a batch of 6,400 examples is a few milliseconds of
BLAS, and the tree's 4,369 nodes can be split by as many workers as there are.
"""

import math
from collections.abc import Iterator

import numpy as np
from threadpoolctl import ThreadpoolController

from hiermem_jax.errors import InputError

# Keeps numpy's BLAS to one thread within a function: on matrices this small, threads mostly wait for each other.
one_thread = ThreadpoolController().wrap(limits=1, user_api="blas")
_CLOSE_PAIRS = 4096  # compared in float64 at a time


@one_thread
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
    embeddings: float32 or float16 [n, E]; the arithmetic is float32 either way.
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
      example, of those in a batch, that is not finite.
  """
  from scipy.sparse import csr_array
  from sklearn.cluster import kmeans_plusplus

  _check_arguments(len(embeddings), num_clusters, steps, batch_size, balance)
  rng = np.random.default_rng(seed)
  limit = None if balance is None else balance / num_clusters
  centroids, received = None, np.zeros(num_clusters)
  for rows in _batches(len(embeddings), batch_size, steps, rng):
    batch = embeddings.take(rows, axis=0).astype(np.float32, copy=False)
    if not np.isfinite(batch).all():
      raise InputError("k-means embeddings hold values that are not finite: check the encoder's output")
    if centroids is None:
      # In float64, which is what scikit-learn computes in: it would convert float32 anew for every centroid.
      centroids, _ = kmeans_plusplus(batch.astype(np.float64), num_clusters, random_state=int(rng.integers(2**31)))
    closest = nearest(batch, centroids.astype(np.float32))
    received[np.bincount(closest, minlength=num_clusters) == 0] = 0  # an abandoned centroid starts anew
    assignment = rebalance(closest, num_clusters, limit, rng)
    added = np.bincount(assignment, minlength=num_clusters)
    # One-hot rows: their sparse product adds up the examples of each cluster, one after the other.
    ones = np.ones(len(rows), np.float32)
    one_hot = csr_array((ones, assignment, np.arange(len(rows) + 1)), shape=(len(rows), num_clusters))
    # rebalance leaves no cluster empty, so the divisor is at least one.
    centroids = (centroids * received[:, None] + one_hot.T @ batch) / (received + added)[:, None]
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


def nearest(examples: np.ndarray, centroids: np.ndarray) -> np.ndarray:
  """Each example's nearest centroid by L2, the first one on a tie; see `nearest_candidate`.

  Args:
    examples: float32 [n, E].
    centroids: float32 [k, E].

  Returns:
    int32 [n].
  """
  norms = np.einsum("ke,ke->k", centroids, centroids)
  return nearest_candidate(examples, centroids, np.zeros(len(examples), np.int32), examples @ centroids.T, norms)


def nearest_candidate(
  examples: np.ndarray, centroids: np.ndarray, first: np.ndarray, products: np.ndarray, norms: np.ndarray
) -> np.ndarray:
  """The nearest by L2 of k centroids in a row, for each example its own k; the first one on a tie.

  How a matrix product rounds depends on the other rows and on the number of threads. So where the float32 product
  leaves it open which centroid is nearer, float64 decides, pair by pair: an example's answer is its own.

  Args:
    examples: float32 [n, E].
    centroids: float32 [c, E].
    first: int [n], the candidates of example i are the centroids from first[i] to first[i] + k - 1.
    products: float32 [n, k], of the examples with their candidates.
    norms: float32 [k] or [n, k], squared norms of the candidates.

  Returns:
    int32 [n], numbers of the candidates, from 0 to k - 1.
  """
  # Half the squared distances, less the examples' own norms, which do not change the order.
  scores = norms / 2 - products
  best = scores.argmin(axis=1).astype(np.int32)
  # A product of E terms is off by at most E * eps / 2 times both norms, whatever the order of the sum (Higham 2002,
  # section 3.1). Twice the bound for the difference of two scores, as the norms are rounded as well.
  largest = norms.max(axis=-1)
  example_norms = np.einsum("ne,ne->n", examples, examples)
  rounding = 2 * (examples.shape[1] + 1) * np.finfo(np.float32).eps * (np.sqrt(example_norms * largest) + largest / 2)
  close = scores <= (scores[np.arange(len(scores)), best] + rounding)[:, None]
  open_rows = np.flatnonzero(np.count_nonzero(close, axis=1) > 1)
  rows, columns = np.nonzero(close[open_rows])
  distances = np.full((len(open_rows), scores.shape[1]), np.inf)
  for start in range(0, len(rows), _CLOSE_PAIRS):
    row, column = rows[start : start + _CLOSE_PAIRS], columns[start : start + _CLOSE_PAIRS]
    example = open_rows[row]
    apart = examples[example].astype(np.float64) - centroids[first[example] + column]
    distances[row, column] = np.square(apart).sum(axis=1)
  best[open_rows] = distances.argmin(axis=1)
  return best


def _batches(num_examples: int, batch_size: int, steps: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
  """Yields `steps` arrays of row numbers, all of min(batch_size, num_examples) different rows."""
  size = min(batch_size, num_examples)
  order, start = rng.permutation(num_examples), 0
  for _ in range(steps):
    if start + size > num_examples:
      order, start = rng.permutation(num_examples), 0
    yield order[start : start + size]
    start += size


def _check_arguments(num_examples: int, num_clusters: int, steps: int, batch_size: int, balance: float | None) -> None:
  if num_clusters < 2 or steps < 1:
    raise InputError(f"k-means with {num_clusters} clusters and {steps} steps: set at least 2 clusters and 1 step")
  if balance is not None and balance < 1.0:
    raise InputError(f"k-means balance is {balance}: set it to 1.0 or more (paper: 1.5), or to None for no limit")
  if batch_size < num_clusters:
    raise InputError(f"k-means batch_size {batch_size} is below {num_clusters} clusters: raise it (paper: 6400)")
  if num_examples < num_clusters:
    raise InputError(
      f"k-means has {num_examples} examples for {num_clusters} clusters: use fewer clusters or more documents"
    )
