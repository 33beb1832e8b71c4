"""The clustering benchmark at a tiny size."""

import json

import numpy as np
import pytest

_SCRIPT = "benchmarks/kmeans"
_SMALL = ["--leaf_branching=3", "--branching=3", "--queries=50", "--rounds=1", "--seeds=1"]


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
  path = tmp_path_factory.mktemp("embeddings") / "blobs.npy"
  rng = np.random.default_rng(0)
  x = 10 * np.repeat(np.eye(4, 6), 100, axis=0) + 0.1 * rng.standard_normal((400, 6))
  np.save(path, (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16))
  return path


def test_all_find_the_blobs_and_the_report_adds_up(run, embeddings):
  done = run(_SCRIPT, f"--embeddings={embeddings}", "--clusters", "4", "8", *_SMALL, "--json")
  assert done.returncode == 0, done.err
  report = json.loads(done.out)
  assert report["examples"] == [400, 6]
  four, eight = report["clustering"]
  assert four["clusters"] == 4 and eight["clusters"] == 8
  x = np.load(embeddings).astype(np.float64)
  best = sum(((x[start : start + 100] - x[start : start + 100].mean(0)) ** 2).sum() for start in range(0, 400, 100))
  assert four["ours"] == pytest.approx(best, rel=1e-3)  # k-means++ cannot miss blobs so far apart
  assert four["scikit_learn"] == pytest.approx(best, rel=0.1)  # it draws with replacement
  for row in (four, eight):
    assert row["inertia_ratio"] == pytest.approx(row["ours"] / row["faiss"])
    assert row["time_ratio"] == pytest.approx(row["ours_ms"] / row["scikit_learn_ms"])
    chosen = [one for one in row["by_steps"] if (one["method"], one["steps"]) == ("ours", row["ours_steps"])]
    assert [one["ms"] for one in chosen] == [row["ours_ms"]]
  with_rule, without = report["leaves"]
  assert with_rule["clusters"] == without["clusters"] == 81 and with_rule["mean"] == pytest.approx(400 / 81)
  assert report["largest_over_mean_leaf"] == with_rule["largest_over_mean"]
  descent = report["descent"]
  assert descent["leaves"] == 81 and descent["queries"] == 50
  assert 0 < report["nearest_leaf_share"] <= 1
  assert report["descent_speedup"] == pytest.approx(descent["brute_ms"] / descent["descent_ms"])


def test_quick_as_tables(run, embeddings):
  done = run(_SCRIPT, f"--embeddings={embeddings}", "--clusters", "4", "8", *_SMALL, "--quick")
  assert done.returncode == 0, done.err
  clustering, leaves, descent = done.out.split("\n\n")
  assert len(clustering.splitlines()) == 2 and clustering.split()[0] == "clusters"  # the first of --clusters only
  assert len(leaves.splitlines()) == 3 and len(descent.splitlines()) == 2


@pytest.mark.parametrize(
  "flags, names",
  [
    (["--seeds=0"], "--seeds=0"),
    (["--embeddings=nowhere.npy"], "nowhere.npy: cannot be read"),
    (["--count=100"], "100 examples are too few"),
  ],
)
def test_bad_input_is_one_line(run, flags, names):
  done = run(_SCRIPT, *flags)
  assert done.returncode == 2
  last = done.err.strip().splitlines()[-1]
  assert last.startswith("error: ") and names in last


def test_embeddings_that_are_not_rows(run, tmp_path):
  np.save(tmp_path / "flat.npy", np.ones(5))
  done = run(_SCRIPT, f"--embeddings={tmp_path}/flat.npy")
  assert done.returncode == 2 and "give one row for each example" in done.err
