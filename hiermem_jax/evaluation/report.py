"""The report of a model's series: a table for the terminal, `report.json`, and a plot."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
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
UNITS = ("token", "byte")  # what log-likelihoods are given per


def style(name: str) -> dict[str, str]:
  """Label and colour of a series in plots; matplotlib's next colour for a series without a colour of its own."""
  return {"label": _LABELS.get(name, name)} | ({"color": _COLORS[name]} if name in _COLORS else {})


def bucket_labels(buckets: Sequence[int]) -> list[str]:
  """First counts of ascending buckets to labels: (1, 4, 16) -> 1-3, 4-15, 16+."""
  ends = [f"–{following - 1}" if following - 1 > first else "" for first, following in zip(buckets, buckets[1:])]
  return [f"{first}{end}" for first, end in zip(buckets, [*ends, "+"])]


def with_error(cell: Mapping[str, Any], name: str, digits: int = 2, sign: str = "") -> str:
  """A number of a report and its standard error, e.g. '-2.31 ± 0.05'; a dash where there is none.

  Args:
    cell: with the number under `name` and the error under `name` + "_stderr".
    name: of the number.
    digits: behind the point.
    sign: "+" to write the sign of positive numbers, too.
  """
  value, error = cell[name], cell[f"{name}_stderr"]
  if value is None or math.isnan(value):
    return "–"
  shown = f"{value:{sign}.{digits}f}"
  return shown if error is None or math.isnan(error) else f"{shown} ± {error:.{digits}f}"


def table(report: Mapping[str, Any]) -> str:
  """The report as fixed-width text.

  First one line per series: loss, perplexity, and accuracy by bucket. Then, where there are probes, the log-likelihood
  of the answers by bucket, per token and per byte, and by how much fetched memory raises it.
  """
  probes, series = report.get("probes"), report["series"]
  lines = [["", "loss", "perplexity", *(f"seen {label}" for label in (probes or {}).get("buckets", ()))]]
  for name, values in series.items():
    line = [_LABELS.get(name, name)]
    line += [f"{values['loss']:.3f}", f"{values['perplexity']:.2f}"] if "loss" in values else ["–", "–"]
    if probes:
      accuracies = [cell["accuracy"] for cell in values["probes"]]
      line += ["–" if value is None or math.isnan(value) else f"{100 * value:.1f}%" for value in accuracies]
    lines.append(line)
  if not probes:
    return aligned(lines)
  counts = [str(cell["count"]) for cell in next(iter(series.values()))["probes"]]
  parts = [aligned([*lines, ["questions", "", "", *counts]])]
  for unit in UNITS:
    name = f"log_likelihood_per_{unit}"
    lines = [[f"log-likelihood of the answer, nats per {unit}", *(f"seen {label}" for label in probes["buckets"])]]
    lines += [
      [_LABELS.get(key, key), *(with_error(cell, name) for cell in values["probes"])] for key, values in series.items()
    ]
    if "fetched" in series and "minus_none" in series["fetched"]["probes"][0]:
      gains = [with_error(cell["minus_none"], name, sign="+") for cell in series["fetched"]["probes"]]
      lines.append(["fetched − none, question by question", *gains])
    parts.append(aligned(lines))
  return "\n\n".join(parts)


def aligned(lines: Sequence[Sequence[str]]) -> str:
  """Columns of equal width, the first one left-aligned, a rule below the first line."""
  widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
  texts = [
    "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])
    for line in lines
  ]
  return "\n".join([texts[0], "-" * len(texts[0]), *texts[1:]])


def write(
  report: Mapping[str, Any],
  attribution: Sequence[Mapping[str, Any]],
  directory: str,
  title: str,
  items: Sequence[Mapping[str, Any]] = (),
) -> None:
  """Writes report.json, report.png and, where there are lines for them, attribution.jsonl and items.jsonl; prints."""
  for lines, name in ((attribution, "attribution.jsonl"), (items, "items.jsonl")):
    if lines:
      write_jsonl(lines, os.path.join(directory, name))
  write_json(report, os.path.join(directory, "report.json"))
  plot(report, os.path.join(directory, "report.png"), title)
  print(table(report))
  print(f"\nwritten: {directory}/report.json and report.png")


def show(directory: str) -> None:
  """Prints the table of the report in a directory."""
  print(table(files.read_json(os.path.join(directory, "report.json"))))
  print(f"\nkept, being of the same model, data and settings: {directory}/report.json and report.png")


def write_json(report: Mapping[str, Any], path: str) -> None:
  """Writes a report; a number that does not exist (NaN, of an empty bucket) becomes null."""

  def clean(value):
    if isinstance(value, Mapping):
      return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
      return [clean(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

  files.write_json(path, clean(report), indent=2)


def write_jsonl(lines: Iterable[Mapping[str, Any]], path: str) -> None:
  """Writes one JSON object a line."""
  files.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def write_figure(figure, path: str) -> None:
  """Writes a figure of matplotlib's as a PNG and closes it."""
  import matplotlib.pyplot as plt

  with files.written(path) as file:
    figure.savefig(file, format="png", dpi=150)
  plt.close(figure)


def plot(report: Mapping[str, Any], path: str, title: str) -> None:
  """Draws held-out perplexity and, where there are probes, accuracy and log-likelihood by bucket, as a PNG."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  series, probes = report["series"], report.get("probes")
  if probes:
    figure, (accuracy, likelihood, perplexity) = plt.subplots(
      1, 3, figsize=(15, 4.6), width_ratios=(3, 3, 1.4), layout="constrained"
    )
    _plot_buckets(accuracy, series, "accuracy", "stderr", probes["buckets"], scale=100)
    accuracy.set_ylabel("facts answered exactly (%)")
    accuracy.set_ylim(bottom=0)
    name = "log_likelihood_per_token"
    _plot_buckets(likelihood, series, name, f"{name}_stderr", probes["buckets"])
    likelihood.set_ylabel("log-likelihood of the answer (nats per token)")
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
  else:
    figure, perplexity = plt.subplots(figsize=(5.5, 4.0), layout="constrained")
  _plot_perplexities(perplexity, {name: values["perplexity"] for name, values in series.items() if "loss" in values})
  figure.suptitle(title)
  write_figure(figure, path)


def _plot_buckets(axis, series, name: str, error: str, labels: Sequence[str], scale: float = 1.0) -> None:
  """Bars of a number of the probes' cells: a group per bucket, a bar per series."""
  width = 0.8 / len(series)
  for index, (key, values) in enumerate(series.items()):
    places = np.arange(len(labels)) + (index - (len(series) - 1) / 2) * width
    heights = [scale * cell[name] for cell in values["probes"]]
    errors = [scale * cell[error] for cell in values["probes"]]
    axis.bar(places, heights, width, yerr=errors, error_kw={"lw": 0.8}, **style(key))
  axis.set_xticks(range(len(labels)), labels)
  axis.set_xlabel("times the fact is stated in the training text")
  axis.spines[["top", "right"]].set_visible(False)


def _plot_perplexities(axis, perplexities: Mapping[str, float]) -> None:
  colors = [style(name).get("color", "#7a6ab0") for name in perplexities]
  bars = axis.bar(range(len(perplexities)), perplexities.values(), 0.7, color=colors)
  axis.bar_label(bars, fmt="%.2f", fontsize=9)
  axis.set_xticks(range(len(perplexities)), perplexities, rotation=30)
  low, high = min(perplexities.values()), max(perplexities.values())
  bottom = 0 if high > 1.5 * low else 0.9 * low  # small differences are shown enlarged, and the axis says so
  axis.set_ylim(bottom, high + 0.1 * (high - bottom))
  axis.set_ylabel("held-out perplexity" + (" (axis does not start at 0)" if bottom else ""))
  axis.spines[["top", "right"]].set_visible(False)
