"""The runs of a sweep on slices: several slices at a time, each used for one run after the other, then deleted."""

import dataclasses
import functools
import pathlib
import threading
from collections.abc import Callable

from hiermem_jax import sweep as sweeps
from hiermem_jax.errors import InputError
from tpu_setup import jobs
from tpu_setup.config import Config
from tpu_setup.slices import MISSING, Slice, TroubleError
from tpu_setup.watch import watch


class _Pause:
  """Sleeps, until it is told to end; then it raises TroubleError, which ends the watching of a run."""

  def __init__(self):
    self._ended = threading.Event()

  def terminate(self) -> None:
    """Ends the present pause and every further one."""
    self._ended.set()

  def sleep(self, seconds: float) -> None:
    """Waits for so many seconds."""
    if self._ended.wait(seconds):
      raise TroubleError("interrupted")


def run(
  path: pathlib.Path,
  runs_root: str,
  config: Config,
  parallel: int,
  make: Callable[[Config], Slice],
  *,
  only: str = "",
  logs: pathlib.Path = pathlib.Path("runs/sweep_logs"),
) -> list[str]:
  """Runs what has no result yet and returns the names of the runs that failed.

  Args:
    path: the sweep's file (hiermem_jax/sweep.py); results are appended to results.jsonl beside it.
    runs_root: folder of the run directories: gs://BUCKET/... or a path that all hosts see.
    config: of the slices. Worker number I has the slice NAME-I, which is kept from one run to the next and deleted at
      the end.
    parallel: slices at a time.
    make: makes a slice from its configuration.
    only: a regular expression that is searched in the runs' names.
    logs: local folder for the logs of the watching, one file per run.
  """
  sweep = sweeps.load(path)
  slices = [make(dataclasses.replace(config, name=f"{config.name}-{number}")) for number in range(parallel)]
  shell = slices[0].shell
  root = pathlib.Path(slices[0].on_host(runs_root))  # what {setup} in bindings becomes is read by the hosts
  todo = [job._replace(directory=logs / job.directory.name) for job in sweeps.jobs(sweep, root, only)]

  def on_slice(job: sweeps.Job) -> jobs.Job:
    return jobs.Job("run", job.flags, f"{runs_root.rstrip('/')}/{job.directory.name}")

  def launch(job: sweeps.Job, log: pathlib.Path, worker: int | None, started: Callable[[sweeps.Child], None]) -> int:
    slice_ = slices[worker or 0]
    pause = _Pause()
    started(pause)
    with open(log, "a", encoding="utf-8") as file:
      slice_.shell = shell._replace(sleep=pause.sleep, say=functools.partial(print, file=file, flush=True))
      try:
        watch(slice_, on_slice(job))
      except (InputError, TroubleError) as error:
        slice_.shell.say(f"error: {error}")
        return 2
    return 0

  def read(file: pathlib.Path) -> str:
    where = f"{runs_root.rstrip('/')}/{file.relative_to(logs)}"
    text = slices[0].read(where)
    if text is None:
      raise InputError(f"{where}: missing, although the run has finished; look at its logs")
    return text

  if shell.dry_run:
    for number, job in enumerate(todo):
      print(f"# {job.name}, seed {job.seed}")
      slice_ = slices[number % parallel]
      slice_.create()
      jobs.bootstrap(slice_)
      jobs.launch(slice_, on_slice(job))
      slice_.delete()
    return []
  try:
    return sweeps.Runner(sweep, path.with_name("results.jsonl"), parallel, launch, read).run(todo)
  finally:
    for slice_ in slices:
      slice_.shell = shell
      if slice_.state() != MISSING:
        slice_.delete()
