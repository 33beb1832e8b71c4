r"""Gathers the runs of variants.gin: one line of JSON per run, and the table of README.md.

  python experiments/bank_optimizer/collect.py runs/bank_optimizer_0 runs/bank_optimizer_1 > results.jsonl

The table goes to standard error: differences from `cotrain` of the same run, or their means and, in brackets, their
smallest and largest.
"""

import json
import pathlib
import statistics
import sys

# Variant -> bytes of a bank parameter: its table and two moments.
BYTES = {
  "cotrain": 4 + 2 * 4,
  "again": 4 + 2 * 4,
  "lazy": 4 + 2 * 4,
  "auto": 4 + 2 * 4,
  "bf16_moments": 4 + 2 * 2,
  "bf16_tables": 2 + 2 * 4,
  "bf16_both": 2 + 2 * 2,
}


def accuracy(series: dict) -> float:
  """Share of all questions that are answered."""
  buckets = series["probes"]
  return sum(b["count"] * b["accuracy"] for b in buckets) / sum(b["count"] for b in buckets)


def main(run_dirs: list[str]) -> None:
  """Prints lines and table."""
  runs = []
  for directory in map(pathlib.Path, run_dirs):
    reports = {v: json.loads((directory / "evaluation" / v / "report.json").read_text()) for v in BYTES}
    variants = {v: {"bytes_per_parameter": BYTES[v], "series": report["series"]} for v, report in reports.items()}
    line = {
      "run": directory.name,
      "steps": json.loads((directory / "cotrain" / "report.json").read_text())["steps"],
      "buckets": reports["cotrain"]["probes"]["buckets"],
      "variants": variants,
    }
    print(json.dumps(line, ensure_ascii=False))
    runs.append(variants)

  def cell(variant, value, digits, relative=True):
    own = [value(run[variant]["series"]) for run in runs]
    if variant == "cotrain" or not relative:
      return f"{statistics.mean(own):.{digits}f}"
    reference = [value(run["cotrain"]["series"]) for run in runs]
    differences = [a - b for a, b in zip(own, reference)]
    bounds = f" ({min(differences):+.{digits}f} .. {max(differences):+.{digits}f})" if len(runs) > 1 else ""
    return f"{statistics.mean(differences):+.{digits}f}{bounds}"

  for variant in BYTES:
    cells = [variant, str(BYTES[variant])]
    cells += [cell(variant, lambda s, mode=mode: s[mode]["loss"], 4) for mode in ("fetched", "generic")]
    cells += [cell(variant, lambda s: 100 * accuracy(s["fetched"]), 1)]
    buckets = range(len(runs[0][variant]["series"]["fetched"]["probes"]))
    cells += [cell(variant, lambda s, b=b: 100 * s["fetched"]["probes"][b]["accuracy"], 1, False) for b in buckets]
    print("| " + " | ".join(cells) + " |", file=sys.stderr)


if __name__ == "__main__":
  main(sys.argv[1:])
