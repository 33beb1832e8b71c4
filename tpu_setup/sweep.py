"""The runs of a sweep of experiments/ on slices, several at a time, from creation to deletion."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from experiments import sweep as experiments
from hiermem_jax.errors import InputError
from tpu_setup import jobs
from tpu_setup.config import Config
from tpu_setup.slices import MISSING, Slice, TroubleError
from tpu_setup.watch import watch


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
  """Runs what has no result yet; returns the names of what failed.

  Args:
    path: the sweep's file; results are appended to results.jsonl beside it.
    runs_root: where run directories go: gs://BUCKET/... or a path that hosts see.
    config: of the slices; worker I has the slice NAME-I, which is kept from one run to the next and deleted at the end.
    parallel: slices at a time.
    make: a slice from its configuration.
    only: a regular expression; runs whose name has it.
    logs: where the story of each run is written.
  """
  sweep = experiments.load(path)
  slices = [make(dataclasses.replace(config, name=f"{config.name}-{number}")) for number in range(parallel)]
  root = pathlib.Path(slices[0].on_host(runs_root))
  todo = [job._replace(directory=logs / job.directory.name) for job in experiments.jobs(sweep, root, only)]
  shown = {str(root): runs_root.rstrip("/")}

  def outside(directory: str) -> str:
    return shown[str(root)] + directory.removeprefix(str(root))

  def launch(command: Sequence[str], log: pathlib.Path, slot: int | None, started: Callable) -> int:
    flags = [flag for flag in command[3:] if not flag.startswith("--run_dir=")]
    job = jobs.Job(command[2].rpartition(".")[2], flags, outside(command[-1].removeprefix("--run_dir=")))
    with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
      try:
        watch(slices[slot or 0], job)
      except (InputError, TroubleError) as error:
        print(f"error: {error}")
        return 2
    return 0

  def read(file: pathlib.Path) -> str:
    where = f"{shown[str(root)]}/{file.relative_to(logs)}"
    text = slices[0].read(where)
    if text is None:
      raise InputError(f"{where}: missing, although the run has finished; look at its logs")
    return text

  if slices[0].shell.dry_run:
    for number, job in enumerate(todo):
      print(f"# {job.name}, seed {job.seed}")
      slice_ = slices[number % parallel]
      slice_.create()
      jobs.bootstrap(slice_)
      flags = [flag for flag in job.command[3:] if not flag.startswith("--run_dir=")]
      jobs.launch(slice_, jobs.Job("quickstart", flags, outside(str(root / job.directory.name))))
      slice_.delete()
    return []
  try:
    return experiments.Runner(sweep, path.with_name("results.jsonl"), parallel, launch, read).run(todo)
  finally:
    for slice_ in slices:
      if slice_.state() != MISSING:
        slice_.delete()
