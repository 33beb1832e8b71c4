r"""Compiles the paper's runs for pods and prints the tables of experiments/pods/README.md.

  python experiments/pods/compile_all.py                          # what is not in results.jsonl yet
  python experiments/pods/compile_all.py --table                  # only prints

Every entry is one `compile_pod` command, whose JSON report becomes a line of results.jsonl. To compile one again,
delete its line. Needs no TPU, but libtpu (pip install -e ".[tpu]"), and one to five minutes for an entry on two cores.
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import subprocess
import sys

RESULTS = pathlib.Path(__file__).with_name("results.jsonl")
_POD, _TWO = ("v5e:16x16", 1), ("v5e:16x16", 2)
_LARGE = [_POD, ("v5p:8x8x8", 1), ("v6e:16x16", 1), _TWO]
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Entry:
  """A line: a run on a pod, with files of gin/pods and what is bound beyond them."""

  run: str
  topology: str
  slices: int = 1
  bindings: tuple[str, ...] = ()
  files: tuple[str, ...] = ("tpu",)

  @property
  def command(self) -> str:
    """The shell command, without --json."""
    parts = ["python", "-m", "hiermem_jax.compile_pod", f"--topology={self.topology}"]
    parts += [f"--num_slices={self.slices}"] if self.slices > 1 else []
    parts += [f"--gin_file=gin/runs/{self.run}.gin", *(f"--gin_file=gin/pods/{name}.gin" for name in self.files)]
    return shlex.join(parts + [f"--gin_bindings={binding}" for binding in self.bindings])


# The first topology of a run is the smallest v5e slice that it fits.
ENTRIES = [
  *(Entry("a2", *pod) for pod in [("v5e:4x8", 1), *_LARGE]),
  Entry("a2", *_POD, files=("tpu", "whole_weights")),
  *(Entry("b2", *pod) for pod in [("v5e:8x8", 1), *_LARGE]),
  *(Entry("c2", *pod, ("AnchorConfig.logits_chunk = 32",)) for pod in _LARGE),
  *(Entry("a2_18b", *pod) for pod in [("v5e:4x8", 1), *_LARGE]),
]
# What the backward pass may keep, on one pod; gin/pods/tpu.gin binds 'full'.
REMAT = [Entry("a2", *_POD)] + [
  Entry("a2", *_POD, (f"AnchorConfig.remat = {remat}",))
  for remat in ("('attention', 'w1', 'w2')", "('attention@host', 'w1@host', 'w2@host')", "'dots'", "'none'")
]


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


def table() -> str:
  """The reports of `ENTRIES` as a Markdown table."""
  lines = [
    "| run | pod | sequences per chip | state GiB | temporaries GiB | of GiB | model TFLOPs | anchor MB | fetch MB"
    " (ratio) | gradient MB (ratio) | over DCN MB | HBM GB (ratio) | bound by | MFU at most | in turn |",
    "|" + "---|" * 15,
  ]
  done = results()
  for entry in ENTRIES:
    if (report := done.get(entry.command)) is None:
      continue
    hbm, pod = report["hbm"], report["topology"] + (f" x {report['slices']}" if report["slices"] > 1 else "")
    whole = ", whole weights" if "whole_weights" in entry.files else ""
    cells = [entry.run + whole, pod, f"{report['batch_size'] * report['mesh']['model'] / report['devices']:g}"]
    cells += [f"{hbm[name] / _GIB:.2f}" for name in ("arguments", "temporaries")] + [f"{hbm['usable'] / _GIB:.2f}"]
    cells += work(report) if report["fits"] else ["does not fit"] + [""] * 8
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def remat_table() -> str:
  """The reports of `REMAT` as a Markdown table."""
  lines = [
    "| remat | temporaries GiB | TFLOPs | kernels | HBM GB | compute ms | HBM ms | network ms |",
    "|" + "---|" * 8,
  ]
  done = results()
  for entry in REMAT:
    if (report := done.get(entry.command)) is None:
      continue
    choice = entry.bindings[0].split(" = ")[1] if entry.bindings else "'full'"
    cells = [f"`{choice}`", f"{report['hbm']['temporaries'] / _GIB:.2f}"]
    if report["fits"]:
      cells += [f"{report['flops']['compiled'] / 1e12:.1f}", str(report["flops"]["kernels"])]
      cells += [f"{report['hbm_traffic']['counted'] / 1e9:.1f}"]
      seconds = (report["seconds"]["flops"], report["compiled_hbm_seconds"], report["seconds"]["ici"])
      cells += [f"{1e3 * value:.1f}" for value in seconds]
    else:
      cells += ["does not fit"] + [""] * 5
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
  moved = ["-", "-"]
  if report["exchange"]:
    pairs = [(total[kind]["bytes"], total[kind]["bound"]) for kind in ("fetch", "push")]
    moved = [f"{sent / 1e6:.1f} ({sent / bound:.2f})" for sent, bound in pairs]
  traffic = report["hbm_traffic"]  # lines from before tiles were counted have no number
  counted = "-" if traffic["counted"] is None else f"{traffic['counted'] / 1e9:.0f} ({traffic['ratio']:.1f})"
  dcn = f"{total['dcn']['bytes'] / 1e6:.1f}" if total["dcn"]["bytes"] else "-"
  return [
    f"{report['flops']['model'] / 1e12:.1f}",
    f"{anchor / 1e6:.0f}",
    *moved,
    dcn,
    counted,
    report["bound_by"],
    f"{report['mfu_bound']:.0%}",
    "-" if report["mfu_in_turn"] is None else f"{report['mfu_in_turn']:.0%}",
  ]


def main() -> None:
  """Compiles what is missing and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--table", action="store_true", help="compile nothing")
  flags = parser.parse_args()
  if not flags.table:
    for entry in [*ENTRIES, *REMAT]:
      if entry.command not in results():  # read again each time: another process may be filling the same file
        print(entry.command, file=sys.stderr)
        compile_entry(entry.run, entry.command)
  print(table())
  print()
  print(remat_table())


if __name__ == "__main__":
  main()
