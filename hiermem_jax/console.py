"""What a command shows while it runs, and the log beside it.

Log records, and what libraries write to standard error themselves, go to RUN_DIR/log.txt. The console gets what was
said with `say`, progress, warnings of ours, and errors. Where no console is open, as in a notebook, `say` is a log
record like others and `Progress` does nothing, so that every part of the library may use both.
"""

import contextlib
import faulthandler
import logging as python_logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import logging

if TYPE_CHECKING:
  from rich.console import Console
  from rich.progress import Progress as RichProgress
  from rich.progress import Task
  from rich.text import Text

LOG = "log.txt"
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_EVERY_SECONDS = 30.0  # between two lines of progress, where there is no terminal


class _Screen:
  """The open console: where it writes, and in front of what."""

  def __init__(self, console: "Console", title: str, talks: bool):
    self.console, self.title, self.talks = console, title, talks

  def print(self, text: str, style: str = "") -> None:
    """Prints one or more lines behind the title; they are never wrapped."""
    self.console.print(self.line(text, style), soft_wrap=True)

  def line(self, text: str, style: str = "") -> "Text":
    """The title and a text."""
    from rich.text import Text

    return Text.assemble((f"[{self.title}] ", "cyan"), (text, style))


_screen: _Screen | None = None
_early = ""  # what was kept from standard error, for the log that is opened next


def set_up() -> None:
  """Lets absl write the log records of this process to standard error, those of some chatty libraries left out."""
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  logging.get_absl_handler().addFilter(_is_news)


def _is_news(record: python_logging.LogRecord) -> bool:
  """Whether to log a record: orbax writes dozens of lines per save, gin one per place where an include is not."""
  if record.module == "resource_reader":
    return False
  return "orbax" not in record.pathname or record.levelno > python_logging.INFO


@contextlib.contextmanager
def opened(
  directory: str, title: str, *, verbose: bool = False, process: int = 0, one_of_several: bool = False
) -> Iterator[None]:
  """Context in which the log is `directory`/log.txt, which is appended to.

  Standard error is the console; what else is written to it goes to the log. Where several processes train together it
  is left alone: when one of them dies, jax ends the others with a message there.

  Args:
    directory: of the run; it is created.
    title: stands in front of every line, until `stage` says something else.
    verbose: show everything on the console too.
    process: number of this process. Others than 0 show warnings and errors alone and log to log.PROCESS.txt.
    one_of_several: whether there are others.
  """
  from rich.console import Console

  global _screen, _early
  os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, f"log.{process}.txt" if process else LOG)
  with contextlib.ExitStack() as stack:
    to_log = _LogFile(path, encoding="utf-8")
    stack.callback(to_log.close)
    with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:  # the disk may be full
      file.write(_early)
    _early = ""
    stderr: Any = sys.stderr
    if not verbose and not one_of_several:
      stderr = stack.enter_context(_stderr_into(path))
    screen = _Screen(Console(file=stderr, highlight=False, soft_wrap=True), title, talks=not process)
    to_log.setFormatter(logging.PythonFormatter())
    to_log.addFilter(_is_news)
    root, absl = python_logging.getLogger(), logging.get_absl_handler()
    stack.enter_context(_handled_by(root, to_log))
    if not verbose:
      absl.addFilter(_never)
      stack.callback(absl.removeFilter, _never)
      stack.enter_context(_handled_by(root, _ToScreen(screen)))
    logging.info("%s, in %s", shlex.join([os.path.basename(sys.executable), *sys.argv]), os.getcwd())
    outer, _screen = _screen, screen
    say("log: %s", path)
    try:
      yield
    finally:
      _screen = outer


def _never(record: python_logging.LogRecord) -> bool:
  return False


@contextlib.contextmanager
def _handled_by(logger: python_logging.Logger, handler: python_logging.Handler) -> Iterator[None]:
  logger.addHandler(handler)
  try:
    yield
  finally:
    logger.removeHandler(handler)


@contextlib.contextmanager
def _stderr_into(path: str) -> Iterator[Any]:
  """Appends what this process and its children write to file descriptor 2 to a file; yields a file that is the old one.

  A crash of the interpreter still shows its traceback there.
  """
  sys.stderr.flush()
  kept = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
  log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
  os.dup2(log, 2)
  os.close(log)
  if shows_crash := not faulthandler.is_enabled():
    faulthandler.enable(file=kept)
  try:
    yield kept
  finally:
    if shows_crash:
      faulthandler.disable()
    with contextlib.suppress(OSError):  # the disk is full
      sys.stderr.flush()
    kept.flush()
    os.dup2(kept.fileno(), 2)
    kept.close()


@contextlib.contextmanager
def kept_for_the_log() -> Iterator[None]:
  """Context in which what is written to standard error is kept for the log that is opened after it, if one is."""
  global _early
  with tempfile.TemporaryDirectory() as directory:
    path = os.path.join(directory, "stderr")
    try:
      with _stderr_into(path):
        yield
    finally:
      with open(path, encoding="utf-8", errors="replace") as file:
        _early += file.read()


class _LogFile(python_logging.FileHandler):
  """The log. That its disk is full does not end a run, and the console need not say so for every record."""

  def handleError(self, record: python_logging.LogRecord) -> None:
    """Passes over a record that could not be written."""

  def close(self) -> None:
    """Closes it; what could not be written is lost."""
    with contextlib.suppress(OSError):
      super().close()


class _ToScreen(python_logging.Handler):
  """Shows what was said, warnings of ours, and errors of anyone."""

  def __init__(self, screen: _Screen):
    super().__init__()
    self._screen = screen

  def emit(self, record: python_logging.LogRecord) -> None:
    """Shows a record, or does not."""
    ours = record.levelno >= python_logging.WARNING and record.pathname.startswith(_OURS)
    if ours or record.levelno >= python_logging.ERROR:
      style = "red" if record.levelno >= python_logging.ERROR else "yellow"
      self._screen.print(f"{record.levelname.lower()}: {record.getMessage()}", style)
    elif getattr(record, "said", False) and self._screen.talks:
      self._screen.print(record.getMessage())


@logging.skip_log_prefix
def say(message: str, *args: Any) -> None:
  """Logs a message, with the arguments for its % signs, and shows it on the console."""
  logging.info(message, *args, extra={"said": True})


@contextlib.contextmanager
def stage(title: str) -> Iterator[None]:
  """Context in which lines begin with another title, e.g. '3/6 train anchor'. Says at its end how long it took."""
  start = time.monotonic()
  outer = _screen.title if _screen else ""
  if _screen:
    _screen.title = title
  logging.info("stage %s", title)
  try:
    yield
    say("done in %s", duration(time.monotonic() - start))
  finally:
    if _screen:
      _screen.title = outer


class Progress:
  """How far something is: on a terminal one line that is rewritten, elsewhere a line every 30 seconds.

  The time left follows from the speed of the last 30 seconds.
  """

  def __init__(self, unit: str, total: int, done: int = 0):
    """Shows nothing yet.

    Args:
      unit: what is counted, e.g. 'step'.
      total: how many there are.
      done: how many of them were done before.
    """
    self._unit, self._total, self._done = unit, total, done
    self._progress: RichProgress | None = None

  def __enter__(self) -> "Progress":
    """Begins, where a console is open."""
    if _screen is None or not _screen.talks:
      return self
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn

    screen = _screen

    class Line(ProgressColumn):
      """The whole line; what does not fit into the terminal is cut off."""

      def render(self, task: "Task") -> "Text":
        """One line of text."""
        text = screen.line(_progress_text(task))
        text.no_wrap, text.overflow = True, "ellipsis"
        return text

    terminal = screen.console.is_terminal and not screen.console.is_dumb_terminal
    self._progress = RichProgress(
      Line(), console=screen.console, transient=True, refresh_per_second=4, disable=not terminal
    )
    self._task = self._progress.add_task(self._unit, total=self._total, completed=self._done)
    self._screen, self._shown = screen, time.monotonic()
    self._progress.start()
    return self

  def __exit__(self, *exception: object) -> None:
    """Removes the line."""
    if self._progress:
      self._progress.stop()

  def update(self, done: int, text: str = "", amount: float = 0, of: str = "") -> None:
    """Tells how far it is.

    Args:
      done: how many units are done.
      text: shown behind that.
      amount: what a unit holds of something, of which the speed is shown: `amount`=2048, `of`='tokens'.
      of: its name.
    """
    if self._progress is None:
      return
    self._progress.update(self._task, completed=done, text=text, amount=amount, of=of)
    now = time.monotonic()
    if self._progress.disable and now - self._shown >= _EVERY_SECONDS:
      self._shown = now
      self._screen.print(_progress_text(self._progress.tasks[0]))


def _progress_text(task: "Task") -> str:
  parts = [f"{task.description} {int(task.completed):,}/{int(task.total or 0):,}"]
  if text := task.fields.get("text"):
    parts.append(text)
  if task.speed:
    if of := task.fields.get("of"):
      parts.append(f"{short(task.speed * task.fields['amount'])} {of}/s")
    if not task.finished:
      parts.append(f"{duration((task.remaining or 0) / task.speed)} left")
  return "  ".join(parts)


def duration(seconds: float) -> str:
  """A time in its natural unit: '32 s', '12 min', '5.2 h'."""
  if seconds < 99.5:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:,.1f} h"


def short(number: float) -> str:
  """A number in at most three digits and a letter: '735', '36k', '1.2M'."""
  for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if number >= 0.9995 * size:
      scaled = number / size
      return f"{scaled:.1f}{letter}" if scaled < 9.95 else f"{scaled:.0f}{letter}"
  return f"{number:.0f}"
