r"""Makes the tables, plots and statements of an experiment from its results.jsonl, as its report.json says.

  python experiments/report.py experiments/fig3_kinds_depth        # prints; writes the plots and the README's section

report.json:

  {"tables": [{"title": "Kinds", "where": {"study": "kind"}, "rows": ["kind", "size"],
               "columns": {"held-out loss": "fetched.loss", "rare facts, %": "fetched.rare"}}],
   "plots": [{"file": "kinds", "panels": [{"title": "Loss", "where": {"study": "kind"}, "x": "fetched", "by": "kind",
              "y": {"fetched": "fetched.loss"}, "log": true, "xlabel": "fetched parameters", "ylabel": "nats"}]}],
   "trends": [{"text": "FFN beats LoRA-QK", "better": {"kind": "ffn"}, "worse": {"kind": "lora_qk"},
               "value": "fetched.loss", "match": ["size"]}]}

With `series`, a table has a row for each of these, and its columns are measures without theirs.

A measure is SERIES.NAME of a run's evaluation: `loss`, `perplexity`, `facts` (share of all questions answered, %),
`rare` (of those about facts stated 1 to 15 times), `common` (4 to 63 times), `bucket_0`, `bucket_1` ... (by frequency),
`relative_flops`; or
`settings.NAME`; or `lost.LEVEL_BUCKET`, what answers about facts of that frequency lose without that level (nats).
Values are means over seeds with standard deviations. A trend compares runs of the same seed that agree in the settings
under `match`; `value` may be two measures, of the better and of the worse, and `higher` says that more is better.
"""

import argparse
import collections
import json
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hiermem_jax import files
from hiermem_jax.errors import InputError

Line = Mapping[str, Any]

COLORS = ("#2a7ab9", "#e0a030", "#4c9a62", "#b04a5a", "#7a6ab0", "#4c4c4c", "#50a0a8", "#a06a40")  # fmt: skip
_START, _END = "<!-- results -->", "<!-- /results -->"


def load(path: pathlib.Path) -> list[Line]:
  """The runs of a results file.

  Raises:
    InputError: there is none, or a line is not a run.
  """
  if not path.exists():
    raise InputError(f"{path}: no results yet; run the sweep first")
  lines = []
  for number, text in enumerate(path.read_text().splitlines(), start=1):
    try:
      line = json.loads(text)
      lines.append({"settings": line["settings"], "seed": line["seed"], "series": line["result"]["series"]} | line)
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(f"{path}, line {number}: not a run's result ({error}); delete the line and run again") from None
  return lines


def measure(line: Line, name: str) -> float | None:
  """A number of a run; see the module's docstring. None where the run has none."""
  series, _, key = name.partition(".")
  if series == "settings":
    return line["settings"].get(key)
  if series == "lost":  # lost.LEVEL_BUCKET
    level, bucket = map(int, key.split("_"))
    attribution = line["result"]["attribution"]
    return attribution["lost_without_level"][bucket][attribution["levels"].index(level)]
  cells = line["series"].get(series)
  if cells is None:
    return None
  if key in ("loss", "perplexity", "relative_flops"):
    return cells.get(key)
  probes = cells["probes"]
  if key.startswith("bucket_"):
    chosen = probes[int(key.removeprefix("bucket_")) :][:1]
  else:
    chosen = {"facts": probes, "rare": probes[:2], "common": probes[1:3]}[key]
  return 100 * sum(cell["accuracy"] * cell["count"] for cell in chosen) / sum(cell["count"] for cell in chosen)


def matching(lines: Sequence[Line], where: Mapping[str, Any]) -> list[Line]:
  """The runs that have these settings; a list of values means any of them."""

  def fits(line):
    held = line["settings"]
    return all(held.get(k) in v if isinstance(v, list) and k != "rows" else held.get(k) == v for k, v in where.items())

  return [line for line in lines if fits(line)]


def spread(values: Sequence[float]) -> tuple[float, float]:
  """Mean and standard deviation (0 of one value)."""
  return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _groups(lines: Sequence[Line], keys: Sequence[str]) -> dict[tuple, list[Line]]:
  groups = collections.defaultdict(list)
  for line in lines:
    groups[tuple(_text(line["settings"].get(key, "")) for key in keys)].append(line)
  return dict(groups)


def _text(value: Any) -> str:
  if isinstance(value, list):
    return f"({', '.join(map(str, value))})"
  return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def table(lines: Sequence[Line], spec: Mapping[str, Any]) -> str:
  """One table in Markdown."""
  chosen = matching(lines, spec.get("where", {}))
  seeds = len({line["seed"] for line in chosen})
  keys, columns, series = spec.get("rows", []), spec["columns"], spec.get("series", [""])
  head = [*keys, *(["memory"] if series != [""] else [])]
  out = [f"**{spec['title']}** ({seeds} seeds, mean ± standard deviation)", ""]
  out.append("| " + " | ".join([*head, *columns]) + " |")
  out.append("|" + "---|" * len(head) + "---:|" * len(columns))
  for group, runs in _groups(chosen, keys).items():
    for mode in series:
      names = [f"{mode}.{name}" if mode else name for name in columns.values()]
      out.append("| " + " | ".join([*group, *([mode] if mode else []), *(_cell(runs, name) for name in names)]) + " |")
  return "\n".join(out)


def _cell(runs: Sequence[Line], name: str) -> str:
  values = [value for run in runs if (value := measure(run, name)) is not None]
  if not values:
    return "–"
  mean, deviation = spread(values)
  digits = 3 if name.endswith("loss") else 1
  return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def holds(lines: Sequence[Line], trend: Mapping[str, Any]) -> tuple[int, int]:
  """In how many comparisons a trend holds, and of how many."""
  names = trend["value"]
  better_name, worse_name = (names, names) if isinstance(names, str) else names
  match = trend.get("match", [])

  def places(where, name):
    runs = matching(lines, trend.get("where", {}) | where)
    found = {}
    for run in runs:
      if (value := measure(run, name)) is not None:
        found[run["seed"], *(_text(run["settings"].get(key)) for key in match)] = value
    return found

  better, worse = places(trend.get("better", {}), better_name), places(trend.get("worse", {}), worse_name)
  common = better.keys() & worse.keys()
  sign = 1 if trend.get("higher") else -1
  return sum(sign * (better[key] - worse[key]) > 0 for key in common), len(common)


def trends(lines: Sequence[Line], specs: Sequence[Mapping[str, Any]]) -> str:
  """What came out and what did not, as a table."""
  out = ["| expected | holds in |", "|---|---|"]
  for spec in specs:
    count, total = holds(lines, spec)
    said = f"{count} of {total}"
    out.append(f"| {spec['text']} | {said if count == total else f'**{said}**'} |")
  return "\n".join(out)


def draw(lines: Sequence[Line], spec: Mapping[str, Any], directory: pathlib.Path) -> None:
  """One figure, as PNG and SVG."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  panels = spec["panels"]
  figure, axes = plt.subplots(1, len(panels), figsize=(5.4 * len(panels), 4), squeeze=False, layout="constrained")
  for axis, panel in zip(axes[0], panels):
    (_bars if panel.get("bars") else _curves)(axis, matching(lines, panel.get("where", {})), panel)
    axis.set_title(panel["title"], fontsize=11)
    axis.set_xlabel(panel.get("xlabel", ""))
    axis.set_ylabel(panel.get("ylabel", ""))
    axis.spines[["top", "right"]].set_visible(False)
    if len(axis.get_legend_handles_labels()[1]) > 1:
      axis.legend(frameon=False, fontsize=8)
  for kind in ("png", "svg"):
    with files.written(directory / f"{spec['file']}.{kind}") as file:
      figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
  plt.close(figure)


def _curves(axis, lines: Sequence[Line], panel: Mapping[str, Any]) -> None:
  """A line with error bars per value of the setting `by` and measure."""
  by = [panel["by"]] if "by" in panel else []
  number = 0
  for group, runs in _groups(lines, by).items():
    for label, name in panel["y"].items():
      points = collections.defaultdict(list)
      for run in runs:
        if (value := measure(run, name)) is not None:
          points[run["settings"][panel["x"]]].append(value)
      if points:
        xs = sorted(points)
        means, errors = zip(*(spread(points[x]) for x in xs))
        named = " ".join([*group, *([label] if len(panel["y"]) > 1 or not group else [])])
        color = COLORS[number % len(COLORS)]
        axis.errorbar(xs, means, errors, marker="o", ms=4, capsize=2, lw=1.5, color=color, label=named)
        number += 1
  if panel.get("log"):
    axis.set_xscale("log")


def _bars(axis, lines: Sequence[Line], panel: Mapping[str, Any]) -> None:
  """Bars with error bars: groups of the setting `x`, or of all runs, a bar in each per measure."""
  groups = _groups(lines, [panel["x"]] if "x" in panel else [])
  width = 0.8 / len(panel["y"]) if len(groups) > 1 else 0.8
  ticks = []
  for place, (group, runs) in enumerate(groups.items()):
    for number, (label, name) in enumerate(panel["y"].items()):
      mean, error = spread([value for run in runs if (value := measure(run, name)) is not None])
      x = place + (number - (len(panel["y"]) - 1) / 2) * width if len(groups) > 1 else number
      many = len(groups) > 1
      style = {"color": COLORS[number % len(COLORS) if many else 0], "label": label if many and place == 0 else None}
      axis.bar(x, mean, 0.95 * width, yerr=error, capsize=2, **style)
    ticks.append(group[0] if group else "")
  if len(groups) > 1:
    axis.set_xticks(range(len(ticks)), ticks)
  else:
    axis.set_xticks(range(len(panel["y"])), panel["y"], rotation=40, ha="right")
  if "ymin" in panel:
    axis.set_ylim(bottom=panel["ymin"])


def page(lines: Sequence[Line], spec: Mapping[str, Any]) -> str:
  """Tables, pictures and trends in Markdown."""
  parts = [table(lines, one) for one in spec.get("tables", [])]
  parts += [f"![{plot['panels'][0]['title']}]({plot['file']}.png)" for plot in spec.get("plots", [])]
  if spec.get("trends"):
    parts.append(trends(lines, spec["trends"]))
  return "\n\n".join(parts)


def replace_section(readme: pathlib.Path, text: str) -> None:
  """Puts text between the marks of a README.

  Raises:
    InputError: it has no marks.
  """
  before, start, rest = readme.read_text().partition(_START)
  _, end, after = rest.partition(_END)
  if not start or not end:
    raise InputError(f"{readme}: no section for results; add the lines {_START} and {_END}")
  files.write_text(readme, f"{before}{_START}\n{text}\n{_END}{after}")


def main(argv: Sequence[str]) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("experiment", type=pathlib.Path, help="its folder")
  folder = parser.parse_args(argv).experiment
  try:
    spec, lines = json.loads((folder / "report.json").read_text()), load(folder / "results.jsonl")
    for plot in spec.get("plots", []):
      draw(lines, plot, folder)
    text = page(lines, spec)
    print(text)
    replace_section(folder / "README.md", text)
  except (InputError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
