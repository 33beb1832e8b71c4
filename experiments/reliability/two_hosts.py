"""What breaks in one of two processes that train together, each of which stands for a host.

Whatever it is, both must end, or go on, within the time that `hiermem_jax` states: 600 s for a read of another host
that hangs (here READ_SECONDS), a minute for a host that is gone, and at once otherwise.
"""

import functools
import os
import pathlib
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from training_run import Outcome, Run, ends, flip, truncate, wait_until

READ_SECONDS = 20


class TwoHosts:
  """Faults of one of two hosts, against a run of two that nothing disturbed."""

  def __init__(self, campaign: Any, steps: int, every: int):
    """Starts nothing yet.

    Args:
      campaign: makes runs, and knows their data.
      steps: of a run.
      every: steps from a checkpoint to the next.
    """
    self._campaign, self._steps, self._every = campaign, steps, every

  def faults(self, quick: bool) -> dict[str, Callable[[], list[Outcome]]]:
    """Name -> tries; `quick` kills one of the two hosts instead of each."""
    return {
      "one of two hosts killed": lambda: [self._lost_host(victim) for victim in ((1,) if quick else (0, 1))],
      "one of two hosts: checkpoint damaged": lambda: [
        self._damage_on_one_host(truncate, "process 1 ("),  # its host names the file
        self._damage_on_one_host(flip, "item bank, array level_"),  # the file decodes, and the sums are wrong
      ],
      "one of two hosts: disk full": lambda: [self._disk_full_on_one_host()],
      "one of two hosts: read hangs": lambda: [self._read_hangs_on_one_host()],
      "one of two hosts: SIGTERM": lambda: [self._signal_to_one_host(signal.SIGTERM)],
      "one of two hosts: SIGINT": lambda: [self._signal_to_one_host(signal.SIGINT)],
      "two hosts: validation and checkpoint at one step": lambda: [self._validation_beside_checkpoints()],
    }

  @functools.cached_property
  def _whole(self) -> Run:
    """A run that two processes have finished, undisturbed."""
    whole = self._campaign.run(processes=2)
    if whole.finish() != [0, 0]:
      sys.exit(f"two undisturbed processes failed: see {whole.log()}")
    return whole

  def _lost_host(self, victim: int) -> Outcome:
    """One of two processes is killed: the other ends with an error, and both go on from the last checkpoint."""
    run, whole = self._campaign.run(processes=2), self._whole
    processes = run.start()
    wait_until(lambda: run.steps() >= 2 * self._every + self._every // 2 or processes[0].poll() is not None)
    processes[victim].kill()
    statuses, waited = ends(processes)
    ended = statuses[1 - victim] not in (0, 2, 75, None)
    lost = max(run.steps() - (run.checkpoints() or [0])[-1], 0)
    finished = run.finish() == [0, 0]
    return Outcome(ended and finished, lost, finished and run.result() == whole.result(), waited)

  def _copy_of_whole(self) -> tuple[Run, list[pathlib.Path]]:
    """A new run that two processes have already finished, and the data that the second one alone reads at its end."""
    run = self._campaign.run(processes=2)
    shutil.copytree(self._whole.directory, run.directory)
    return run, list((run.directory / f"checkpoints/{self._steps}/bank/ocdbt.process_1/d").iterdir())

  def _damage_on_one_host(self, damage: Callable[[pathlib.Path], None], named: str) -> Outcome:
    """What one host reads of the last checkpoint is damaged: both name it; on request both take the one before."""
    run, data = self._copy_of_whole()
    for path in data:
      damage(path)
    statuses, waited = ends(run.start())
    expected = f"checkpoints/{self._steps} is damaged ({named}"
    known = all(expected in run.log(host).read_text() for host in range(2))
    finished = run.finish("--skip_damaged_checkpoints") == [0, 0]
    return Outcome(
      statuses == [2, 2] and known and finished, self._every, finished and run.result() == self._whole.result(), waited
    )

  def _read_hangs_on_one_host(self) -> Outcome:
    """What one host reads is a pipe that nobody writes to: both end, nothing is called damaged, both go on later."""
    run, data = self._copy_of_whole()
    contents = {path: path.read_bytes() for path in data}
    for path in data:
      path.unlink()
      os.mkfifo(path)
    statuses, waited = ends(run.start("--skip_damaged_checkpoints", READ_SECONDS=str(READ_SECONDS)))
    late = f"could not be read (process 1 ({socket.gethostname()}): not done within"
    named = all(late in run.log(host).read_text() for host in range(2))
    kept = not (run.directory / "damaged").exists()
    for path, content in contents.items():
      path.unlink()
      path.write_bytes(content)
    finished = run.finish() == [0, 0]
    return Outcome(
      statuses == [2, 2] and named and kept and finished, 0, finished and run.result() == self._whole.result(), waited
    )

  def _disk_full_on_one_host(self) -> Outcome:
    """One host may write no large file while a checkpoint is saved: both say that it failed, and both train on."""
    run, whole = self._campaign.run(processes=2), self._whole  # which tells how large the files are
    sizes = [
      path.stat().st_size for path in (whole.directory / f"checkpoints/{self._steps}/bank/ocdbt.process_1/d").iterdir()
    ]
    processes = run.start()
    wait_until(lambda: len(run.checkpoints()) >= 2 or processes[0].poll() is not None)
    resource.prlimit(processes[1].pid, resource.RLIMIT_FSIZE, (max(sizes) // 2, resource.RLIM_INFINITY))
    start = time.monotonic()
    failed = "could not be saved (process 1 ("
    wait_until(lambda: failed in run.log(0).read_text() or processes[0].poll() is not None)
    waited = time.monotonic() - start  # training goes on meanwhile, until the next checkpoint
    resource.prlimit(processes[1].pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    statuses, _ = ends(processes, seconds=600)
    said = all(failed in run.log(host).read_text() for host in range(2))
    return Outcome(statuses == [0, 0] and said, 0, run.result() == whole.result(), waited)

  def _validation_beside_checkpoints(self) -> Outcome:
    """Held-out loss is measured, and the best model kept, at the very steps of the checkpoints."""
    run = self._campaign.run(processes=2)
    validation = ("train.validation = @ValidationConfig()", f"ValidationConfig.dataset = '{self._campaign.data}'")
    validation += (f"ValidationConfig.every = {self._every}",)
    statuses, _ = ends(run.start(*(f"--gin_bindings={binding}" for binding in validation)), seconds=600)
    kept = any((run.directory / "best/checkpoints").iterdir())
    good = statuses == [0, 0] and kept and "could not be saved" not in run.log().read_text()
    return Outcome(good, 0, run.result(scalars=False) == self._whole.result(scalars=False))

  def _signal_to_one_host(self, sign: signal.Signals) -> Outcome:
    """One of two processes is told to end: both save at the same step and end, and the same command goes on."""
    run, whole = self._campaign.run(processes=2), self._whole
    processes = run.start()
    wait_until(lambda: run.steps() >= self._every + self._every // 2 or processes[0].poll() is not None)
    processes[1].send_signal(sign)
    statuses, waited = ends(processes)
    lost = max(run.steps() - (run.checkpoints() or [0])[-1], 0)
    finished = run.finish() == [0, 0]
    return Outcome(statuses == [75, 75] and finished, lost, finished and run.result() == whole.result(), waited)
