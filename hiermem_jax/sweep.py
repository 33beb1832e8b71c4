"""Sweeps: many runs that differ in their gin bindings. Several run at a time, and each result is kept.

A sweep is a JSON file:

  {"gin_files": ["experiments/toy/frozen.gin"],           of every run
   "bindings": ["SEED = {seed}", ...],                    of every run
   "seeds": [0, 1, 2],
   "setup": "experiments/toy/setup.gin",                  optional: a run per seed that comes before all others
   "result": "evaluation/report.json",                    the file of a run directory that is the run's result
   "train": "report.json",                                optional: a second such file, a training's report
   "runs": [{"name": "ffn_15", "settings": {"kind": "ffn", "units": 15}, "bindings": ["MemoryConfig.kind = 'ffn'"],
             "gin_files": []}]}

In bindings, {seed} is the seed and {setup} the directory of the seed's setup. Every run is the verb `run` on a chain of
verbs. `experiments/sweep.py` runs a sweep on this machine and `tpu_setup` runs it on TPU slices.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from hiermem_jax.errors import InputError

_KEYS = {"gin_files", "bindings", "seeds", "setup", "result", "train", "runs"}
_RUN_KEYS = {"name", "settings", "bindings", "gin_files"}
_PREEMPTED = 75  # the verbs' exit status after SIGTERM: the same command goes on
_LOG_LINES = 15


class Job(NamedTuple):
  """One run.

  Attributes:
    name: of the run in the sweep; "setup" for a seed's setup, which has no result.
    seed: one of the sweep's seeds.
    settings: as in the sweep; they are stored with the result.
    flags: of `run`, without the run directory.
    directory: the run directory. Beside it, with the suffix .log, is the log.
  """

  name: str
  seed: int
  settings: dict[str, Any]
  flags: list[str]
  directory: pathlib.Path

  @property
  def command(self) -> list[str]:
    """The command line of the run on this machine."""
    return [sys.executable, "-m", "hiermem_jax.run", *self.flags, f"--run_dir={self.directory}"]


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


def jobs(sweep: dict[str, Any], runs_root: pathlib.Path, only: str = "") -> Iterator[Job]:
  """Yields all runs, seed by seed, each seed's setup first.

  Args:
    sweep: see `load`.
    runs_root: run directories are RUNS_ROOT/NAME_SEED.
    only: a regular expression that is searched in the runs' names; the setups always come.
  """
  root = runs_root.absolute()
  for seed in sweep["seeds"]:
    setup = root / f"setup_{seed}"
    if "setup" in sweep:
      yield Job("setup", seed, {}, _flags([sweep["setup"]], [f"SEED = {seed}"]), setup)
    for run in sweep["runs"]:
      if re.search(only, run["name"]):
        bindings = [*sweep.get("bindings", []), *run.get("bindings", [])]
        bindings = [binding.replace("{seed}", str(seed)).replace("{setup}", str(setup)) for binding in bindings]
        flags = _flags([*sweep.get("gin_files", []), *run.get("gin_files", [])], bindings)
        yield Job(run["name"], seed, run.get("settings", {}), flags, root / f"{run['name']}_{seed}")


def _flags(gin_files: Sequence[str], bindings: Sequence[str]) -> list[str]:
  return [f"--gin_file={file}" for file in gin_files] + [f"--gin_bindings={binding}" for binding in bindings]


class Child(Protocol):
  """What a launcher reports of a run that it has started, e.g. a `subprocess.Popen`."""

  def terminate(self) -> None:
    """Tells the run to end; the launcher then returns."""


def run_local(
  job: Job, log: pathlib.Path, worker: int | None, started: Callable[[Child], None] = lambda child: None
) -> int:
  """Runs a job in a process of its own and returns its exit status.

  Args:
    job: the run.
    log: file that the process appends to.
    worker: number of the core that the process is bound to; None leaves the choice to the system.
    started: is called with the process.
  """
  pinned = ["taskset", "-c", str(worker)] if worker is not None and shutil.which("taskset") else []
  # Large pages make the step's big buffers cheaper to allocate on a CPU.
  environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}
  with open(log, "ab") as file:
    # In a session of its own, so that Ctrl-C reaches the runner alone, which then ends the children.
    child = subprocess.Popen(
      [*pinned, *job.command], start_new_session=True, stdout=file, stderr=subprocess.STDOUT, env=environment
    )
    started(child)
    return child.wait()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """Makes SIGINT and SIGTERM raise KeyboardInterrupt in the main thread while the block runs.

  They do so also where the process inherited them as ignored, as from `nohup` or a script's `&`.
  """

  def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt

  before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


class Runner:
  """Runs the jobs of a sweep, several at a time, and appends their results to a file."""

  def __init__(
    self,
    sweep: dict[str, Any],
    results: pathlib.Path,
    workers: int,
    launch: Callable[..., int] = run_local,
    read: Callable[[pathlib.Path], str] = pathlib.Path.read_text,
  ):
    """Reads which runs have a result.

    Args:
      sweep: see `load`.
      results: JSON lines, one per finished run. A run that has a line is not run again.
      workers: runs at a time; where there are several, each is bound to a core of its own.
      launch: runs a job to its end and returns the exit status; see `run_local`.
      read: reads a file of a run directory.
    """
    self._sweep, self._results, self._launch, self._read = sweep, results, launch, read
    lines = results.read_text().splitlines() if results.exists() else []
    self._done = {(line["name"], line["seed"]) for line in map(json.loads, lines)}
    self._lock, self._stopping = threading.Lock(), threading.Event()
    self._children: set[Child] = set()
    self._failed: list[str] = []
    self._pool_size = workers
    self._workers: queue.Queue[int | None] = queue.Queue()
    for worker in range(workers):
      self._workers.put(worker if workers > 1 else None)

  def run(self, todo: Sequence[Job]) -> list[str]:
    """Runs what has no result yet, and returns the names of the runs that failed.

    A run that was preempted (status 75) is started again at once. After KeyboardInterrupt the runs are told to end, and
    it is raised again when they have.
    """
    todo = [job for job in todo if job.name == "setup" or (job.name, job.seed) not in self._done]
    needed = {job.seed for job in todo if job.name != "setup"}
    todo = [job for job in todo if job.seed in needed]
    self._left = self._total = len(todo)
    self._begin = time.monotonic()
    print(f"{self._total} runs, {len(self._done)} done before", flush=True)
    setups: dict[int, concurrent.futures.Future[bool]] = {}
    rest: list[concurrent.futures.Future[None]] = []
    with concurrent.futures.ThreadPoolExecutor(self._pool_size) as pool:
      try:
        setups = {job.seed: pool.submit(self._one, job) for job in todo if job.name == "setup"}
        rest = [pool.submit(self._after, setups.get(job.seed), job) for job in todo if job.name != "setup"]
        concurrent.futures.wait(setups.values())
        concurrent.futures.wait(rest)
      except KeyboardInterrupt:
        self._stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for child in list(self._children):
          child.terminate()
        raise
    for setup in setups.values():
      setup.result()
    for run in rest:
      run.result()
    return self._failed

  def _after(self, setup: concurrent.futures.Future | None, job: Job) -> None:
    if setup is None or setup.result():
      self._one(job)

  def _one(self, job: Job) -> bool:
    """Runs one job and stores its result; says whether it succeeded."""
    worker = self._workers.get()
    try:
      start = time.monotonic()
      log = job.directory.with_name(f"{job.directory.name}.log")
      log.parent.mkdir(parents=True, exist_ok=True)
      status = _PREEMPTED
      while status == _PREEMPTED and not self._stopping.is_set():
        status = self._launch(job, log, worker, self._started)
    finally:
      self._workers.put(worker)
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

  def _started(self, child: Child) -> None:
    self._children.add(child)
    if self._stopping.is_set():
      child.terminate()

  def _store(self, job: Job, seconds: float) -> None:
    line = {"name": job.name, "seed": job.seed, "settings": job.settings, "seconds": round(seconds, 1)}
    for key in ("result", "train"):
      if key in self._sweep:
        line[key] = json.loads(self._read(job.directory / self._sweep[key]))
    with open(self._results, "a", encoding="utf-8") as file:
      file.write(json.dumps(line) + "\n")
