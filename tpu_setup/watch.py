"""Repeats creation, setup and start until a run has finished."""

import pathlib
import tempfile
import time
from collections.abc import Callable

from hiermem_jax.errors import InputError
from tpu_setup import jobs, source
from tpu_setup.slices import ACTIVE, LOST, MISSING, WAITING, Slice, TroubleError

_BAD_INPUT = "exited 2"  # the status of a verb whose input is bad, which another try does not change


def watch(slice_: Slice, job: jobs.Job, clock: Callable[[], float] = time.monotonic) -> None:
  """Creates, sets up and starts whatever is missing or has ended, and returns when the run has finished.

  Every start counts as a try. A start that lasted `healthy_minutes` sets the count to zero. The pause between two tries
  doubles each time. All tries run the code that was there at the first. The same command may be given again at any
  time, also on another machine, because all state is on the hosts and in the run directory.

  Raises:
    InputError: the run ended with status 2, the first request for the slice was refused, or the tries are used up.
  """
  config, tries, started = slice_.config, 0, None
  with tempfile.TemporaryDirectory() as directory:
    archive = pathlib.Path(directory) / "code.tar.gz"
    slice_.shell.say(f"code: {source.archive(config.commit, archive)}")
    while (mark := slice_.read(job.mark)) is None:
      state = slice_.state()
      if state == WAITING:
        slice_.shell.sleep(config.poll_seconds)
        continue
      trouble = _trouble(slice_, job, started is not None) if state == ACTIVE else f"the slice is {state}"
      if trouble is None:
        slice_.shell.sleep(config.poll_seconds)
        continue
      if slice_.read(job.mark) is not None:  # it ended between the two questions
        continue
      if started is not None and clock() - started >= 60 * config.healthy_minutes:
        tries = 0
      if tries == config.tries:
        raise InputError(f"{job.run_dir}: gave up after {tries} tries, {trouble}; look at the logs, then watch again")
      slice_.shell.say(f"{config.name}: {trouble}; try {tries + 1} of {config.tries}")
      if tries:
        slice_.shell.say(f"{config.name}: waiting {slice_.shell.pause(tries - 1):.0f} s")
      tries += 1
      try:
        _bring_up(slice_, job, archive, state, first=tries == 1 and state == MISSING)
        started = clock()
      except TroubleError as error:
        started = None
        slice_.shell.say(f"{config.name}: {error}")
  slice_.shell.say(f"{job.run_dir}: finished, {mark.strip()}")


def _trouble(slice_: Slice, job: jobs.Job, ours: bool) -> str | None:
  """Says why the run on an active slice must be started again; None while it goes on."""
  try:
    hosts = slice_.hosts()
    found = jobs.statuses(slice_, hosts)
  except TroubleError as error:
    return str(error)
  for host, status in zip(hosts, found):
    if status.state == "running" and f"--run_dir={slice_.on_host(job.run_dir)}" not in status.command.split():
      raise InputError(f"{host}: runs something else, {status.command}; stop it first, or use another --name")
    if status.state == _BAD_INPUT and ours:
      raise InputError(f"{host}: {status.last_line}; mend that, then watch again")
  ended = [(host, s) for host, s in zip(hosts, found) if s.state not in ("running", "exited 0")]
  if ended:
    host, status = ended[0]
    return f"{host} {status.state}" + (f" ({status.last_line})" if status.last_line else "")
  if all(status.state == "exited 0" for status in found):
    return "every host has ended, but there is no completion mark"
  return None


def _bring_up(slice_: Slice, job: jobs.Job, archive: pathlib.Path, state: str, first: bool) -> None:
  """Starts the run, whatever the state of the slice.

  With `first`, a refused request raises InputError; later ones raise TroubleError, because what was granted before may
  be granted again.
  """
  if state == LOST:
    slice_.delete()
  if state in (LOST, MISSING):
    try:
      slice_.create()
    except InputError as error:
      raise error if first else TroubleError(str(error)) from None
  else:
    jobs.stop(slice_)
  jobs.bootstrap(slice_, archive)
  jobs.launch(slice_, job)
