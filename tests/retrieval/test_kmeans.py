"""Balanced k-means against FAISS and scikit-learn, the properties of the balance rule, and what a result depends on."""

import faiss
import numpy as np
import pytest
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval import kmeans
from hiermem_jax.retrieval.kmeans import balanced_kmeans, nearest, rebalance


def _nearest(x, centroids):
  return ((x[:, None, :] - centroids[None]) ** 2).sum(-1).argmin(1)


def _inertia(x, centroids):
  return ((x - centroids[_nearest(x, centroids)]) ** 2).sum()


def _unit(x):
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _skewed(rng):
  """Four fifths of the points in one blob, the rest in seven others."""
  sizes = [3200] + [800 // 7] * 7
  points = np.repeat(6 * rng.standard_normal((8, 8)), sizes, axis=0)
  return (points + 0.3 * rng.standard_normal(points.shape)).astype(np.float32)


@pytest.mark.parametrize("balance", [None, 1.5])
@pytest.mark.parametrize("batch_size", [200, 6400])
def test_finds_well_separated_blobs(balance, batch_size):
  rng = np.random.default_rng(0)
  centers = 10 * rng.standard_normal((8, 16))
  x = np.repeat(centers, 100, axis=0) + 0.1 * rng.standard_normal((800, 16))
  found = balanced_kmeans(x.astype(np.float32), 8, batch_size=batch_size, balance=balance, seed=1)
  assert found.shape == (8, 16) and found.dtype == np.float32
  assert sorted(_nearest(centers, found)) == list(range(8))
  np.testing.assert_allclose(found[_nearest(centers, found)], centers, atol=0.2)


@pytest.mark.parametrize("batch_size", [500, 6400])
def test_without_the_rule_inertia_is_near_scikit_learns(batch_size):
  rng = np.random.default_rng(1)
  topics = rng.standard_normal((40, 24))
  x = _unit(topics[rng.integers(40, size=4000)] + 0.7 * rng.standard_normal((4000, 24)))
  best = KMeans(16, n_init=5, random_state=0).fit(x).inertia_
  ours = np.mean([_inertia(x, balanced_kmeans(x, 16, batch_size=batch_size, balance=None, seed=s)) for s in range(3)])
  assert ours < 1.05 * best


@pytest.mark.parametrize("num_clusters", [8, 32])
def test_without_the_rule_inertia_is_near_faiss_s(num_clusters):
  rng = np.random.default_rng(2)
  topics = rng.standard_normal((60, 24))
  x = _unit(topics[rng.integers(60, size=6000)] + 0.7 * rng.standard_normal((6000, 24)))

  def peer(seed):
    model = faiss.Kmeans(24, num_clusters, niter=20, seed=seed, max_points_per_centroid=len(x))
    model.train(x)
    return model.centroids

  ours = np.mean(
    [_inertia(x, balanced_kmeans(x, num_clusters, batch_size=1000, balance=None, seed=s)) for s in range(5)]
  )
  assert ours < 1.02 * np.mean([_inertia(x, peer(s)) for s in range(5)])


def test_the_rule_evens_out_skewed_data():
  x = _skewed(np.random.default_rng(2))

  def largest_share(balance):
    centroids = balanced_kmeans(x, 8, batch_size=1000, balance=balance, seed=0)
    return np.bincount(_nearest(x, centroids), minlength=8).max() / len(x)

  assert largest_share(None) > 0.7
  assert largest_share(1.5) < 0.25


def test_deterministic_per_seed():
  x = np.random.default_rng(3).standard_normal((300, 4)).astype(np.float32)
  one, again, other = (balanced_kmeans(x, 4, batch_size=64, seed=s) for s in (5, 5, 6))
  np.testing.assert_array_equal(one, again)
  assert not np.array_equal(one, other)


def test_one_step_from_one_batch_is_the_mean_of_each_cluster():
  x = np.random.default_rng(4).standard_normal((50, 3)).astype(np.float32)
  one = balanced_kmeans(x, 3, steps=1, balance=None, seed=0)
  # Every example is in exactly one mean, so the means weighted by cluster size give the mean of all;
  # find the sizes by solving for them.
  system = np.vstack([one.T, np.ones(3)])
  sizes, *_ = np.linalg.lstsq(system, np.append(x.sum(0), 50), rcond=None)
  np.testing.assert_allclose(sizes, np.round(sizes), atol=1e-3)
  np.testing.assert_allclose(system @ sizes, np.append(x.sum(0), 50), atol=1e-3)


def test_equal_examples_and_as_many_clusters_as_examples():
  np.testing.assert_array_equal(balanced_kmeans(np.ones((40, 3), np.float32), 4), np.ones((4, 3)))
  x = 10 * np.eye(6, dtype=np.float32)
  found = balanced_kmeans(x, 6)
  np.testing.assert_allclose(found[_nearest(x, found)], x)


@pytest.mark.parametrize("num_examples", [16, 17, 31, 100, 6400])
@pytest.mark.parametrize("share", [None, 1.0 / 16, 1.5 / 16])
def test_rebalance_meets_the_limit_and_leaves_none_empty(num_examples, share):
  rng = np.random.default_rng(num_examples)
  for concentration in (0.05, 1.0):
    before = rng.choice(16, num_examples, p=rng.dirichlet(np.full(16, concentration)))
    after = rebalance(before, 16, share, rng)
    sizes = np.bincount(after, minlength=16)
    assert sizes.sum() == num_examples and sizes.min() >= 1
    if share is not None:
      assert sizes.max() <= max(share * num_examples, -(-num_examples // 16))


def test_rebalance_splits_largest_and_smallest_evenly_and_at_random():
  before = np.repeat([0, 1, 2, 3], [70, 10, 10, 10])
  after = rebalance(before, 4, 0.45, np.random.default_rng(0))
  np.testing.assert_array_equal(np.bincount(after), [40, 40, 10, 10])
  np.testing.assert_array_equal(after[70:], before[70:])  # only the largest cluster gives
  assert np.ptp(np.flatnonzero(after[:70] == 1)) > 40  # from all over it
  np.testing.assert_array_equal(rebalance(before, 4, 0.7, np.random.default_rng(0)), before)


def test_batches_are_fresh_until_the_examples_run_out():
  rng = np.random.default_rng(0)
  batches = list(kmeans._batches(100, 30, 7, rng))
  assert [len(b) for b in batches] == [30] * 7
  assert len(set(np.concatenate(batches[:3]))) == 90
  assert all(len(set(b)) == 30 for b in batches)
  assert [sorted(b) for b in kmeans._batches(5, 30, 2, rng)] == [list(range(5))] * 2


def test_nearest_is_what_float64_finds_however_close():
  rng = np.random.default_rng(5)
  x = _unit(rng.standard_normal((500, 384)))
  base = 0.5 * x[:3]
  step = 10.0 ** -rng.integers(1, 8, size=(40, 1))  # from far apart to the same in float32
  centroids = (base[rng.integers(3, size=40)] + step * rng.standard_normal((40, 384))).astype(np.float32)
  exact = ((x[:, None].astype(np.float64) - centroids[None]) ** 2).sum(-1).argmin(1)
  found = nearest(x, centroids)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize("example_norm, centroid_norm", [(1, 1), (1e4, 10), (10, 1e4)])
def test_no_rounding_of_the_products_changes_the_nearest(example_norm, centroid_norm):
  """Products as wrong as float32 products of E terms may be (Higham 2002, section 3.1), each in the worst direction."""
  rng, eps = np.random.default_rng(8), np.finfo(np.float32).eps
  x = np.float32(example_norm) * _unit(rng.standard_normal((400, 32)))
  apart = 1e-6 * rng.standard_normal((12, 32))
  centroids = (centroid_norm * (_unit(rng.standard_normal((1, 32))) + apart)).astype(np.float32)
  products = x.astype(np.float64) @ centroids.T.astype(np.float64)
  norms = np.square(centroids.astype(np.float64)).sum(axis=1)
  exact = (norms / 2 - products).argmin(axis=1)
  second = np.argsort(norms / 2 - products, axis=1)[:, 1]
  error = 0.9 * 32 * eps / 2 * np.linalg.norm(x, axis=1) * centroid_norm
  products[np.arange(400), exact] -= error
  products[np.arange(400), second] += error
  found = kmeans.nearest_candidate(
    x, centroids, np.zeros(400, np.int32), products.astype(np.float32), norms.astype(np.float32)
  )
  np.testing.assert_array_equal(found, exact)


def test_nearest_takes_the_first_of_equal_centroids():
  x = _unit(np.random.default_rng(6).standard_normal((300, 48)))
  centroids = np.tile(x[:5], (4, 1))
  np.testing.assert_array_equal(nearest(x, centroids), nearest(x, x[:5]))


def test_nearest_does_not_depend_on_the_other_examples():
  rng = np.random.default_rng(7)
  x = _unit(rng.standard_normal((400, 64)))
  centroids = np.repeat(0.3 * x[:8], 4, axis=0) + np.float32(1e-6) * rng.standard_normal((32, 64), np.float32)
  whole = nearest(x, centroids)
  order = rng.permutation(400)
  np.testing.assert_array_equal(nearest(x[order], centroids), whole[order])
  np.testing.assert_array_equal([nearest(x[i : i + 1], centroids)[0] for i in range(400)], whole)
  for threads in (1, 2):
    with threadpool_limits(threads):
      np.testing.assert_array_equal(nearest(x, centroids), whole)


def test_the_number_of_threads_changes_nothing():
  x = _unit(np.random.default_rng(8).standard_normal((3000, 96)))

  def run(threads):
    with threadpool_limits(threads):
      return balanced_kmeans(x, 16, batch_size=1000)

  np.testing.assert_array_equal(run(1), run(2))


def test_balanced_kmeans_leaves_the_number_of_threads_as_it_was():
  with threadpool_limits(2, user_api="blas"):
    before = threadpool_info()
    balanced_kmeans(np.ones((40, 3), np.float32), 4)
    assert [library["num_threads"] for library in threadpool_info()] == [library["num_threads"] for library in before]


def test_float16_examples_count_as_what_they_are_in_float32():
  x = np.random.default_rng(9).standard_normal((300, 8)).astype(np.float16)
  np.testing.assert_array_equal(balanced_kmeans(x, 4), balanced_kmeans(x.astype(np.float32), 4))


@pytest.mark.parametrize(
  "change, names",
  [
    ({"num_clusters": 21}, "20 examples for 21 clusters"),
    ({"batch_size": 3}, "batch_size 3"),
    ({"balance": 0.5}, "balance is 0.5"),
    ({"steps": 0}, "0 steps"),
    ({"num_clusters": 1}, "with 1 clusters"),
  ],
)
def test_input_errors(change, names):
  arguments = {"embeddings": np.ones((20, 2), np.float32), "num_clusters": 4, **change}
  with pytest.raises(InputError, match=names) as error:
    balanced_kmeans(arguments.pop("embeddings"), arguments.pop("num_clusters"), **arguments)
  assert "\n" not in str(error.value)


def test_values_that_are_not_finite():
  x = np.ones((20, 2), np.float32)
  x[3, 1] = np.nan
  with pytest.raises(InputError, match="not finite"):
    balanced_kmeans(x, 4)


def test_an_abandoned_centroid_starts_anew_among_the_examples(monkeypatch):
  places = np.repeat([0.0, 10.0, 20.0], 60)
  x = (places[:, None] + 0.1 * np.random.default_rng(0).standard_normal((180, 2))).astype(np.float32)
  # The examples around 20 are seen once, then never again.
  monkeypatch.setattr(kmeans, "_batches", lambda *_: [np.arange(180), np.arange(120), np.arange(120)])
  found = balanced_kmeans(x, 3, steps=3, balance=None, seed=0)
  np.testing.assert_allclose(np.sort(np.abs(found - 5).mean(1)), [5, 5, 5], atol=0.2)
