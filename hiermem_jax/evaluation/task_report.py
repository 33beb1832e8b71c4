"""The report of an evaluation on tasks: JSON, Markdown and a picture."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hiermem_jax import files
from hiermem_jax.data.tasks.metrics import accuracy_and_likelihood, paired_difference
from hiermem_jax.evaluation.report import UNITS, style, with_error, write_figure, write_json

_NONE = "none"


def assemble(
  specs: Mapping[str, Any],
  results: Mapping[str, Mapping[str, Any]],
  perplexities: Mapping[str, Any],
  counts: Mapping[str, int] | None,
  frequency_buckets: int,
) -> dict[str, Any]:
  """The report.

  Args:
    specs: task -> its `TaskSpec`.
    results: task -> mode -> `metrics`, `items`, `truncated`.
    perplexities: mode -> perplexity of the articles.
    counts: name -> occurrences in the training text.
    frequency_buckets: how many buckets of nearly equal size items with a subject are split into, rarest first.

  Returns:
    `tasks`: per task its group, kind and chance, how many prompts were `truncated`, and per mode the metrics and, as
    `minus_none`, the paired difference in log-likelihood to the mode 'none', where that was measured; `by_frequency`
    has the same for each bucket of items with a subject.
    `averages`: of the groups CK and SK, by mode, unweighted means over the tasks that there are.
    `articles`: the perplexities.
  """
  tasks = {}
  for name, by_mode in results.items():
    spec, items = specs[name], {mode: result["items"] for mode, result in by_mode.items()}
    tasks[name] = {"group": spec.group, "kind": spec.kind, "chance": spec.chance}
    tasks[name]["truncated"] = max(result["truncated"] for result in by_mode.values())
    metrics = {mode: result["metrics"] for mode, result in by_mode.items()}
    tasks[name]["modes"] = _with_differences(metrics, items)
    if counts and any(item["subject"] for item in next(iter(items.values()))):
      tasks[name]["by_frequency"] = _by_frequency(items, counts, frequency_buckets)
  return {"tasks": tasks, "averages": _averages(specs, tasks), "articles": dict(perplexities)}


def _with_differences(metrics: Mapping[str, Any], items: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
  cells = {mode: dict(cell) for mode, cell in metrics.items()}
  for mode in cells:
    if _NONE in items and mode != _NONE:
      cells[mode]["minus_none"] = paired_difference(items[mode], items[_NONE])
  return cells


def _by_frequency(items_by_mode: Mapping[str, Any], counts: Mapping[str, int], number: int) -> dict[str, Any]:
  items = {mode: [item for item in items if item["subject"]] for mode, items in items_by_mode.items()}
  frequency = np.array([counts[item["subject"]] for item in next(iter(items.values()))])
  buckets = [part for part in np.array_split(np.argsort(frequency, kind="stable"), number) if len(part)]
  by_mode: dict[str, list[Any]] = {mode: [] for mode in items}
  for bucket in buckets:
    chosen = {mode: [items[mode][i] for i in bucket] for mode in items}
    metrics = {mode: accuracy_and_likelihood(chosen[mode]) for mode in chosen}
    for mode, cell in _with_differences(metrics, chosen).items():
      by_mode[mode].append(cell)
  return {"occurrences": [[int(frequency[b].min()), int(frequency[b].max())] for b in buckets], "modes": by_mode}


def _averages(specs: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
  """Unweighted means over tasks, and their standard errors from those of the tasks."""
  result: dict[str, Any] = {}
  for group in ("CK", "SK"):
    names = [name for name, spec in specs.items() if spec.group == group]
    if not names:
      continue
    result[group] = {"tasks": names, "modes": {}}
    for mode in tasks[names[0]]["modes"]:
      cells = [tasks[name]["modes"][mode] for name in names]
      average: dict[str, Any] = {"accuracy": _mean(cells, "accuracy"), "stderr": _error_of_mean(cells, "stderr")}
      average |= _average_likelihoods(cells)
      if all("minus_none" in cell for cell in cells):
        average["minus_none"] = _average_likelihoods([cell["minus_none"] for cell in cells])
      result[group]["modes"][mode] = average
  return result


def _average_likelihoods(cells: Sequence[Mapping[str, float]]) -> dict[str, float]:
  names = [f"log_likelihood_per_{unit}" for unit in UNITS]
  means = {name: _mean(cells, name) for name in names}
  return means | {f"{name}_stderr": _error_of_mean(cells, f"{name}_stderr") for name in names}


def _mean(cells: Sequence[Mapping[str, float]], name: str) -> float:
  return sum(cell[name] for cell in cells) / len(cells)


def _error_of_mean(cells: Sequence[Mapping[str, float]], name: str) -> float:
  return sum(_number(cell[name]) ** 2 for cell in cells) ** 0.5 / len(cells)


def _number(value: float | None) -> float:
  return float("nan") if value is None else value  # a stored result has null


def markdown(report: Mapping[str, Any]) -> str:
  """The report as a page."""
  modes, tasks, averages = report["modes"], report["tasks"], report["averages"]
  lines = [f"# {report['title']}", ""]
  lines.append(f"Step {report['step']:,} of `{report['model']}`; accuracies in % ± standard error.")
  lines += ["", "| task | group | items | chance, % | " + " | ".join(modes) + " |"]
  lines += ["|---" * 4 + "|---:" * len(modes) + "|"]
  for name, task in tasks.items():
    count = next(iter(task["modes"].values()))["count"]
    cells = [_percent(task["modes"][mode]) for mode in modes]
    about = (name, task["group"], f"{count:,}", f"{100 * task['chance']:.0f}")
    lines.append(f"| {' | '.join((*about, *cells))} |")
  for group, average in averages.items():
    cells = [f"**{_percent(average['modes'][mode])}**" for mode in modes]
    lines.append(f"| **Avg-{group}** ({len(average['tasks'])} tasks) | {group} | | | " + " | ".join(cells) + " |")
  if report["articles"]:
    cells = [f"{cell['perplexity']:.2f}" if (cell := report["articles"].get(mode)) else "–" for mode in modes]
    count = report["articles"][next(iter(report["articles"]))]["articles"]
    lines.append(f"| articles, perplexity | | {count:,} | | " + " | ".join(cells) + " |")
  if averages and report["not_run"]:
    lines += ["", f"Averages are over the tasks above; not run: {', '.join(report['not_run'])}."]
  if tasks:
    lines += _markdown_likelihoods(report)
  for name, task in tasks.items():
    if "by_frequency" in task:
      lines += _markdown_frequency(name, task["by_frequency"], modes)
  if cut := {name: task["truncated"] for name, task in tasks.items() if task["truncated"]}:
    said = ", ".join(f"{name} {count:,}" for name, count in cut.items())
    lines += ["", f"Prompts longer than the context of {report['context_length']} tokens lost their beginning: {said}."]
  return "\n".join(lines) + "\n"


def _markdown_likelihoods(report: Mapping[str, Any]) -> list[str]:
  """Log-likelihood of the gold continuations by task and mode, and what fetched memory adds."""
  modes = report["modes"]
  compared = ["fetched"] if {"fetched", _NONE} <= set(modes) else []
  groups = [(name, task["modes"]) for name, task in report["tasks"].items()]
  groups += [(f"**Avg-{group}**", average["modes"]) for group, average in report["averages"].items()]
  lines = ["", "## Log-likelihood of the gold continuation", ""]
  lines.append("Nats, means over items ± standard error. Differences are paired, item by item.")
  for unit in UNITS:
    field = f"log_likelihood_per_{unit}"
    lines += ["", f"| per {unit} | " + " | ".join([*modes, *(f"{mode} − none" for mode in compared)]) + " |"]
    lines.append("|---" + "|---:" * (len(modes) + len(compared)) + "|")
    for name, cells in groups:
      shown = [with_error(cells[mode], field, digits=3) for mode in modes]
      shown += [with_error(cells[mode]["minus_none"], field, digits=3, sign="+") for mode in compared]
      lines.append(f"| {name} | " + " | ".join(shown) + " |")
  return lines


def _markdown_frequency(name: str, frequency: Mapping[str, Any], modes: Sequence[str]) -> list[str]:
  lines = ["", f"## {name}, by how often the subject occurs in the training text", ""]
  heads = [*modes, *(f"{mode}, nats per token" for mode in modes)]
  lines += ["| occurrences | items | " + " | ".join(heads) + " |", "|---|---" + "|---:" * len(heads) + "|"]
  for number, (low, high) in enumerate(frequency["occurrences"]):
    cells = [frequency["modes"][mode][number] for mode in modes]
    shown = [*map(_percent, cells), *(with_error(cell, "log_likelihood_per_token") for cell in cells)]
    lines.append(f"| {low:,} to {high:,} | {cells[0]['count']} | " + " | ".join(shown) + " |")
  return lines


def _percent(cell: Mapping[str, float]) -> str:
  return f"{100 * cell['accuracy']:.1f} ± {100 * cell['stderr']:.1f}"


def write(report: Mapping[str, Any], directory: str) -> None:
  """Writes report.json, report.md and report.png, and prints the page."""
  write_json(report, os.path.join(directory, "report.json"))
  page = markdown(report)
  files.write_text(os.path.join(directory, "report.md"), page)
  plot(report, os.path.join(directory, "report.png"))
  print(page)
  print(f"written: {directory}/report.json, report.md and report.png")


def plot(report: Mapping[str, Any], path: str) -> None:
  """Draws accuracy and the gain in log-likelihood by task, accuracy by frequency, and perplexity, as a PNG."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  panels = _panels(report)
  figure, axes = plt.subplots(len(panels), 1, figsize=(11, 3.6 * len(panels)), squeeze=False, layout="constrained")
  labelled: dict[str, Any] = {}
  for axis, panel in zip(axes[:, 0], panels):
    _draw_panel(axis, panel, report["modes"])
    handles, labels = axis.get_legend_handles_labels()
    labelled |= dict(zip(labels, handles))
  handles, labels = list(labelled.values()), list(labelled)
  figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
  write_figure(figure, path)


def _panels(report: Mapping[str, Any]) -> list[dict[str, Any]]:
  """What is drawn: title, unit, and columns (label, mode -> (height, error))."""
  groups = [(name.rpartition("=")[2], task["modes"]) for name, task in report["tasks"].items()]  # of task=file the file
  groups += [(f"Avg-{group}", average["modes"]) for group, average in report["averages"].items()]

  def accuracies(columns):
    return [
      (label, {mode: (100 * cell["accuracy"], 100 * cell["stderr"]) for mode, cell in cells.items()})
      for label, cells in columns
    ]

  panels = []
  if groups:
    panels.append({"title": report["title"], "unit": "correct (%)", "columns": accuracies(groups)})
    field = "log_likelihood_per_token"
    gains = [
      (label, {m: (c["minus_none"][field], c["minus_none"][f"{field}_stderr"]) for m, c in cells.items() if m != _NONE})
      for label, cells in groups
      if _NONE in cells and len(cells) > 1
    ]
    if gains:
      title = "log-likelihood of the gold continuation, over that without memory"
      panels.append({"title": title, "unit": "difference (nats per token)", "columns": gains})
  for name, task in report["tasks"].items():
    if frequency := task.get("by_frequency"):
      ranges = [f"{low:,}–{high:,}" for low, high in frequency["occurrences"]]
      columns = [{mode: cells[i] for mode, cells in frequency["modes"].items()} for i in range(len(ranges))]
      title = f"{name}, by occurrences of the subject in training"
      panels.append({"title": title, "unit": "correct (%)", "columns": accuracies(zip(ranges, columns))})
  if report["articles"]:
    cells = {mode: (cell["perplexity"], 0.0) for mode, cell in report["articles"].items()}
    panels.append({"title": "articles", "unit": "perplexity", "columns": [("", cells)]})
  return panels


def _draw_panel(axis, panel: Mapping[str, Any], modes: Sequence[str]) -> None:
  """Bars: a group per column, a bar per mode; a mode has its place and colour in every panel."""
  columns, width = panel["columns"], 0.8 / len(modes)
  for number, mode in enumerate(modes):
    if mode not in columns[0][1]:
      continue
    places = np.arange(len(columns)) + (number - (len(modes) - 1) / 2) * width
    heights = [cells[mode][0] for _, cells in columns]
    errors = [_number(cells[mode][1]) for _, cells in columns]
    axis.bar(places, heights, width, yerr=errors, error_kw={"lw": 0.8}, **{"color": f"C{number + 4}"} | style(mode))
  slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(columns) > 6 else {}
  axis.set_xticks(range(len(columns)), [label for label, _ in columns], **slanted)
  axis.axhline(0, color="black", lw=0.6)
  if not axis.dataLim.ymax > 0 and not axis.dataLim.ymin < 0:
    axis.set_ylim(0, 1)
  axis.set_ylabel(panel["unit"])
  axis.set_title(panel["title"], fontsize=11)
  axis.spines[["top", "right"]].set_visible(False)
