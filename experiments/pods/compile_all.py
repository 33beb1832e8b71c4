r"""Compiles the paper's runs for pods and prints the table of experiments/pods/README.md.

  python experiments/pods/compile_all.py                          # what is not in results.jsonl yet
  python experiments/pods/compile_all.py --table                  # only prints

Every entry is one `compile_pod` command, whose JSON report becomes a line of results.jsonl. To compile one again,
delete its line. Needs no TPU, but libtpu (pip install -e ".[tpu]"), and one to five minutes for an entry on two cores.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys

RESULTS = pathlib.Path(__file__).with_name("results.jsonl")
_POD, _TWO = ("v5e:16x16", 1), ("v5e:16x16", 2)
_LARGE = [_POD, ("v5p:8x8x8", 1), ("v6e:16x16", 1), _TWO]
# Run, topologies (the first is the smallest v5e slice that it fits), and what is bound beyond gin/pods/tpu.gin.
ENTRIES = [
  ("a2", [("v5e:4x8", 1), *_LARGE], ()),
  ("b2", [("v5e:8x8", 1), *_LARGE], ()),
  ("c2", [*_LARGE], ("AnchorConfig.logits_chunk = 32",)),
  ("a2_18b", [("v5e:4x8", 1), *_LARGE], ()),
]
_GIB = 2**30


def command(run: str, topology: str, slices: int, bindings: tuple[str, ...]) -> str:
  """The shell command of an entry, without --json."""
  parts = ["python", "-m", "hiermem_jax.compile_pod", f"--topology={topology}"]
  parts += [f"--num_slices={slices}"] if slices > 1 else []
  parts += [f"--gin_file=gin/runs/{run}.gin", "--gin_file=gin/pods/tpu.gin"]
  return shlex.join(parts + [f"--gin_bindings={binding}" for binding in bindings])


def results() -> dict[str, dict]:
  """Reports by command."""
  lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
  return {entry["command"]: entry for entry in map(json.loads, lines)}


def compile_entry(run: str, text: str) -> None:
  """Runs a command and keeps its report."""
  done = subprocess.run([sys.executable, *shlex.split(text)[1:], "--json"], stdout=subprocess.PIPE, text=True)
  if not done.stdout.strip():
    raise SystemExit(f"error: {text}: ended with status {done.returncode} and no report; run it alone")
  report = json.loads(done.stdout)
  with RESULTS.open("a") as file:
    file.write(json.dumps({"run": run, "command": text, **report}) + "\n")


def table(entries: list[tuple[str, str]]) -> str:
  """The reports as a Markdown table."""
  lines = [
    "| run | pod | sequences per chip | state GiB | temporaries GiB | of GiB | model TFLOPs | anchor MB | fetch MB"
    " (ratio) | gradient MB (ratio) | over DCN MB | bound by | MFU at most |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  done = results()
  for run, text in entries:
    if (report := done.get(text)) is None:
      continue
    hbm, pod = report["hbm"], report["topology"] + (f" x {report['slices']}" if report["slices"] > 1 else "")
    cells = [run, pod, f"{report['batch_size'] * report['mesh']['model'] / report['devices']:g}"]
    cells += [f"{hbm[name] / _GIB:.2f}" for name in ("arguments", "temporaries")] + [f"{hbm['usable'] / _GIB:.2f}"]
    cells += work(report) if report["fits"] else ["does not fit"] + [""] * 6
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def work(report: dict) -> list[str]:
  """The cells of a step that fits."""
  total = {kind: {"bytes": 0, "bound": 0} for kind in ("fetch", "push", "dcn")}
  for row in report["exchange"]:
    kind = "dcn" if row["network"] == "DCN" else row["tensor"].split()[0]
    for name in ("bytes", "bound"):
      total[kind][name] += row[name]
  anchor = sum(row["bytes"] for row in report["collectives"]) - sum(row["bytes"] for row in report["exchange"])
  moved = [
    f"{total[kind]['bytes'] / 1e6:.1f} ({total[kind]['bytes'] / total[kind]['bound']:.2f})"
    for kind in ("fetch", "push")
  ]
  dcn = f"{total['dcn']['bytes'] / 1e6:.1f}" if total["dcn"]["bytes"] else "-"
  return [
    f"{report['flops']['model'] / 1e12:.1f}",
    f"{anchor / 1e6:.0f}",
    *moved,
    dcn,
    report["bound_by"],
    f"{report['mfu_bound']:.0%}",
  ]


def main() -> None:
  """Compiles what is missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--table", action="store_true", help="compile nothing")
  flags = parser.parse_args()
  entries = [
    (run, command(run, topology, slices, bindings))
    for run, topologies, bindings in ENTRIES
    for topology, slices in topologies
  ]
  if not flags.table:
    for run, text in entries:
      if text not in results():  # read again each time: another process may be filling the same file
        print(text, file=sys.stderr)
        compile_entry(run, text)
  print(table(entries))


if __name__ == "__main__":
  main()
