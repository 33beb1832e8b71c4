"""Runs a sweep on this machine, several runs at a time, and keeps the results in one JSONL file.

  python experiments/sweep.py experiments/fig3_kinds_depth/sweep.json --runs_root=runs/toy --jobs=2

hiermem_jax/sweep.py explains the sweep's file. A run's directory is RUNS_ROOT/NAME_SEED, and its log is beside it. A
finished run is a line of results.jsonl, beside the sweep's file; a run that has a line is not run again, and a run that
was interrupted goes on where it was.
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from hiermem_jax import sweep as runs
from hiermem_jax.errors import InputError


def main(argv: Sequence[str]) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("sweep", type=pathlib.Path)
  parser.add_argument("--runs_root", type=pathlib.Path, required=True, help="where run directories and logs go")
  parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
  parser.add_argument("--only", default="", help="a regular expression: runs whose name has it")
  parser.add_argument("--dry_run", action="store_true", help="print the commands")
  arguments = parser.parse_args(argv)
  try:
    sweep = runs.load(arguments.sweep)
    todo = list(runs.jobs(sweep, arguments.runs_root, arguments.only))
    if arguments.dry_run:
      print("\n".join(subprocess.list2cmdline(job.command) for job in todo))
      return 0
    with runs.interruptible():
      failed = runs.Runner(sweep, arguments.sweep.with_name("results.jsonl"), arguments.jobs).run(todo)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130
  if failed:
    print(f"failed: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
