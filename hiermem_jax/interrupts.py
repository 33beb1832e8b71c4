"""SIGINT (Ctrl-C) and SIGTERM, with which pods and batch systems announce that a machine will be taken away.

A verb that is told to end does so in order, with status 75; a second SIGINT ends it at once. The handlers are set also
where a process has inherited SIGINT as ignored, as from `nohup` or a script's `&`.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def handled(notice: Callable[[str], None], signals: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[None]:
  """Calls `notice` with the name of the first signal that comes while the block runs; the main thread calls it.

  Later ones change nothing, but for SIGINT, which ends the process at once. In another thread than the main one, where
  Python lets nobody set a handler, nothing is handled.

  Args:
    notice: may raise.
    signals: that are handled; the others keep their handlers.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  noticed = False

  def handle(number, frame):
    nonlocal noticed
    if not noticed:
      noticed = True
      notice(signal.Signals(number).name)
    elif number == signal.SIGINT:
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)

  before = {number: signal.signal(number, handle) for number in signals}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, signal.SIG_DFL if handler is None else handler)


def interrupt(name: str) -> None:
  """A notice that raises KeyboardInterrupt, which no library takes for a failure of its own."""
  raise KeyboardInterrupt(name)
