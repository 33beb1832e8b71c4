"""Balanced mini-batch k-means, which splits one node of the cluster tree (paper, Appendix C).

It is EM on mini-batches, started by k-means++. The paper does not say the following, which is
our choice: k-means++ chooses among the first batch; a centroid is the running mean of the
examples that it has received; an empty cluster is filled by the same split that balances sizes.

It runs on one core: a batch of 6,400 examples takes a few milliseconds of BLAS, and the 4,369
nodes of the paper's tree can be split in parallel by as many workers as there are.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from hiermem_jax.errors import InputError

# Limits numpy's BLAS to one thread within a function: on small matrices, threads mostly wait for each other.
one_thread = ThreadpoolController().wrap(limits=1, user_api="blas")
_CLOSE_PAIRS = 4096  # pairs of example and centroid that are compared in float64 at a time


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
  """Finds k centroids of the examples.

  Each step does the following with one batch.

  1. Every example goes to its nearest centroid (L2): int32 [b].
  2. Examples move from the largest clusters to the smallest ones (see `rebalance`): int32 [b].
  3. Each centroid becomes the mean of all examples that it has received in this and earlier
     steps: float32 [k, E].

  Batches are taken from a random order of the examples, one after the other; when it runs out,
  another order is drawn. With at most `batch_size` examples, every batch is all of them. Balance
  acts on the centroids only: afterwards, an example belongs to its nearest centroid.

  Args:
    embeddings: float32 or float16 [n, E]; all arithmetic is in float32.
    num_clusters: k.
    steps: EM steps.
    batch_size: examples per step. k-means++ chooses among as many examples.
    balance: largest size of a cluster within a batch, in multiples of the mean size; None
      for no limit. The paper's limit is 0.094 of the batch, which is 1.5 at k = 16.
    seed: of all random choices.

  Returns:
    float32 [k, E]; the same for the same arguments on one platform. The centroids are means of
    unit vectors, so their norms are at most 1.

  Raises:
    InputError: there are fewer examples than clusters; a setting is out of range; an example is
      not finite.
  """
  from scipy.sparse import csr_array
  from sklearn.cluster import kmeans_plusplus

  _check_arguments(len(embeddings), num_clusters, steps, batch_size, balance)
  rng = np.random.default_rng(seed)
  limit = None if balance is None else balance / num_clusters
  centroids: Any = None
  received = np.zeros(num_clusters)  # examples behind each centroid
  for chosen in _batches(len(embeddings), batch_size, steps, rng):
    batch = embeddings.take(chosen, axis=0).astype(np.float32, copy=False)
    if not np.isfinite(batch).all():
      raise InputError("k-means embeddings hold values that are not finite: check the encoder's output")
    if centroids is None:
      # scikit-learn computes in float64 and would convert a float32 batch once per centroid.
      centroids, _ = kmeans_plusplus(batch.astype(np.float64), num_clusters, random_state=int(rng.integers(2**31)))
    closest = nearest(batch, centroids.astype(np.float32))
    received[np.bincount(closest, minlength=num_clusters) == 0] = 0  # a centroid without examples starts anew
    assignment = rebalance(closest, num_clusters, limit, rng)
    added = np.bincount(assignment, minlength=num_clusters)
    # Sums of the examples of each cluster, as a product with the sparse one-hot matrix of the assignment [b, k].
    ones = np.ones(len(batch), np.float32)
    one_hot = csr_array((ones, assignment, np.arange(len(batch) + 1)), shape=(len(batch), num_clusters))
    # The divisor is at least one, because `rebalance` leaves no cluster empty.
    centroids = (centroids * received[:, None] + one_hot.T @ batch) / (received + added)[:, None]
    received += added
  return centroids.astype(np.float32)


def rebalance(
  assignment: np.ndarray, num_clusters: int, max_share: float | None, rng: np.random.Generator
) -> np.ndarray:
  """Moves examples from the largest cluster to the smallest one until none is too large and none is empty.

  A move takes random examples of the largest cluster and gives them to the smallest, so that
  both are of equal size; an odd example stays with the larger (after Jegou et al. 2010). Moves
  are repeated until the largest cluster is within the limit and the smallest is not empty.

  Args:
    assignment: int [n], cluster of each example of the batch; n >= num_clusters.
    num_clusters: k.
    max_share: largest share of the batch that a cluster may hold; None for no limit. A limit
      below the even share counts as the even share.
    rng: makes the random choices.

  Returns:
    int32 [n], the new assignment.
  """
  assignment = assignment.astype(np.int32)
  sizes = np.bincount(assignment, minlength=num_clusters)
  limit = math.inf
  if max_share is not None:
    limit = max(max_share * len(assignment), math.ceil(len(assignment) / num_clusters))
  # Every move lowers the sum of the squared sizes, so this ends.
  while sizes.max() > limit or sizes.min() == 0:
    largest, smallest = int(sizes.argmax()), int(sizes.argmin())
    moved = (sizes[largest] - sizes[smallest]) // 2
    chosen = rng.choice(np.flatnonzero(assignment == largest), moved, replace=False)
    assignment[chosen] = smallest
    sizes[largest] -= moved
    sizes[smallest] += moved
  return assignment


def nearest(examples: np.ndarray, centroids: np.ndarray) -> np.ndarray:
  """The nearest centroid of each example by L2; the first one on a tie. See `nearest_candidate`.

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
  """The nearest of each example's own k candidates by L2; the first one on a tie.

  The result for an example does not depend on the other examples. This needs care, because the rounding errors of a
  matrix product depend on its shape and on the number of threads. Where the float32 products of two candidates are too
  close to tell which is nearer, their distances are computed again in float64, for each pair alone.

  Args:
    examples: float32 [n, E].
    centroids: float32 [c, E].
    first: int [n]. The candidates of example i are the centroids from first[i] to first[i] + k - 1.
    products: float32 [n, k], dot products of the examples with their candidates.
    norms: float32 [k] or [n, k], squared norms of the candidates.

  Returns:
    int32 [n], the candidate's number, from 0 to k - 1.
  """
  # Half the squared distances, without the norms of the examples, which do not change the order.
  scores = norms / 2 - products
  best = scores.argmin(axis=1).astype(np.int32)
  # The error of a dot product of E terms is at most E * eps / 2 times both norms, in whatever order the terms are added
  # (Higham 2002, section 3.1). `rounding` is twice that bound for the difference of two scores, because the norms have
  # errors too.
  largest = norms.max(axis=-1)
  example_norms = np.einsum("ne,ne->n", examples, examples)
  rounding = 2 * (examples.shape[1] + 1) * np.finfo(np.float32).eps * (np.sqrt(example_norms * largest) + largest / 2)
  close = scores <= (scores[np.arange(len(scores)), best] + rounding)[:, None]
  undecided = np.flatnonzero(np.count_nonzero(close, axis=1) > 1)
  numbers, candidates = np.nonzero(close[undecided])
  distances = np.full((len(undecided), scores.shape[1]), np.inf)
  for start in range(0, len(numbers), _CLOSE_PAIRS):
    number, candidate = numbers[start : start + _CLOSE_PAIRS], candidates[start : start + _CLOSE_PAIRS]
    example = undecided[number]
    difference = examples[example].astype(np.float64) - centroids[first[example] + candidate]
    distances[number, candidate] = np.square(difference).sum(axis=1)
  best[undecided] = distances.argmin(axis=1)
  return best


def _batches(num_examples: int, batch_size: int, steps: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
  """Yields the numbers of the examples of each step's batch: `steps` arrays of min(batch_size, num_examples)."""
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
