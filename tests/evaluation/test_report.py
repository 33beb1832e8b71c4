"""The report: labels, the table, JSON without NaN, and a plot."""

import json

import matplotlib.pyplot as plt
import pytest

from hiermem_jax.evaluation import report as reporting
from hiermem_jax.evaluation.report import bucket_labels, plot, table, with_error, write, write_json

NAN = float("nan")


def cells(*values):
  """Cells of (count, accuracy, log-likelihood per token, its gain over no memory)."""
  result = []
  for count, accuracy, likelihood, gain in values:
    cell = {"count": count, "accuracy": accuracy, "stderr": 0.01}
    cell |= {"log_likelihood_per_token": likelihood, "log_likelihood_per_token_stderr": 0.125}
    cell |= {"log_likelihood_per_byte": likelihood / 4, "log_likelihood_per_byte_stderr": 0.03}
    if gain is not None:
      cell["minus_none"] = {"log_likelihood_per_token": gain, "log_likelihood_per_token_stderr": 0.25}
      cell["minus_none"] |= {"log_likelihood_per_byte": gain / 4, "log_likelihood_per_byte_stderr": NAN}
    result.append(cell)
  return result


@pytest.fixture
def report():
  none = cells((10, 0.125, -3.0, None), (5, 1.0, -2.0, None), (0, NAN, NAN, None))
  fetched = cells((10, 0.5, -1.5, 1.5), (5, 0.999, -2.25, -0.25), (0, NAN, NAN, NAN))
  return {
    "series": {
      "none": {"loss": 1.5, "perplexity": 4.4817, "probes": none},
      "fetched": {"loss": 1.25, "perplexity": 3.4903, "probes": fetched},
      "rank 2": {"probes": fetched},
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


@pytest.mark.parametrize(
  ("value", "error", "text"),
  [(1.5, 0.125, "+1.50 ± 0.12"), (-1.5, NAN, "-1.50"), (-1.5, None, "-1.50"), (NAN, NAN, "–"), (None, None, "–")],
)
def test_numbers_with_errors(value, error, text):
  assert with_error({"x": value, "x_stderr": error}, "x", sign="+") == text


def test_table(report):
  answers, per_token, per_byte = table(report).split("\n\n")
  header, rule, none, fetched, rank, questions = answers.splitlines()
  assert [len(line) for line in (rule, none, fetched, rank, questions)] == [len(header)] * 5
  assert header.split() == ["loss", "perplexity", "seen", "1–3", "seen", "4–15", "seen", "16+"]
  assert none.split()[-5:] == ["1.500", "4.48", "12.5%", "100.0%", "–"]
  assert fetched.split()[-5:] == ["1.250", "3.49", "50.0%", "99.9%", "–"]
  assert rank.split() == ["rank", "2", "–", "–", "50.0%", "99.9%", "–"]
  assert questions.split() == ["questions", "10", "5", "0"]
  header, rule, none, fetched, rank, gain = per_token.splitlines()
  assert header.startswith("log-likelihood of the answer, nats per token") and len(rule) == len(header) == len(gain)
  assert none.split()[-7:] == ["-3.00", "±", "0.12", "-2.00", "±", "0.12", "–"]
  assert gain.split("  ")[0] == "fetched − none, question by question"
  assert gain.split()[-7:] == ["+1.50", "±", "0.25", "-0.25", "±", "0.25", "–"]
  assert per_byte.splitlines()[2].split()[-7:] == ["-0.75", "±", "0.03", "-0.50", "±", "0.03", "–"]
  assert per_byte.splitlines()[-1].split()[-3:] == ["+0.38", "-0.06", "–"]


def test_table_without_probes(report):
  del report["probes"]
  assert [len(line.split()) for line in table(report).splitlines()[2:]] == [6, 4, 4]  # words of the label, two numbers


def test_json_has_null_where_there_is_no_number(report, tmp_path):
  path = tmp_path / "new" / "report.json"
  write_json(report, str(path))

  def refuse(name):
    raise AssertionError(f"{name} is not JSON")

  read = json.loads(path.read_text(), parse_constant=refuse)
  for name in ("none", "fetched"):
    last = read["series"][name]["probes"][-1]
    assert (last["count"], last["accuracy"], last["log_likelihood_per_token"]) == (0, None, None)
  first = report["series"]["fetched"]["probes"][0]
  assert read["series"]["fetched"]["probes"][0]["accuracy"] == first["accuracy"]
  gain = first["minus_none"] | {"log_likelihood_per_byte_stderr": None}
  assert read["series"]["fetched"]["probes"][0]["minus_none"] == gain
  assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


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


@pytest.fixture
def draw(tmp_path, monkeypatch):
  """Draws a report and gives the figure."""
  figures = []

  def call(report):
    monkeypatch.setattr(reporting, "write_figure", lambda figure, path: figures.append(figure))
    plot(report, str(tmp_path / "report.png"), "title")
    return figures[-1]

  yield call
  plt.close("all")


def test_bars_show_percents_around_their_bucket(report, draw):
  accuracy, likelihood, perplexity = draw(report).axes
  groups = {group.get_label(): group for group in accuracy.containers if hasattr(group, "patches")}
  heights = {name: [bar.get_height() for bar in group][:2] for name, group in groups.items()}
  assert list(heights.values()) == [pytest.approx([12.5, 100.0]), *[pytest.approx([50.0, 99.9])] * 2]
  first, middle, last = ([bar.get_x() + bar.get_width() / 2 for bar in group] for group in groups.values())
  assert middle == pytest.approx([0, 1, 2])
  assert [low + high for low, high in zip(first, last)] == pytest.approx([0, 2, 4])
  assert [bar.get_height() for bar in likelihood.containers[1]][:2] == pytest.approx([-3.0, -2.0])
  assert [bar.get_height() for bar in perplexity.containers[0]] == pytest.approx([4.4817, 3.4903])


@pytest.mark.parametrize(
  "low, high, bottom", [(20.0, 28.0, 18.0), (20.0, 31.0, 0.0), (1.0, 1.2, 0.9), (1.0, 2.4, 0.0), (10, 15, 9.0)]
)
def test_an_axis_that_does_not_start_at_zero_says_so(report, draw, low, high, bottom):
  """Perplexities that differ by half or less are enlarged."""
  del report["probes"]
  report["series"] = {"none": {"loss": 1.0, "perplexity": high}, "fetched": {"loss": 1.0, "perplexity": low}}
  figure = draw(report)
  (axis,) = figure.axes
  assert axis.get_ylim()[0] == pytest.approx(bottom) and axis.get_ylim()[1] > high
  assert ("does not start at 0" in axis.get_ylabel()) == (bottom > 0)
  assert not axis.spines["top"].get_visible() and tuple(figure.get_size_inches()) == (5.5, 4.0)


def test_all_that_is_written(report, tmp_path, capsys):
  lines = [{"prompt": "é", "level": 1}]
  write(report, lines, str(tmp_path / "evaluation"), "title")
  names = {entry.name for entry in (tmp_path / "evaluation").iterdir()}
  assert names == {"report.json", "report.png", "attribution.jsonl"}
  assert json.loads((tmp_path / "evaluation/attribution.jsonl").read_text()) == lines[0]
  assert table(report) in capsys.readouterr().out
  assert not plt.get_fignums()  # a figure that stays open is memory that stays in use
