"""The report of an evaluation on tasks: JSON, Markdown and a picture."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from hiermem_jax import files
from hiermem_jax.evaluation.report import style, write_json


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
    perplexities: mode -> of the articles.
    counts: name -> occurrences in the training text.
    frequency_buckets: parts of nearly equal size that items with a subject are split into, rarest first.

  Returns:
    `tasks`: per task its group, kind, chance and metrics by mode, and accuracy `by_frequency` where items have
    subjects; `averages` by mode: unweighted means over the tasks of the groups CK and SK, with the tasks that are
    missing; `articles`.
  """
  tasks = {}
  for name, by_mode in results.items():
    spec = specs[name]
    tasks[name] = {"group": spec.group, "kind": spec.kind, "chance": spec.chance}
    tasks[name]["modes"] = {mode: result["metrics"] for mode, result in by_mode.items()}
    tasks[name]["truncated"] = max(result["truncated"] for result in by_mode.values())
    if counts and any(item["subject"] for item in next(iter(by_mode.values()))["items"]):
      tasks[name]["by_frequency"] = _by_frequency(by_mode, counts, frequency_buckets)
  return {"tasks": tasks, "averages": _averages(specs, tasks), "articles": dict(perplexities)}


def _by_frequency(by_mode: Mapping[str, Any], counts: Mapping[str, int], number: int) -> dict[str, Any]:
  items = [item for item in next(iter(by_mode.values()))["items"] if item["subject"]]
  frequency = np.array([counts[item["subject"]] for item in items])
  parts = [part for part in np.array_split(np.argsort(frequency, kind="stable"), number) if len(part)]
  result = {"occurrences": [[int(frequency[part].min()), int(frequency[part].max())] for part in parts], "modes": {}}
  for mode, measured in by_mode.items():
    correct = np.array([item["correct"] for item in measured["items"] if item["subject"]], float)
    result["modes"][mode] = [_accuracy(correct[part]) for part in parts]
  return result


def _accuracy(correct: np.ndarray) -> dict[str, float]:
  share = float(correct.mean())
  return {"accuracy": share, "stderr": float(np.sqrt(share * (1 - share) / len(correct))), "count": len(correct)}


def _averages(specs: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
  """Means over tasks, and their standard errors from those of the tasks."""
  result: dict[str, Any] = {}
  for group in ("CK", "SK"):
    names = [name for name, spec in specs.items() if spec.group == group]
    if not names:
      continue
    result[group] = {"tasks": names, "modes": {}}
    for mode in tasks[names[0]]["modes"]:
      cells = [tasks[name]["modes"][mode] for name in names]
      mean = sum(cell["accuracy"] for cell in cells) / len(cells)
      error = sum(cell["stderr"] ** 2 for cell in cells) ** 0.5 / len(cells)
      result[group]["modes"][mode] = {"accuracy": mean, "stderr": error}
  return result


def markdown(report: Mapping[str, Any]) -> str:
  """The report as a page."""
  modes = report["modes"]
  lines = [f"# {report['title']}", ""]
  lines.append(f"Step {report['step']:,} of `{report['model']}`; accuracies in % ± standard error.")
  lines += ["", "| task | group | items | chance, % | " + " | ".join(modes) + " |"]
  lines += ["|---" * 4 + "|---:" * len(modes) + "|"]
  for name, task in report["tasks"].items():
    count = next(iter(task["modes"].values()))["count"]
    cells = [_percent(task["modes"][mode]) for mode in modes]
    about = (name, task["group"], f"{count:,}", f"{100 * task['chance']:.0f}")
    lines.append(f"| {' | '.join((*about, *cells))} |")
  for group, average in report["averages"].items():
    cells = [f"**{_percent(average['modes'][mode])}**" for mode in modes]
    lines.append(f"| **Avg-{group}** ({len(average['tasks'])} tasks) | {group} | | | " + " | ".join(cells) + " |")
  if report["articles"]:
    cells = [f"{cell['perplexity']:.2f}" if (cell := report["articles"].get(mode)) else "–" for mode in modes]
    count = report["articles"][modes[0]]["articles"]
    lines.append(f"| articles, perplexity | | {count:,} | | " + " | ".join(cells) + " |")
  if report["averages"] and report["not_run"]:
    lines += ["", f"Averages are over the tasks above; not run: {', '.join(report['not_run'])}."]
  for name, task in report["tasks"].items():
    if "by_frequency" in task:
      lines += ["", f"## {name}, by how often the subject occurs in the training text", ""]
      lines += ["| occurrences | items | " + " | ".join(modes) + " |", "|---|---" + "|---:" * len(modes) + "|"]
      for number, (low, high) in enumerate(task["by_frequency"]["occurrences"]):
        cells = [task["by_frequency"]["modes"][mode][number] for mode in modes]
        lines.append(f"| {low:,} to {high:,} | {cells[0]['count']} | " + " | ".join(map(_percent, cells)) + " |")
  if cut := {name: task["truncated"] for name, task in report["tasks"].items() if task["truncated"]}:
    said = ", ".join(f"{name} {count:,}" for name, count in cut.items())
    lines += ["", f"Prompts longer than the context of {report['context_length']} tokens lost their beginning: {said}."]
  return "\n".join(lines) + "\n"


def _percent(cell: Mapping[str, float]) -> str:
  return f"{100 * cell['accuracy']:.1f} ± {100 * cell['stderr']:.1f}"


def write(report: Mapping[str, Any], directory: str) -> None:
  """Writes report.json, report.md and report.png, and prints the page."""
  write_json(dict(report), os.path.join(directory, "report.json"))
  page = markdown(report)
  files.write_text(os.path.join(directory, "report.md"), page)
  plot(report, os.path.join(directory, "report.png"))
  print(page)
  print(f"written: {directory}/report.json, report.md and report.png")


def plot(report: Mapping[str, Any], path: str) -> None:
  """Draws accuracy by task, and by frequency where there are subjects, as a PNG."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  groups = [(name, task["modes"]) for name, task in report["tasks"].items()]
  groups += [(f"Avg-{group}", average["modes"]) for group, average in report["averages"].items()]
  panels = [(report["title"], groups)] if groups else []
  for name, task in report["tasks"].items():
    if frequency := task.get("by_frequency"):
      ranges = [f"{low:,}–{high:,}" for low, high in frequency["occurrences"]]
      columns = [{mode: cells[i] for mode, cells in frequency["modes"].items()} for i in range(len(ranges))]
      panels.append((f"{name}, by occurrences of the subject in training", list(zip(ranges, columns))))
  if report["articles"]:
    cells = {mode: {"accuracy": value["perplexity"] / 100, "stderr": 0.0} for mode, value in report["articles"].items()}
    panels.append(("perplexity of articles", [("", cells)]))
  figure, axes = plt.subplots(len(panels), 1, figsize=(11, 3.6 * len(panels)), squeeze=False, layout="constrained")
  for axis, (title, columns) in zip(axes[:, 0], panels):
    width = 0.8 / len(report["modes"])
    for number, mode in enumerate(mode for mode in report["modes"] if mode in columns[0][1]):
      places = np.arange(len(columns)) + (number - (len(report["modes"]) - 1) / 2) * width
      values = [100 * cells[mode]["accuracy"] for _, cells in columns]
      errors = [100 * cells[mode]["stderr"] for _, cells in columns]
      axis.bar(places, values, width, yerr=errors, error_kw={"lw": 0.8}, **{"color": f"C{number + 4}"} | style(mode))
    labels = [label.rpartition("=")[2] for label, _ in columns]  # of task=file the file
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(columns) > 6 else {}
    axis.set_xticks(range(len(columns)), labels, **slanted)
    axis.set_ylim(bottom=0, top=None if axis.dataLim.ymax > 0 else 1)
    axis.set_ylabel("perplexity" if title.startswith("perplexity") else "correct (%)")
    axis.set_title(title, fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
  handles, labels = axes[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
  with files.written(path) as file:
    figure.savefig(file, format="png", dpi=150)
  plt.close(figure)
