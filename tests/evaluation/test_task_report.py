"""The page and the picture of a report on tasks, made by hand: what is said, and where the bars stand."""

import copy

import matplotlib.pyplot as plt
import pytest

from hiermem_jax.evaluation import task_report

LIKELIHOODS = {
  f"log_likelihood_per_{unit}{suffix}": value
  for unit in ("token", "byte")
  for suffix, value in (("", -2.0), ("_stderr", 0.5))
}


def cell(accuracy, gain=None):
  result = {"count": 8, "accuracy": accuracy, "stderr": 0.125} | LIKELIHOODS
  return result if gain is None else result | {"minus_none": LIKELIHOODS | {"log_likelihood_per_token": gain}}


@pytest.fixture
def report():
  modes = {"none": cell(0.25), "fetched": cell(0.5, 1.5), "wrong": cell(0.125, -0.5)}
  by_frequency = {
    "occurrences": [[0, 3], [4, 1200]],
    "modes": {"none": [cell(0.5), cell(0.75)], "fetched": [cell(0.25), cell(1.0)], "wrong": [cell(0.0), cell(0.0)]},
  }
  task = {"group": "SK", "chance": 0.25, "modes": modes, "truncated": 0}
  return {
    "title": "Tasks",
    "step": 1000,
    "model": "cotrain",
    "context_length": 64,
    "modes": ["none", "fetched", "wrong"],
    "tasks": {"arc_easy": task | {"by_frequency": by_frequency}, "nq_open": copy.deepcopy(task)},
    "averages": {"SK": {"tasks": ["arc_easy", "nq_open"], "modes": copy.deepcopy(modes)}},
    "articles": {},
    "not_run": ["squad", "coqa"],
  }


@pytest.fixture
def axes(report, tmp_path, monkeypatch):
  """The axes of the picture, by their titles."""
  figures = []
  monkeypatch.setattr(task_report, "write_figure", lambda figure, path: figures.append(figure))
  task_report.plot(report, str(tmp_path / "report.png"))
  yield {axis.get_title(): axis for axis in figures[0].axes}
  plt.close("all")


def test_a_table_by_frequency(report):
  lines = task_report.markdown(report).splitlines()
  start = lines.index("## arc_easy, by how often the subject occurs in the training text") + 2
  assert lines[start : start + 4] == [
    "| occurrences | items | none | fetched | wrong | none, nats per token | fetched, nats per token | wrong, nats per token |",
    "|---|---|---:|---:|---:|---:|---:|---:|",
    "| 0 to 3 | 8 | 50.0 ± 12.5 | 25.0 ± 12.5 | 0.0 ± 12.5" + " | -2.00 ± 0.50" * 3 + " |",
    "| 4 to 1,200 | 8 | 75.0 ± 12.5 | 100.0 ± 12.5 | 0.0 ± 12.5" + " | -2.00 ± 0.50" * 3 + " |",
  ]


@pytest.mark.parametrize("averages, not_run, said", [(True, True, True), (True, False, False), (False, True, False)])
def test_tasks_that_are_missing_from_averages_are_named(report, averages, not_run, said):
  report["averages"] = report["averages"] if averages else {}
  report["not_run"] = report["not_run"] if not_run else []
  assert ("not run: squad, coqa." in task_report.markdown(report)) == said
  assert ("Averages are over" in task_report.markdown(report)) == said


def test_bars_stand_around_their_column_and_are_as_high_as_the_numbers(axes):
  assert len(axes) == 3
  bars = axes["Tasks"].containers
  assert [[bar.get_height() for bar in group] for group in bars if hasattr(group, "patches")] == [
    [25, 25, 25], [50, 50, 50], [12.5, 12.5, 12.5],
  ]  # fmt: skip
  centers = [[bar.get_x() + bar.get_width() / 2 for bar in group] for group in bars if hasattr(group, "patches")]
  assert centers[1] == pytest.approx([0, 1, 2])  # the middle one of three modes
  assert [a - b for a, b in zip(centers[2], centers[0])] == pytest.approx([2 * 0.8 / 3] * 3)
  assert [label.get_text() for label in axes["Tasks"].get_xticklabels()] == ["arc_easy", "nq_open", "Avg-SK"]


def test_gains_keep_the_places_of_their_modes(axes):
  gains = axes["log-likelihood of the gold continuation, over that without memory"]
  heights, centers = {}, {}
  for group in gains.containers:
    if hasattr(group, "patches"):
      heights[group.get_label()] = [bar.get_height() for bar in group]
      centers[group.get_label()] = group.patches[0].get_x() + group.patches[0].get_width() / 2
  assert heights == {"fetched memory": [1.5] * 3, "wrong path": [-0.5] * 3}
  assert centers["fetched memory"] == pytest.approx(0) and centers["wrong path"] == pytest.approx(0.8 / 3)
