r"""Compares runs: what differs in their configurations, their loss curves, and their results with intervals.

  python -m hiermem_jax.compare runs/quickstart runs/seed1

Every run is compared with the first one. Prints the differences and the tables; draws the loss curves. Writes
compare/losses.png and compare/report.json (--out names another directory), and nothing into the runs. Where two runs
were evaluated on the same items, the intervals are of the paired differences.
"""

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refused flag answer at once
  from hiermem_jax import cli

  cli.main("compare")

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hiermem_jax.errors import InputError

if TYPE_CHECKING:
  from hiermem_jax.evaluation.comparison import Measure

_DASHES = ("solid", "dashed", "dotted", "dashdot")


def compare(*, runs: Sequence[str], configurations: Sequence[str], out: str = "compare", as_json: bool = False) -> None:
  """Prints and draws the comparison.

  Args:
    runs: two or more run directories, the first of which the others are compared with.
    configurations: for every other run, what differs in its configuration, as a text.
    out: directory for losses.png and report.json.
    as_json: print report.json instead of text.

  Raises:
    InputError: there is neither a report nor a training in the runs.
  """
  from hiermem_jax.evaluation import comparison
  from hiermem_jax.evaluation.report import write_json

  curves = {run: comparison.curves(run) for run in runs}
  reports = {run: comparison.reports(run) for run in runs}
  if not any(curves.values()) and not any(reports.values()):
    raise InputError(f"{' '.join(runs)}: neither metrics.jsonl nor a report.json in them; train or evaluate them first")
  tables = _tables(reports)
  picture = os.path.join(out, "losses.png") if any(curves.values()) else None
  if picture:
    _draw(curves, picture)
  report = {"runs": list(runs), "configurations": list(configurations), "tables": tables, "picture": picture}
  write_json(report, os.path.join(out, "report.json"))
  if as_json:
    print(json.dumps(report, indent=2))
    return
  print("\n\n".join([*configurations, *_pages(runs, tables)]))
  print(f"\nwritten: {' and '.join(filter(None, (picture, os.path.join(out, 'report.json'))))}")


def _tables(reports: "Mapping[str, Mapping[str, Mapping[str, Measure]]]") -> dict[str, list[dict[str, Any]]]:
  """By directory of a report, a row for each of its measures: values by run, and differences to the first run."""
  from hiermem_jax.evaluation import comparison

  first, *others = reports
  tables: dict[str, list[dict[str, Any]]] = {}
  for name in dict.fromkeys(name for found in reports.values() for name in found):
    of_run = {run: found.get(name, {}) for run, found in reports.items()}
    rows = []
    for measure in dict.fromkeys(measure for found in of_run.values() for measure in found):
      held = {run: found[measure] for run, found in of_run.items() if measure in found}
      row: dict[str, Any] = {"measure": measure}
      row["values"] = {run: {"value": one.value, "stderr": one.stderr} for run, one in held.items()}
      row["differences"] = {
        run: dataclasses.asdict(comparison.difference(held[first], held[run]))
        for run in others
        if first in held and run in held
      }
      rows.append(row)
    tables[name] = rows
  return tables


def _pages(runs: Sequence[str], tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
  """The tables as text: one for every report and every run but the first."""
  from hiermem_jax.evaluation.report import aligned

  first, *others = runs
  pages = []
  for name, rows in tables.items():
    for run in others:
      lines = [[name, first, run, "difference", "95% interval", ""]]
      for row in rows:
        values = [_number(row["values"].get(one)) for one in (first, run)]
        lines.append([row["measure"], *values, *_difference(row["differences"].get(run))])
      pages.append(aligned(lines))
  return pages


def _number(cell: Mapping[str, Any] | None) -> str:
  return "–" if cell is None else f"{cell['value']:.4g}"


def _difference(found: Mapping[str, Any] | None) -> list[str]:
  """Difference, interval, and what it is of."""
  if found is None:
    return ["–", "", ""]
  if found["paired"]:
    how = f"paired, {found['items']:,} items"
  elif found["items"] and found["low"] is not None:
    how = f"unpaired: different items ({found['common']:,} of {found['items']:,} in common)"
  else:
    how = "unpaired: no results by item"
  interval = "unknown" if found["low"] is None else f"{found['low']:+.4g} to {found['high']:+.4g}"
  return [f"{found['value']:+.4g}", interval, how]


def _draw(curves: Mapping[str, Mapping[str, Any]], path: str) -> None:
  """A panel for each training of the runs: loss, and held-out loss with marks; a colour for each run."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  from hiermem_jax.evaluation.report import write_figure

  trainings = list(dict.fromkeys(name for found in curves.values() for name in found))
  figure, axes = plt.subplots(
    1, len(trainings), figsize=(max(6.0, 4.6 * len(trainings)), 4.4), squeeze=False, layout="constrained"
  )
  lines = {}
  for axis, training in zip(axes[0], trainings):
    shown = []
    for number, (run, found) in enumerate(curves.items()):
      look = {"color": f"C{number}", "linestyle": _DASHES[number % len(_DASHES)]}  # equal curves stay visible
      for name, marks in (("loss", {}), ("loss/validation", {"marker": "o", "markersize": 4})):
        points = found.get(training, {}).get(name, [])
        label = run if name == "loss" else f"{run}, held out"
        if points:
          shown += [value for _, value in points[len(points) // 10 :]]
          (lines[label],) = axis.plot(*zip(*points), linewidth=1.2, label=label, **look, **marks)
    axis.set_title("training" if training == "." else training, fontsize=11)
    axis.set_xlabel("step")
    axis.spines[["top", "right"]].set_visible(False)
    if shown:  # the fall of the first steps would flatten the rest
      low, high = min(shown), max(shown)
      axis.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low) or None)
  axes[0][0].set_ylabel("loss (nats per token)")
  figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=2, frameon=False)
  write_figure(figure, path)
