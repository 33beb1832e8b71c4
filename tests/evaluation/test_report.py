"""The report: labels, the table, JSON without NaN, and a plot."""

import json

import pytest

from hiermem_jax.evaluation.report import bucket_labels, plot, table, write_json


def cells(*values):
  return [{"count": count, "accuracy": accuracy, "stderr": 0.01} for count, accuracy in values]


@pytest.fixture
def report():
  nan = float("nan")
  return {
    "series": {
      "baseline": {"loss": 1.5, "perplexity": 4.4817, "probes": cells((10, 0.125), (5, 1.0), (0, nan))},
      "fetched": {"loss": 1.25, "perplexity": 3.4903, "probes": cells((10, 0.5), (5, 0.999), (0, nan))},
    },
    "probes": {"buckets": bucket_labels([1, 4, 16])},
  }


@pytest.mark.parametrize(
  ("buckets", "labels"),
  [
    ([1, 4, 16], ["1–3", "4–15", "16+"]),
    ([1, 2, 3], ["1", "2", "3+"]),
    ([5], ["5+"]),
  ],
)
def test_bucket_labels(buckets, labels):
  assert bucket_labels(buckets) == labels


def test_table(report):
  header, rule, baseline, fetched, questions = table(report).splitlines()
  assert [len(line) for line in (rule, baseline, fetched, questions)] == [len(header)] * 4
  assert header.split() == ["loss", "perplexity", "seen", "1–3", "seen", "4–15", "seen", "16+"]
  assert baseline.split()[-5:] == ["1.500", "4.48", "12.5%", "100.0%", "–"]
  assert fetched.split()[-5:] == ["1.250", "3.49", "50.0%", "99.9%", "–"]
  assert questions.split() == ["questions", "10", "5", "0"]


def test_table_without_probes(report):
  del report["probes"]
  assert [len(line.split()) for line in table(report).splitlines()[2:]] == [7, 4]  # words of the label, two numbers


def test_json_has_null_where_there_is_no_number(report, tmp_path):
  path = tmp_path / "report.json"
  write_json(report, str(path))

  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  read = json.loads(path.read_text(), parse_constant=refuse)
  for name in ("baseline", "fetched"):
    last = report["series"][name]["probes"][-1]
    assert read["series"][name]["probes"][-1] == {**last, "accuracy": None}
    read["series"][name]["probes"][-1] = last
  assert read == report
  assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("with_probes", [True, False])
def test_plot(report, tmp_path, with_probes):
  if not with_probes:
    del report["probes"]
  path = tmp_path / "report.png"
  plot(report, str(path), "title")
  image = path.read_bytes()
  assert image.startswith(b"\x89PNG\r\n\x1a\n")
  width, height = (int.from_bytes(image[start : start + 4]) for start in (16, 20))
  assert width > 600
  assert height > 400
  assert [entry.name for entry in tmp_path.iterdir()] == ["report.png"]
