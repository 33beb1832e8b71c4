r"""Runs a sweep: a list of gin bindings, each a run of a verb; several at a time, resumable, results in one JSONL file.

  python experiments/sweep.py experiments/fig3_kinds_depth/sweep.json --runs_root=runs/toy --jobs=2

A sweep is a JSON file:

  {"gin_files": ["experiments/toy/frozen.gin"],           of every run
   "bindings": ["SEED = {seed}", ...],                    of every run
   "seeds": [0, 1, 2],
   "setup": "experiments/toy/setup.gin",                  optional: a run per seed that comes before all others
   "result": "evaluation/report.json",                    what a run leaves; stored with "train", optional, see below
   "train": "report.json",                                optional: a training's report
   "runs": [{"name": "ffn_15", "settings": {"kind": "ffn", "units": 15}, "bindings": ["MemoryConfig.kind = 'ffn'"],
             "gin_files": []}]}

In bindings, {seed} is the seed and {setup} the directory of the seed's setup. A run's directory is
RUNS_ROOT/NAME_SEED, and beside it is its log. A finished run is a line of results.jsonl, beside the sweep; what has one
is not run again. A run that was interrupted goes on where it was.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from hiermem_jax.errors import InputError

_KEYS = {"gin_files", "bindings", "seeds", "setup", "result", "train", "runs"}
_RUN_KEYS = {"name", "settings", "bindings", "gin_files"}
_PREEMPTED = 75  # the verbs' exit status after SIGTERM: the same command goes on
_LOG_LINES = 15


class Job(NamedTuple):
  """One run."""

  name: str
  seed: int
  settings: dict[str, Any]
  command: list[str]
  directory: pathlib.Path


def load(path: pathlib.Path) -> dict[str, Any]:
  """Reads and checks a sweep.

  Raises:
    InputError: the file is not a sweep.
  """
  try:
    sweep = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: {error}; give a sweep file") from None
  for entry, keys, where in [(sweep, _KEYS, "")] + [(run, _RUN_KEYS, ", a run") for run in sweep.get("runs", [])]:
    if unknown := sorted(set(entry) - keys):
      raise InputError(f"{path}{where}: unknown {', '.join(unknown)}; the keys are {', '.join(sorted(keys))}")
  if missing := sorted({"seeds", "result", "runs"} - set(sweep)):
    raise InputError(f"{path}: {', '.join(missing)} missing; add it")
  names = [run["name"] for run in sweep["runs"]]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    raise InputError(f"{path}: runs of the same name, {', '.join(twice)}; rename one")
  files = [*sweep.get("gin_files", []), *(file for run in sweep["runs"] for file in run.get("gin_files", []))]
  for file in [*files, *([sweep["setup"]] if "setup" in sweep else [])]:
    if not os.path.isfile(file):
      raise InputError(f"{path}: {file}: no such file; gin files are relative to {os.getcwd()}")
  return sweep


def command(gin_files: Sequence[str], bindings: Sequence[str], directory: pathlib.Path) -> list[str]:
  """The command line of a run."""
  flags = [f"--gin_file={file}" for file in gin_files] + [f"--gin_bindings={binding}" for binding in bindings]
  return [sys.executable, "-m", "hiermem_jax.quickstart", *flags, f"--run_dir={directory}"]


def jobs(sweep: dict[str, Any], runs_root: pathlib.Path, only: str = "") -> Iterator[Job]:
  """All runs, seed by seed; the setups are runs named "setup" without a result."""
  root = runs_root.absolute()
  for seed in sweep["seeds"]:
    setup = root / f"setup_{seed}"
    if "setup" in sweep:
      yield Job("setup", seed, {}, command([sweep["setup"]], [f"SEED = {seed}"], setup), setup)
    for run in sweep["runs"]:
      if re.search(only, run["name"]):
        directory = root / f"{run['name']}_{seed}"
        bindings = [*sweep.get("bindings", []), *run.get("bindings", [])]
        bindings = [binding.replace("{seed}", str(seed)).replace("{setup}", str(setup)) for binding in bindings]
        files = [*sweep.get("gin_files", []), *run.get("gin_files", [])]
        yield Job(run["name"], seed, run.get("settings", {}), command(files, bindings, directory), directory)


def run_local(
  command: Sequence[str], log: pathlib.Path, cpu: int | None, started: Callable = lambda child: None
) -> int:
  """Runs a command in a process of its own, on one core if asked to; returns its exit status."""
  pinned = ["taskset", "-c", str(cpu)] if cpu is not None and shutil.which("taskset") else []
  # Large pages make the step's big buffers cheaper to allocate on a CPU.
  environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}
  with open(log, "ab") as file:
    settings = {"stdout": file, "stderr": subprocess.STDOUT, "env": environment}
    child = subprocess.Popen([*pinned, *command], start_new_session=True, **settings)  # Ctrl-C is the runner's
    started(child)
    return child.wait()


class Runner:
  """Runs the jobs of a sweep and keeps their results."""

  def __init__(
    self,
    sweep: dict[str, Any],
    results: pathlib.Path,
    workers: int,
    launch: Callable[..., int] = run_local,
    read: Callable[[pathlib.Path], str] = pathlib.Path.read_text,
  ):
    """Looks up what is done.

    Args:
      sweep: see `load`.
      results: JSON lines, appended to.
      workers: runs at a time; each has a core of its own where there are several.
      launch: starts a command; see `run_local`.
      read: reads a file of a run directory.
    """
    self._sweep, self._results, self._launch, self._workers = sweep, results, launch, workers
    self._read = read
    lines = results.read_text().splitlines() if results.exists() else []
    self._done = {(line["name"], line["seed"]) for line in map(json.loads, lines)}
    self._lock, self._stopping = threading.Lock(), threading.Event()
    self._children, self._failed = set(), []
    self._cpus: queue.Queue = queue.Queue()
    for cpu in range(workers):
      self._cpus.put(cpu if workers > 1 else None)

  def run(self, todo: Sequence[Job]) -> list[str]:
    """Runs what is not done; returns the names of what failed."""
    todo = [job for job in todo if job.name == "setup" or (job.name, job.seed) not in self._done]
    needed = {job.seed for job in todo if job.name != "setup"}
    todo = [job for job in todo if job.seed in needed]
    self._left = self._total = len(todo)
    self._begin = time.monotonic()
    print(f"{self._total} runs, {len(self._done)} done before", flush=True)
    with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
      try:
        setups = {job.seed: pool.submit(self._one, job) for job in todo if job.name == "setup"}
        rest = [pool.submit(self._after, setups.get(job.seed), job) for job in todo if job.name != "setup"]
        concurrent.futures.wait([*setups.values(), *rest])
      except KeyboardInterrupt:
        self._stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for child in list(self._children):
          child.terminate()
        raise
    for future in [*setups.values(), *rest]:
      future.result()
    return self._failed

  def _after(self, setup: concurrent.futures.Future | None, job: Job) -> None:
    if setup is None or setup.result():
      self._one(job)

  def _one(self, job: Job) -> bool:
    """Runs one job and stores its result; says whether it succeeded."""
    cpu = self._cpus.get()
    start = time.monotonic()
    log = job.directory.with_name(f"{job.directory.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    status = _PREEMPTED
    while status == _PREEMPTED and not self._stopping.is_set():
      status = self._launch(job.command, log, cpu, self._children.add)
    self._cpus.put(cpu)
    if self._stopping.is_set():
      return False
    seconds = time.monotonic() - start
    with self._lock:
      self._left -= 1
      ended = self._total - self._left
      left = (time.monotonic() - self._begin) / ended * self._left
      what = "done" if status == 0 else f"FAILED with status {status}"
      print(
        f"[{ended}/{self._total}] {job.directory.name} {what} in {seconds:.0f} s; about {left / 60:.0f} min left",
        flush=True,
      )
      if status:
        self._failed.append(job.directory.name)
        print("".join(f"  {line}\n" for line in log.read_text(errors="replace").splitlines()[-_LOG_LINES:]), flush=True)
      elif job.name != "setup":
        self._store(job, seconds)
    return status == 0

  def _store(self, job: Job, seconds: float) -> None:
    line = {"name": job.name, "seed": job.seed, "settings": job.settings, "seconds": round(seconds, 1)}
    for key in ("result", "train"):
      if key in self._sweep:
        line[key] = json.loads(self._read(job.directory / self._sweep[key]))
    with open(self._results, "a", encoding="utf-8") as file:
      file.write(json.dumps(line) + "\n")


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
    sweep = load(arguments.sweep)
    todo = list(jobs(sweep, arguments.runs_root, arguments.only))
    if arguments.dry_run:
      print("\n".join(subprocess.list2cmdline(job.command) for job in todo))
      return 0
    failed = Runner(sweep, arguments.sweep.with_name("results.jsonl"), arguments.jobs).run(todo)
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
