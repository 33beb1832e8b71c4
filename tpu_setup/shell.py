"""Runs command lines, tries failures again that may pass, and with --dry_run prints the commands instead."""

import functools
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

_MAX_BACKOFF = 900.0


class CommandError(Exception):
  """A command failed and is not tried again. `text` is its standard error, or else its output."""

  def __init__(self, command: Sequence[str], status: int, text: str):
    self.command, self.status, self.text = command, status, text
    super().__init__(f"{shlex.join(command)}: status {status}: {text.strip()}")

  @property
  def line(self) -> str:
    """The line to show to the user: the last one with the word ERROR, or else the last one."""
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
      again: says whether a failure may pass; the command is then tried again after a pause.

    Raises:
      CommandError: it failed, and may not pass or has failed `tries` times.
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
    """Sleeps after failure number `number`, counted from 0, and returns for how many seconds."""
    seconds = min(self.backoff_seconds * 2**number, _MAX_BACKOFF)
    self.sleep(seconds)
    return seconds
