r"""Breaks a small co-training in every way that clusters do, runs the same command again, and compares the results.

  python experiments/reliability/campaign.py [--quick] [--only=NAME] [--json] [--directory=DIRECTORY]

Each row is a fault: how often it was tried, how often the run ended as it should afterwards, the most steps that had
to be done again, and whether the final state (parameters, optimizer, scalars) is that of an undisturbed run, bit for
bit. Every run is `python -m hiermem_jax.train` in processes of its own; `NaN batch` poisons what it reads. `disk full`
needs the right to mount a small tmpfs and is left out without it. Exits with status 1 when something was not recovered.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from training_run import CONFIG, Outcome, Run, flip, truncate, wait_until, write_dataset
from two_hosts import TwoHosts

STEPS, EVERY = 200, 20
COLUMNS = ("fault", "tried", "recovered", "steps_lost", "bit_identical", "waited", "seconds")


class Campaign:
  """The runs of one campaign, and what an undisturbed one came to."""

  def __init__(self, directory: pathlib.Path, rng: random.Random):
    self.directory, self.rng, self._number = directory, rng, 0
    self.data = directory / "packed"
    write_dataset(self.data)
    self.config = directory / "run.gin"
    self.config.write_text(CONFIG.format(data=self.data, steps=STEPS, every=EVERY))
    self.cache = str(directory / "compiled")

  def run(self, processes: int = 1) -> Run:
    """A new run."""
    self._number += 1
    return Run(self.directory / f"run_{self._number:03d}", self.config, self.cache, STEPS, processes)

  def undisturbed_run(self) -> Run:
    """A new run, finished."""
    run = self.run()
    if run.finish() != [0]:
      sys.exit(f"the undisturbed run failed: see {run.log()}")
    return run

  @functools.cached_property
  def undisturbed(self) -> Run:
    """A run that nothing disturbs."""
    return self.undisturbed_run()

  @functools.cached_property
  def expected(self) -> tuple:
    """What it came to."""
    return self.undisturbed.result()

  @functools.cached_property
  def duration(self) -> float:
    """Seconds that a run takes which finds everything compiled."""
    start = time.monotonic()
    self.undisturbed_run()
    return time.monotonic() - start

  def ends_as_expected(self, run: Run, lost: int, *flags: str, scalars: bool = True) -> Outcome:
    """Runs the same command again, to its end."""
    ended = run.finish(*flags) == [0] * run.count
    expected = self.expected if scalars else (self.expected[0], [])
    return Outcome(ended, lost, ended and run.result(scalars) == expected)

  def at_random(self, run: Run, process: subprocess.Popen) -> None:
    """Waits for any moment of the run, its start included."""
    until = time.monotonic() + self.rng.uniform(0.1, 1) * self.duration
    while process.poll() is None and time.monotonic() < until:
      time.sleep(0.002)

  def while_saving(self, run: Run, process: subprocess.Popen) -> None:
    """Waits for some moment at which a checkpoint is being written."""
    newest = (run.checkpoints() or [0])[-1] + EVERY * self.rng.randrange(3)
    while process.poll() is None and not (run.saving() and run.steps() >= newest):
      time.sleep(0.0005)
    time.sleep(self.rng.uniform(0, 0.03))

  def kills(self, sign: signal.Signals, moment: Callable[[Run, subprocess.Popen], None], tries: int) -> list[Outcome]:
    """Ends a run again and again until it has finished, then another; all of a run's tries share its end."""
    outcomes = []
    while len(outcomes) < tries:
      run, lost, good = self.run(), [], True
      while len(outcomes) + len(lost) < tries:
        before = (run.checkpoints() or [0])[-1]
        (process,) = run.start()
        moment(run, process)
        if process.poll() is not None:  # it was faster
          good &= process.returncode == 0
          break
        process.send_signal(sign)
        status, newest = process.wait(timeout=600), (run.checkpoints() or [0])[-1]
        # Before the handlers are set a signal ends a process at once, and there is nothing to save.
        good &= status in (0, -sign) or (status == 75 and sign != signal.SIGKILL)
        good &= newest >= before
        lost.append(max(run.steps() - newest, 0))
      end = self.ends_as_expected(run, 0)
      outcomes += [Outcome(good and end.recovered, steps, end.bit_identical) for steps in lost]
    return outcomes

  def second_interrupt(self) -> Outcome:
    """SIGINT, and again while the run saves: it ends at once, and what was saved before is good."""
    run = self.run()
    (process,) = run.start()
    wait_until(lambda: run.steps() >= EVERY + EVERY // 2 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: "saving, and ending" in run.log().read_text() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    ended = process.wait(timeout=600) in (-signal.SIGINT, 75)  # 75: it was faster
    return self._then(self.ends_as_expected(run, max(run.steps() - (run.checkpoints() or [0])[-1], 0)), ended)

  def in_use(self) -> Outcome:
    """The same command again while a run is alive: refused by name. Once that is killed, its lock is taken over."""
    run = self.run()
    (process,) = run.start()
    wait_until(lambda: run.steps() >= EVERY or process.poll() is not None)
    other = Run(run.directory, run.config, run.cache, run.last, number=1)
    refused = other.finish() == [2] and f"in use by process {process.pid} on" in other.log().read_text()
    alive = process.poll() is None
    process.kill()
    process.wait(timeout=600)
    stale = (run.directory / ".lock").exists()
    lost = max(run.steps() - (run.checkpoints() or [0])[-1], 0)
    return self._then(self.ends_as_expected(run, lost), refused and alive and stale)

  def changed_settings(self) -> Outcome:
    """Another learning rate in the directory of a run that has saved is refused, and leaves it as it is."""
    run = self.run()
    (process,) = run.start()
    wait_until(lambda: bool(run.checkpoints()) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=600)
    refused = run.finish("--gin_bindings=OptimizerConfig.peak_learning_rate = 0.5") == [2]
    named = "now: 'OptimizerConfig.peak_learning_rate = 0.5'" in run.log().read_text()
    return self._then(self.ends_as_expected(run, 0), refused and named)

  def _then(self, outcome: Outcome, as_it_should: bool) -> Outcome:
    return outcome._replace(recovered=outcome.recovered and as_it_should)

  def damaged_checkpoint(self, damage: Callable[[pathlib.Path], None]) -> Outcome:
    """A finished run's last checkpoint is damaged: found, named, and the one before used on request."""
    run = self.copy_of_undisturbed()
    for path in sorted((run.directory / f"checkpoints/{STEPS}/bank").rglob("*")):
      if path.is_file() and path.stat().st_size:
        damage(path)
    noticed = run.finish() == [2] and f"checkpoints/{STEPS} is damaged" in run.log().read_text()
    outcome = self.ends_as_expected(run, EVERY, "--skip_damaged_checkpoints")
    return outcome._replace(recovered=outcome.recovered and noticed)

  def copy_of_undisturbed(self) -> Run:
    """A new run that has already finished."""
    run = self.run()
    shutil.copytree(self.undisturbed.directory, run.directory)
    return run

  def full_disk(self, freed: bool) -> Outcome:
    """No space from the third checkpoint on: freed before the end, or only after the run has given up."""
    size = 4 * sum(path.stat().st_size for path in (self.undisturbed.directory / f"checkpoints/{STEPS}").rglob("*"))
    run = self.run()
    run.directory.mkdir()
    with tmpfs(run.directory, size):
      (process,) = run.start()
      wait_until(lambda: len(run.checkpoints()) >= 2 or process.poll() is not None)
      ballast, good = run.directory / "ballast", list(run.checkpoints())
      fill(ballast)
      if freed:
        wait_until(lambda: "trying again" in run.log().read_text() or process.poll() is not None)
        ballast.unlink()
        return self._ended(run, process.wait(timeout=600), 0)
      refused = process.wait(timeout=600) == 2 and "could not be saved" in run.log().read_text()
      kept = run.checkpoints()[-1:] and run.checkpoints()[-1] >= good[-1]
      lost = STEPS - run.checkpoints()[-1]
      ballast.unlink()
      outcome = self.ends_as_expected(run, lost, scalars=False)
      return outcome._replace(recovered=outcome.recovered and refused and bool(kept))

  def _ended(self, run: Run, status: int, lost: int) -> Outcome:
    """Of a run whose scalars have gaps: compares the state alone."""
    return Outcome(status == 0, lost, status == 0 and run.result(scalars=False)[0] == self.expected[0])

  def truncated_shard(self) -> Outcome:
    """A data shard loses its second half in the middle of a run; it is put back, and the run goes on."""
    run, shard = self.run(), self.data / "shard-00001.array_record"
    content = shard.read_bytes()
    (process,) = run.start()
    wait_until(lambda: run.steps() >= 2 * EVERY or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=600)
    os.truncate(shard, len(content) // 2)
    try:
      named = run.finish() == [2] and f"{shard} has" in run.log().read_text()
    finally:
      shard.write_bytes(content)
    outcome = self.ends_as_expected(run, 0)
    return outcome._replace(recovered=outcome.recovered and named)

  def nan_batch(self) -> Outcome:
    """A batch is not a number: its update is left out, and its place written down."""
    run, step = self.run(), self.rng.randrange(2, STEPS)
    (status,) = run.finish(POISONED_STEP=str(step))
    noted = [json.loads(line) for line in (run.directory / "skipped.jsonl").read_text().splitlines()]
    recovered = status == 0 and [line["step"] for line in noted] == [step] and len(noted[0]["batch"]["sequences"]) == 8
    return Outcome(recovered, 1, run.result() == self.expected)


def fill(path: pathlib.Path) -> None:
  """Writes until there is no space left."""
  with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
    while file.write(bytes(2**16)):
      pass


@contextlib.contextmanager
def tmpfs(directory: pathlib.Path, size: int) -> Iterator[None]:
  """A file system of `size` bytes on a directory."""
  subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], check=True, stderr=-3)
  try:
    yield
  finally:
    subprocess.run(["umount", "-l", str(directory)], check=True)


def can_mount(directory: pathlib.Path) -> bool:
  """Whether a tmpfs may be mounted here."""
  directory.mkdir()
  try:
    with tmpfs(directory, 2**20):
      return True
  except (OSError, subprocess.CalledProcessError):
    return False


def conduct(campaign: Campaign, quick: bool, only: str) -> Iterator[dict]:
  """Tries every fault with `only` in its name; one row each."""
  few = 1 if quick else 10
  faults = {
    "SIGKILL at a random time": lambda: campaign.kills(signal.SIGKILL, campaign.at_random, 2 * few),
    "SIGKILL while a checkpoint is written": lambda: campaign.kills(signal.SIGKILL, campaign.while_saving, few),
    "SIGTERM": lambda: campaign.kills(signal.SIGTERM, campaign.at_random, few),
    "SIGINT": lambda: campaign.kills(signal.SIGINT, campaign.at_random, few),
    "SIGINT twice": lambda: [campaign.second_interrupt()],
    "directory in use": lambda: [campaign.in_use()],
    "other settings": lambda: [campaign.changed_settings()],
    "checkpoint truncated": lambda: [campaign.damaged_checkpoint(truncate)],
    "checkpoint with a bit flipped": lambda: [campaign.damaged_checkpoint(flip)],
    "data shard truncated": lambda: [campaign.truncated_shard()],
    "NaN batch": lambda: [campaign.nan_batch()],
  } | TwoHosts(campaign, STEPS, EVERY).faults(quick)
  if can_mount(campaign.directory / "mount"):
    faults["disk full, freed in time"] = lambda: [campaign.full_disk(freed=True)]
    faults["disk full to the end"] = lambda: [campaign.full_disk(freed=False)]
  else:
    print("no right to mount a tmpfs: 'disk full' is left out", file=sys.stderr)
  for fault, attempt in ((fault, attempt) for fault, attempt in faults.items() if only in fault):
    start = time.monotonic()
    outcomes = attempt()
    row = {
      "fault": fault,
      "tried": len(outcomes),
      "recovered": sum(outcome.recovered for outcome in outcomes),
      "steps_lost": max(outcome.steps_lost for outcome in outcomes),
      "bit_identical": all(outcome.bit_identical for outcome in outcomes),
      "waited": round(max(outcome.waited for outcome in outcomes), 1),
      "seconds": round(time.monotonic() - start, 1),
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    yield row


def main(argv: list[str]) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--directory", help="where the runs go, and stay; by default a temporary one")
  parser.add_argument("--seed", type=int, default=0, help="of the times at which things break")
  parser.add_argument("--only", default="", help="part of the names of the faults to try; by default all")
  parser.add_argument("--quick", action="store_true", help="a tenth of the kills")
  parser.add_argument("--json", action="store_true", help="print JSON")
  flags = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as temporary:
    directory = pathlib.Path(flags.directory or temporary).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
      parser.error(f"--directory={flags.directory}: is not empty; give another")
    rows = list(conduct(Campaign(directory, random.Random(flags.seed)), flags.quick, flags.only))
  if flags.json:
    print(json.dumps(rows, indent=2))
  else:
    lines = [COLUMNS, *(tuple(str(row[name]) for name in COLUMNS) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    print("\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines))
  return 0 if all(row["recovered"] == row["tried"] for row in rows) else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
