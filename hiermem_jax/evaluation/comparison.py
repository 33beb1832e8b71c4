"""Reports of several runs side by side: the same measures, and intervals of the differences to the first run.

A measure is a ratio of sums over items, such as the correct answers over the answers, or the summed loss of held-out
sequences over their tokens. Where two runs have results of the same items, what makes an item easy or hard for both
cancels, and the interval is that of the paired differences. Otherwise it is that of two independent samples.
"""

import collections
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hiermem_jax import files
from hiermem_jax.evaluation import items as itemwise
from hiermem_jax.evaluation.store import ResultStore

_LEVEL = 0.95
Items = dict[tuple[str, int], tuple[float, float]]  # item and which of its repetitions -> numerator and weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
  """A number of a report.

  Attributes:
    value: the number.
    stderr: its standard error; None where the report has none.
    items: of each item its part of the two sums; empty where they were not kept.
  """

  value: float
  stderr: float | None = None
  items: Items = dataclasses.field(default_factory=dict)

  @classmethod
  def of(cls, items: Iterable[tuple[str, float, float]]) -> "Measure":
    """The measure of (item, numerator, weight), in the order of the file: repeated items are told apart by it."""
    repetitions: collections.Counter[str] = collections.Counter()
    held: Items = {}
    for item, numerator, weight in items:
      held[item, repetitions[item]] = (numerator, weight)
      repetitions[item] += 1
    numerators, weights = _arrays(held.values())
    value = float(numerators.sum() / weights.sum()) if len(held) else math.nan
    return cls(value=value, stderr=_stderr(numerators - value * weights, weights), items=held)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
  """A measure of a run less that of the first run.

  Attributes:
    value: the difference.
    low: end of its 95% interval; None where nothing is known of its error.
    high: the other end.
    paired: whether both runs have results of the same items, and the interval is of the differences item by item.
    items: of the run.
    common: of these, those of which the first run has results, too.
  """

  value: float
  low: float | None
  high: float | None
  paired: bool
  items: int
  common: int


def difference(first: Measure, other: Measure) -> Difference:
  """The difference `other` - `first` and its 95% interval (Student's t; of unpaired ones the normal distribution)."""
  from scipy import stats

  value, common = other.value - first.value, len(first.items.keys() & other.items.keys())
  paired = 0 < common == len(first.items) == len(other.items)
  error, quantile = None, float(stats.norm.ppf((1 + _LEVEL) / 2))
  if paired:
    a, weights = _arrays(first.items[key] for key in first.items)
    b, _ = _arrays(other.items[key] for key in first.items)
    error = _stderr(b - a - value * weights, weights)
    quantile = float(stats.t.ppf((1 + _LEVEL) / 2, max(common - 1, 1)))
  elif first.stderr is not None and other.stderr is not None:
    error = math.hypot(first.stderr, other.stderr)
  low, high = (None, None) if error is None else (value - quantile * error, value + quantile * error)
  return Difference(value=value, low=low, high=high, paired=paired, items=len(other.items), common=common)


def _arrays(pairs: Iterable[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
  array = np.array(list(pairs), np.float64).reshape(-1, 2)
  return array[:, 0], array[:, 1]


def _stderr(residuals: np.ndarray, weights: np.ndarray) -> float | None:
  """Standard error of a ratio of sums from the residuals of its items (linearised); None for fewer than two items."""
  count = len(residuals)
  return math.sqrt(count / (count - 1) * float((residuals**2).sum())) / float(weights.sum()) if count > 1 else None


def reports(run_dir: str) -> dict[str, dict[str, Measure]]:
  """The measures of the reports in a run directory, by the report's directory and their own names."""
  found: dict[str, dict[str, Measure]] = {}
  root = pathlib.Path(run_dir)
  for path in sorted([*root.glob("*/report.json"), *root.glob("*/*/report.json")]):
    report = files.read_json(path)
    directory = str(path.parent)
    if "series" in report:
      found[str(path.parent.relative_to(root))] = _of_series(report, itemwise.read(directory))
    elif "tasks" in report and "modes" in report:
      found[str(path.parent.relative_to(root))] = _of_tasks(report, ResultStore(directory))
  return found


def _of_series(report: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Measure]:
  """The measures of a report of `evaluate`."""
  found: dict[str, Measure] = {}
  held_out = [line for line in lines if line["set"] == "held_out"]
  probes = [line for line in lines if line["set"] == "probes"]
  for series, values in report["series"].items():
    if "loss" in values:
      of = [(line["item"], line["loss"][series], line["tokens"]) for line in held_out if series in line["loss"]]
      found[f"{series}: held-out loss (nats per token)"] = Measure.of(of) if of else Measure(value=values["loss"])
  if not (about := report.get("probes")):
    return found
  starts = [*about["first_counts"], math.inf]
  for series, values in report["series"].items():
    answered = [line for line in probes if series in line["correct"] and line["count"] >= starts[0]]
    if answered:
      found[f"{series}: answers correct (%)"] = _correct(answered, series)
      likelihoods = [(line["item"], line["log_likelihood"][series] / line["bytes"], 1.0) for line in answered]
      found[f"{series}: log-likelihood (nats per byte)"] = Measure.of(likelihoods)
    for label, low, high, cell in zip(about["buckets"], starts, starts[1:], values.get("probes", ())):
      name = f"{series}: answers correct (%), seen {label}"
      inside = [line for line in answered if low <= line["count"] < high]
      if inside or cell["count"]:
        found[name] = _correct(inside, series) if inside else _percent(cell)
  return found


def _correct(lines: Iterable[Mapping[str, Any]], series: str) -> Measure:
  return Measure.of((line["item"], 100.0 * line["correct"][series], 1.0) for line in lines)


def _percent(cell: Mapping[str, Any]) -> Measure:
  error = cell["stderr"]
  return Measure(value=100 * cell["accuracy"], stderr=None if error is None else 100 * error)


def _of_tasks(report: Mapping[str, Any], store: ResultStore) -> dict[str, Measure]:
  """The measures of a report of `evaluate_tasks`."""
  found: dict[str, Measure] = {}
  for task, about in report["tasks"].items():
    for mode, cell in about["modes"].items():
      stored = store.held(f"{task}.{mode}")
      # Items are the same where their file, their number and the examples in front of them are.
      asked = [stored.get("settings", {}).get(name) for name in ("file", "shots", "max_items")]
      lines = stored.get("result", {}).get("items", ())
      correct = [(f"{asked} {line['item']}", 100.0 * line["correct"], 1.0) for line in lines]
      found[f"{task}, {mode}: correct (%)"] = Measure.of(correct) if correct else _percent(cell)
      scored = [line for line in lines if "log_likelihood" in line]
      if scored:
        name = f"{task}, {mode}: log-likelihood (nats per byte)"
        found[name] = Measure.of((f"{asked} {i['item']}", i["log_likelihood"] / i["bytes"], 1.0) for i in scored)
  for group, average in report.get("averages", {}).items():
    for mode, cell in average["modes"].items():
      found[f"Avg-{group}, {mode}: correct (%)"] = _percent(cell)
  for mode, cell in report.get("articles", {}).items():
    found[f"articles, {mode}: perplexity"] = Measure(value=cell["perplexity"])
  return found


def curves(run_dir: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
  """The loss curves in a run directory: by directory of the training, 'loss' and 'loss/validation' as (step, nats)."""
  found = {}
  root = pathlib.Path(run_dir)
  for path in sorted([*root.glob("metrics.jsonl"), *root.glob("*/metrics.jsonl")]):
    lines = files.read_jsonl(path, growing=True)  # a running training may be in the middle of a line
    names = ("loss", "loss/validation")
    found[os.path.normpath(path.parent.relative_to(root))] = {
      name: [(line["step"], line[name]) for line in lines if name in line] for name in names
    }
  return found
