r"""Balanced k-means, the tree and the descent, beside FAISS, scikit-learn and brute force.

  python experiments/benchmarks/kmeans.py [--quick] [--json]
  python experiments/benchmarks/kmeans.py --embeddings=minilm.npy     # float [n, E], each of unit norm

Four measurements, all on the host's CPU. Nothing is compiled; what is timed takes turns, and the first turn warms up.

clustering   For each of `--clusters` and over `--seeds` seeds: the sum of squared distances to the nearest centroid
             over all examples, without the balance rule. `inertia_ratio` is the mean of ours after 20 steps of 6,400
             examples over that of `faiss.Kmeans(niter=20)`, which sees all examples in each of its 20 iterations
             (by default FAISS takes 256 a cluster, a weaker peer: `faiss_default`).
time         The same for scikit-learn's `MiniBatchKMeans` (batches of 6,400, one start among 6,400 examples). Both
             sides take the fewest steps that bring their mean inertia within 0.5% of the better one's after 20, and
             `time_ratio` is our median time over theirs; `time_ratio_20_steps` is that of 20 steps on either side.
leaves       `largest_over_mean_leaf` of a tree of `--leaf_branching` and depth 4 over all examples, with the rule and
             without it. The paper's 65,536 leaves would get three examples each of the default 200,000, so by default
             it is 8 ways.
descent      Through a tree of 16^4 leaves grown on all but the queries: `descent_speedup` is the time in which a
             matrix product and argmin over all leaves find the nearest leaf of the queries over that of
             `ClusterTree.assign`; `nearest_leaf_share` is how often both find the same.

The headline ratios are those of the first of `--clusters`. Without `--embeddings` the examples are random: a nested
mixture, 16 ways and 4 levels deep with uneven weights, on the unit sphere.
"""

import argparse
import json
import statistics
import sys
import time

import numpy as np
from common import in_turns, require_positive, table

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.build import TreeConfig, build_tree, level_report
from hiermem_jax.retrieval.kmeans import balanced_kmeans
from hiermem_jax.retrieval.tree import ClusterTree

BATCH = 6400
STEPS = (2, 3, 5, 7, 10, 14, 20, 40)
PAPER_STEPS = 20
CLUSTER_COLUMNS = ["clusters", "ours", "faiss", "faiss_default", "scikit_learn", "inertia_ratio", "ours_steps"]
CLUSTER_COLUMNS += ["ours_ms", "scikit_learn_steps", "scikit_learn_ms", "time_ratio", "time_ratio_20_steps"]


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--embeddings", help="a .npy file; by default random examples")
  parser.add_argument("--count", type=int, default=200_000, help="examples, at most")
  parser.add_argument("--clusters", type=int, nargs="+", default=[16, 256])
  parser.add_argument("--seeds", type=int, default=10)
  parser.add_argument("--leaf_branching", type=int, default=8)
  parser.add_argument("--branching", type=int, default=16, help="of the tree that is descended; its depth is 4")
  parser.add_argument("--queries", type=int, default=4096)
  parser.add_argument("--rounds", type=int, default=7, help="of the descent")
  parser.add_argument("--quick", action="store_true", help="100,000 examples at most, the first of --clusters, 4 seeds")
  parser.add_argument("--json", action="store_true", help="print JSON")
  flags = parser.parse_args(argv)
  require_positive(flags, "count", "seeds", "leaf_branching", "branching", "queries", "rounds")
  if flags.quick:
    flags.count, flags.clusters, flags.seeds = min(flags.count, 100_000), flags.clusters[:1], min(flags.seeds, 4)
    flags.queries, flags.rounds = min(flags.queries, 1024), 3
  return flags


def examples(flags: argparse.Namespace) -> np.ndarray:
  """What is clustered: float32 [n, E], in a random order."""
  if flags.embeddings is None:
    return nested_mixture(flags.count)
  try:
    loaded = np.load(flags.embeddings, mmap_mode="r")
  except (OSError, ValueError) as error:
    raise InputError(f"--embeddings={flags.embeddings}: cannot be read ({error}); give a .npy file") from error
  if loaded.ndim != 2:
    raise InputError(f"--embeddings={flags.embeddings}: shape {loaded.shape}; give one row for each example, [n, E]")
  chosen = np.random.default_rng(0).permutation(len(loaded))[: flags.count]
  return loaded[chosen].astype(np.float32)


def nested_mixture(count: int, width: int = 384, branching: int = 16, seed: int = 0) -> np.ndarray:
  """Unit vectors around random topics within topics, some much more frequent than others: float32 [count, width]."""
  rng = np.random.default_rng(seed)
  topic, x = np.zeros(count, np.int64), 0.5 * rng.standard_normal((count, width), np.float32)
  for spread in (0.6, 0.5, 0.4, 0.35):
    topic = topic * branching + (rng.beta(0.5, 1, count) * branching).astype(np.int64)
    topics, which = np.unique(topic, return_inverse=True)
    x += spread * rng.standard_normal((len(topics), width), np.float32)[which]
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def inertia(x: np.ndarray, centroids: np.ndarray) -> float:
  """Sum of the squared distances of all examples to their nearest centroids."""
  centroid_norms, total = np.einsum("ke,ke->k", centroids, centroids), 0.0
  for start in range(0, len(x), 8192):
    rows = x[start : start + 8192]
    distances = np.einsum("ne,ne->n", rows, rows) + (centroid_norms - 2 * rows @ centroids.T).min(axis=1)
    total += float(distances.sum(dtype=np.float64))
  return total


def measure_clustering(x: np.ndarray, num_clusters: int, num_seeds: int) -> dict:
  """Inertia of all and times of the two mini-batch methods at one number of clusters."""
  import faiss
  from sklearn.cluster import MiniBatchKMeans

  def ours(rows, steps, seed):
    return balanced_kmeans(rows, num_clusters, steps=steps, batch_size=BATCH, balance=None, seed=seed)

  def scikit_learn(rows, _, seed):
    model = MiniBatchKMeans(
      num_clusters,
      batch_size=BATCH,
      init_size=BATCH,
      n_init=1,
      max_iter=1,  # one pass over the examples, which makes as many steps as there are batches
      max_no_improvement=None,
      compute_labels=False,
      random_state=seed,
    )
    return model.fit(rows).cluster_centers_

  def faiss_kmeans(seed, **settings):
    model = faiss.Kmeans(x.shape[1], num_clusters, niter=20, seed=seed, **settings)
    model.train(x)
    return model.centroids

  inertias = {(name, steps): [] for name in ("ours", "scikit_learn") for steps in STEPS}
  times = {key: [] for key in inertias}
  full, sampled = [], []
  for seed in range(-1, num_seeds):  # the first turn warms up
    order = np.random.default_rng(abs(seed)).permutation(len(x))
    for steps in STEPS:
      rows = x[np.resize(order, steps * BATCH)]
      for name, run in (("ours", ours), ("scikit_learn", scikit_learn)):
        start = time.perf_counter()
        centroids = run(rows, steps, abs(seed))
        if seed >= 0:
          times[name, steps].append(1e3 * (time.perf_counter() - start))
          inertias[name, steps].append(inertia(x, centroids))
    if seed >= 0:
      full.append(inertia(x, faiss_kmeans(seed, max_points_per_centroid=len(x))))
      sampled.append(inertia(x, faiss_kmeans(seed)))
  means = {key: statistics.fmean(values) for key, values in inertias.items()}
  medians = {key: statistics.median(values) for key, values in times.items()}
  enough = 1.005 * min(means["ours", PAPER_STEPS], means["scikit_learn", PAPER_STEPS])
  ours_steps, peer_steps = (
    next((steps for steps in STEPS if means[name, steps] <= enough), STEPS[-1]) for name in ("ours", "scikit_learn")
  )
  ours_ms, peer_ms = medians["ours", ours_steps], medians["scikit_learn", peer_steps]
  return {
    "clusters": num_clusters,
    "ours": means["ours", PAPER_STEPS],
    "faiss": statistics.fmean(full),
    "faiss_default": statistics.fmean(sampled),
    "scikit_learn": means["scikit_learn", PAPER_STEPS],
    "inertia_ratio": means["ours", PAPER_STEPS] / statistics.fmean(full),
    "ours_steps": ours_steps,
    "ours_ms": ours_ms,
    "scikit_learn_steps": peer_steps,
    "scikit_learn_ms": peer_ms,
    "time_ratio": ours_ms / peer_ms,
    "time_ratio_20_steps": medians["ours", PAPER_STEPS] / medians["scikit_learn", PAPER_STEPS],
    "by_steps": [
      {"method": name, "steps": steps, "inertia": means[name, steps], "ms": medians[name, steps]}
      for name, steps in means
    ],
  }


def measure_leaves(x: np.ndarray, branching: int) -> list[dict]:
  """Sizes of the leaves of trees of depth 4, with the balance rule and without it."""
  rows = []
  for balance in (1.5, None):
    tree = build_tree(x, config=TreeConfig(branching=branching, depth=4, balance=balance), encoder_fingerprint="")
    sizes = np.bincount(tree.assign(x), minlength=tree.num_leaves)
    rows.append({"balance": str(balance), **level_report(sizes, branching)})
  return rows


def measure_descent(x: np.ndarray, queries: np.ndarray, branching: int, rounds: int) -> dict:
  """The descent against a comparison with all leaves."""
  # Few steps: how good the centroids are does not change the time, and the nodes of the last level are small.
  tree = build_tree(x, config=TreeConfig(branching=branching, depth=4, steps=5), encoder_fingerprint="")
  times = in_turns({"descent": lambda: tree.assign(queries), "brute": lambda: nearest_leaves(tree, queries)}, rounds)
  leaves = tree.centroids[-1]
  # By centroid, as a small node's missing children repeat its first one.
  same = (leaves[tree.assign(queries)] == leaves[nearest_leaves(tree, queries)]).all(axis=1)
  return {
    "leaves": tree.num_leaves,
    "queries": len(queries),
    "descent_ms": times["descent"],
    "brute_ms": times["brute"],
    "descent_speedup": times["brute"] / times["descent"],
    "nearest_leaf_share": float(same.mean()),
  }


def nearest_leaves(tree: ClusterTree, queries: np.ndarray) -> np.ndarray:
  """The nearest of all leaves by brute force: int [n]."""
  leaves = tree.centroids[-1]
  norms = np.einsum("ne,ne->n", leaves, leaves) / 2
  found = [(norms - queries[start : start + 256] @ leaves.T).argmin(axis=1) for start in range(0, len(queries), 256)]
  return np.concatenate(found)


def measure(flags: argparse.Namespace) -> dict:
  """All four measurements."""
  x = examples(flags)
  smallest = max(flags.branching**4 + flags.queries, flags.leaf_branching**4, *flags.clusters)
  if len(x) < smallest:
    raise InputError(
      f"{len(x)} examples are too few for these trees, clusters and queries: give {smallest}, or a lower --branching"
    )
  clustering = [measure_clustering(x, k, flags.seeds) for k in flags.clusters]
  leaves = measure_leaves(x, flags.leaf_branching)
  descent = measure_descent(x[flags.queries :], x[: flags.queries], flags.branching, flags.rounds)
  return {
    "inertia_ratio": clustering[0]["inertia_ratio"],
    "time_ratio": clustering[0]["time_ratio"],
    "descent_speedup": descent["descent_speedup"],
    "nearest_leaf_share": descent["nearest_leaf_share"],
    "largest_over_mean_leaf": leaves[0]["largest_over_mean"],
    "examples": list(x.shape),
    "clustering": clustering,
    "leaves": leaves,
    "descent": descent,
  }


def main(argv: list[str]) -> int:
  """Prints the report; 2 and one line on bad input."""
  try:
    flags = parse(argv)
    report = measure(flags)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  if flags.json:
    print(json.dumps(report, indent=2))
    return 0
  print(table(CLUSTER_COLUMNS, report["clustering"]), end="\n\n")
  print(table(list(report["leaves"][0]), report["leaves"]), end="\n\n")
  print(table(list(report["descent"]), [report["descent"]]))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
