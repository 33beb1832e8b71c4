"""The report of an evaluation: a table for the terminal, `report.json`, and a plot."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hiermem_jax import files

_LABELS = {
  "baseline": "baseline (no memory, same tokens)",
  "none": "with bank, not fetched",
  "generic": "generic memory",
  "fetched": "fetched memory",
  "wrong": "wrong path",
}
_COLORS = {"baseline": "#4c4c4c", "none": "#b0b0b0", "generic": "#e0a030", "fetched": "#2a7ab9", "wrong": "#b04a5a"}


def style(name: str) -> dict[str, str]:
  """Label and colour of a series in plots; matplotlib's next colour for what has none of its own."""
  return {"label": _LABELS.get(name, name)} | ({"color": _COLORS[name]} if name in _COLORS else {})


def bucket_labels(buckets: Sequence[int]) -> list[str]:
  """First counts of ascending buckets to labels: (1, 4, 16) -> 1-3, 4-15, 16+."""
  ends = [f"–{following - 1}" if following - 1 > first else "" for first, following in zip(buckets, buckets[1:])]
  return [f"{first}{end}" for first, end in zip(buckets, [*ends, "+"])]


def table(report: dict[str, Any]) -> str:
  """The report as fixed-width text: a row per series, loss and perplexity first, then accuracy by bucket."""
  probes = report.get("probes")
  header = ["", "loss", "perplexity"]
  if probes:
    header += [f"seen {label}" for label in probes["buckets"]]
  rows = [header]
  for name, series in report["series"].items():
    row = [_LABELS.get(name, name)]
    row += [f"{series['loss']:.3f}", f"{series['perplexity']:.2f}"] if "loss" in series else ["–", "–"]
    if probes:
      row += ["–" if math.isnan(cell["accuracy"]) else f"{100 * cell['accuracy']:.1f}%" for cell in series["probes"]]
    rows.append(row)
  if probes:
    counts = [str(cell["count"]) for cell in next(iter(report["series"].values()))["probes"]]
    rows.append(["questions", "", "", *counts])
  widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
  lines = [
    "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
    for row in rows
  ]
  return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def by_bucket(values: np.ndarray, counts: Sequence[int], buckets: Sequence[int]) -> list[list[float]]:
  """Means of the rows of values [n, m] by bucket of their counts (ascending first counts), NaN where one is empty."""
  bucket = np.searchsorted(buckets, counts, side="right") - 1
  return [
    values[bucket == index].mean(axis=0).tolist() if (bucket == index).any() else [math.nan] * values.shape[1]
    for index in range(len(buckets))
  ]


def write_json(report: dict[str, Any], path: str) -> None:
  """Writes the report; a number that does not exist (an empty bucket) is null."""

  def clean(value):
    if isinstance(value, dict):
      return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
      return [clean(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

  files.write_json(path, clean(report), indent=2)


def write_jsonl(lines: Iterable[dict[str, Any]], path: str) -> None:
  """Writes one JSON object a line."""
  files.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def plot(report: dict[str, Any], path: str, title: str) -> None:
  """Draws accuracy by bucket (when there are probes) beside held-out perplexity, as a PNG."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  series = report["series"]
  probes = report.get("probes")
  if probes:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(3, 1.2), layout="constrained")
    width = 0.8 / len(series)
    for index, (name, values) in enumerate(series.items()):
      offset = (index - (len(series) - 1) / 2) * width
      positions = [bucket + offset for bucket in range(len(probes["buckets"]))]
      accuracy = [100 * cell["accuracy"] for cell in values["probes"]]
      error = [100 * cell["stderr"] for cell in values["probes"]]
      left.bar(positions, accuracy, width, yerr=error, error_kw={"lw": 0.8}, **style(name))
    left.set_xticks(range(len(probes["buckets"])), probes["buckets"])
    left.set_xlabel("times the fact is stated in the training text")
    left.set_ylabel("facts answered exactly (%)")
    left.legend(frameon=False, fontsize=9, loc="upper left")
    left.spines[["top", "right"]].set_visible(False)
  else:
    figure, right = plt.subplots(figsize=(5.5, 4.0), layout="constrained")
  names = [name for name in series if "loss" in series[name]]
  perplexities = [series[name]["perplexity"] for name in names]
  bars = right.bar(range(len(names)), perplexities, 0.7, color=[style(name).get("color", "#7a6ab0") for name in names])
  right.bar_label(bars, fmt="%.2f", fontsize=9)
  right.set_xticks(range(len(names)), names, rotation=30)
  low, high = min(perplexities), max(perplexities)
  bottom = 0 if high > 1.5 * low else 0.9 * low  # small differences are shown enlarged, and the axis says so
  right.set_ylim(bottom, high + 0.1 * (high - bottom))
  right.set_ylabel("held-out perplexity" + (" (axis does not start at 0)" if bottom else ""))
  right.spines[["top", "right"]].set_visible(False)
  figure.suptitle(title)
  with files.written(path) as file:
    figure.savefig(file, format="png", dpi=150)
  plt.close(figure)
