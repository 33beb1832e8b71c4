"""`compare`: intervals against textbook formulas and simulation, items of real evaluations, and the verb itself."""

import json
import math
import shutil

import numpy as np
import pytest
from scipy import stats

from hiermem_jax.compare import compare
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.errors import InputError
from hiermem_jax.evaluate import evaluate
from hiermem_jax.evaluation import comparison, items
from hiermem_jax.evaluation.comparison import Measure
from hiermem_jax.evaluation.config import ModelFiles, ScoringConfig


def _measure(values, weights=None, prefix=""):
  weights = np.ones(len(values)) if weights is None else weights
  return Measure.of((f"{prefix}{i}", float(v), float(w)) for i, (v, w) in enumerate(zip(values, weights)))


def test_paired_intervals_are_those_of_the_t_test():
  rng = np.random.default_rng(0)
  a = rng.normal(size=30)
  b = a + rng.normal(0.2, 0.1, size=30)
  found = comparison.difference(_measure(a), _measure(b))
  expected = stats.ttest_rel(b, a).confidence_interval(0.95)
  assert found.paired and (found.items, found.common) == (30, 30)
  assert found.value == pytest.approx((b - a).mean())
  assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_items_are_paired_by_name_not_by_place():
  a = Measure.of([("x", 1.0, 1.0), ("y", 2.0, 1.0), ("x", 5.0, 1.0)])
  b = Measure.of([("y", 3.0, 1.0), ("x", 2.0, 1.0), ("x", 6.0, 1.0)])
  found = comparison.difference(a, b)
  assert found.paired and found.value == pytest.approx(1) and found.high - found.low == pytest.approx(0, abs=1e-9)


def test_different_items_give_an_unpaired_interval():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=50), rng.normal(size=40)
  found = comparison.difference(_measure(a), _measure(b, prefix="other "))
  error = math.sqrt(a.var(ddof=1) / 50 + b.var(ddof=1) / 40)
  assert not found.paired and (found.items, found.common) == (40, 0)
  assert found.high - found.value == pytest.approx(stats.norm.ppf(0.975) * error)
  some = comparison.difference(_measure(a), _measure(a[:40]))  # all of its items are among the other's
  assert not some.paired and some.common == 40


def test_without_errors_there_is_no_interval():
  found = comparison.difference(Measure(value=1.0), Measure(value=3.0, stderr=0.1))
  assert (found.value, found.low, found.high) == (2.0, None, None)


def test_intervals_of_ratios_cover_the_truth():
  """Losses per token of sequences of very different lengths: 95% intervals hold the true difference 95 times in 100."""
  rng, covered = np.random.default_rng(0), 0
  for _ in range(400):
    tokens = rng.integers(5, 100, 60).astype(float)
    base = tokens * rng.normal(3, 0.5, 60)
    other = base + tokens * rng.normal(-0.1, 0.2, 60)
    found = comparison.difference(_measure(base, tokens), _measure(other, tokens))
    covered += found.low <= -0.1 <= found.high
  assert 370 <= covered <= 392


@pytest.fixture(scope="module")
def evaluated(toy_run, tmp_path_factory):
  """Two evaluations of the toy model, one by its fetched memory and a baseline, in run directories with curves."""
  runs = []
  for name in ("a", "b"):
    run_dir = tmp_path_factory.mktemp(name)
    evaluate(
      run_dir=str(toy_run),
      model=ModelFiles(directory="model"),
      baseline="plain",
      probes=JsonlSource(pattern=f"{toy_run}/probes.jsonl", required=("prompt", "answer")),
      buckets=(1, 20),
      modes=("none", "fetched"),
      scoring=ScoringConfig(batch_size=16),
      directory=str(run_dir / "evaluation"),
    )
    lines = [{"step": step, "loss": 5.0 / step + (name == "b"), "loss/validation": 3.0} for step in range(1, 9)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lo')
    runs.append(run_dir)
  return runs


def test_items_add_up_to_the_report(evaluated, toy_run):
  report = json.loads((evaluated[0] / "evaluation/report.json").read_text())
  lines = items.read(str(evaluated[0] / "evaluation"))
  held_out = [line for line in lines if line["set"] == "held_out"]
  dataset = PackedDataset(str(toy_run / "packed/validation"))
  assert len(held_out) == len(dataset) and sum(line["tokens"] for line in held_out) == dataset.manifest.num_tokens
  for series in ("baseline", "none", "fetched"):
    total = sum(line["loss"][series] for line in held_out)
    assert total / dataset.manifest.num_tokens == pytest.approx(report["series"][series]["loss"], rel=1e-6)
  probes = [line for line in lines if line["set"] == "probes"]
  first = [line for line in probes if line["count"] < 20]
  cell = report["series"]["fetched"]["probes"][0]
  assert len(first) == cell["count"] and len(probes) == 12
  assert np.mean([line["correct"]["fetched"] for line in first]) == cell["accuracy"]
  per_byte = np.mean([line["log_likelihood"]["fetched"] / line["bytes"] for line in first])
  assert per_byte == pytest.approx(cell["log_likelihood_per_byte"])


def test_equal_text_has_equal_names_in_any_order(toy_run, tmp_path, write_packed):
  dataset = PackedDataset(str(toy_run / "packed/validation"))
  numbers = np.arange(len(dataset))[::-1]
  leaves, *arrays = dataset.read(numbers)
  fingerprint = dataset.manifest.tokenizer_fingerprint
  other = write_packed(str(tmp_path), zip(leaves * 0, *arrays), num_leaves=4, tokenizer_fingerprint=fingerprint)
  losses = {"none": np.zeros(len(dataset))}
  names = [[line["item"] for line in items.lines(one, losses, [], {})] for one in (dataset, other)]
  assert names[0] == names[1][::-1] and len(set(names[0])) == len(dataset)


def test_compare(evaluated, tmp_path, capsys):
  a, b = map(str, evaluated)
  before = sorted(map(str, evaluated[0].rglob("*")))
  compare(runs=[a, b], configurations=["configuration: one line"], out=str(tmp_path), as_json=False)
  page = capsys.readouterr().out
  assert page.startswith("configuration: one line\n") and "paired, 12 items" in page
  assert "fetched: held-out loss (nats per token)" in page and "fetched: answers correct (%), seen 20+" in page
  report = json.loads((tmp_path / "report.json").read_text())
  for row in report["tables"]["evaluation"]:
    (found,) = row["differences"].values()
    assert found["paired"] and (found["value"], found["low"], found["high"]) == (0, 0, 0)  # the same model
  assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
  assert sorted(map(str, evaluated[0].rglob("*"))) == before


def test_curves_leave_out_a_line_that_is_being_written(evaluated):
  curves = comparison.curves(str(evaluated[1]))
  assert list(curves) == ["."]
  assert curves["."]["loss"] == [(step, 5.0 / step + 1) for step in range(1, 9)]
  assert curves["."]["loss/validation"] == [(step, 3.0) for step in range(1, 9)]


def test_reports_without_items_say_so(evaluated, tmp_path, capsys):
  shutil.copytree(evaluated[0], tmp_path / "old")
  (tmp_path / "old/evaluation/items.jsonl").unlink()
  compare(runs=[str(evaluated[0]), str(tmp_path / "old")], configurations=[], out=str(tmp_path / "out"))
  page = capsys.readouterr().out
  assert "unpaired: no results by item" in page and "unknown" in page and "paired, " not in page


def test_runs_with_nothing_to_compare(tmp_path):
  with pytest.raises(InputError, match="neither metrics.jsonl nor a report.json in them"):
    compare(runs=[str(tmp_path), str(tmp_path)], configurations=[], out=str(tmp_path / "out"))
  assert not (tmp_path / "out").exists()
