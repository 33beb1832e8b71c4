"""Runs command lines: retries what may pass, prints instead of running with --dry_run."""

import functools
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

_MAX_BACKOFF = 900.0


class CommandError(Exception):
  """A command failed for good; `text` is what it said."""

  def __init__(self, command: Sequence[str], status: int, text: str):
    self.command, self.status, self.text = command, status, text
    super().__init__(f"{shlex.join(command)}: status {status}: {text.strip()}")

  @property
  def line(self) -> str:
    """What to repeat to the user: the last line that says ERROR, else the last line."""
    lines = self.text.strip().splitlines() or [f"status {self.status}"]
    return next((line for line in reversed(lines) if "ERROR" in line), lines[-1])


class Shell(NamedTuple):
  """How commands are run.

  Attributes:
    dry_run: print the commands and run none.
    tries: how often a command is run that fails and may be tried again.
    backoff_seconds: pause before the second try; it doubles with each further try, up to 15 minutes.
    sleep: pauses.
    say: shows a line of progress.
  """

  dry_run: bool
  tries: int
  backoff_seconds: float
  sleep: Callable[[float], None] = time.sleep
  say: Callable[[str], None] = functools.partial(print, flush=True)

  def run(self, command: Sequence[str], *, again: Callable[[CommandError], bool] | None = None) -> str:
    """Runs a command and returns its standard output; with --dry_run prints it and returns nothing.

    Args:
      command: program and arguments.
      again: whether a failure may pass, and the command is to be tried again after a pause.

    Raises:
      CommandError: it failed, `tries` times if it may pass.
    """
    if self.dry_run:
      self.say(shlex.join(command))
      return ""
    for number in range(self.tries):
      done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
      if done.returncode == 0:
        return done.stdout
      error = CommandError(command, done.returncode, done.stderr or done.stdout)
      if again is None or not again(error) or number + 1 == self.tries:
        raise error
      self.pause(number)
    raise AssertionError("tries is at least 1")

  def pause(self, number: int) -> float:
    """Sleeps after the failure of this number, from 0; returns for how long."""
    seconds = min(self.backoff_seconds * 2**number, _MAX_BACKOFF)
    self.sleep(seconds)
    return seconds
