"""How training notices that it is told to end, by SIGTERM or SIGINT, between two steps."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from absl import logging
from jax.experimental import multihost_utils

from hiermem_jax.interrupts import handled


@contextlib.contextmanager
def preemption_notice() -> Iterator[Callable[[int], bool]]:
  """Gives a function that is called before each step and returns whether the run must end there.

  With several processes, all get the same answer at the same step, even if only one of them was signalled. So every
  process must call the function before every step. There SIGTERM is jax's, and SIGINT is handed on as SIGTERM.
  """
  if jax.distributed.is_initialized():
    # Without the service SIGTERM ends a process, see `distributed.initialize`.
    if not jax.config.jax_enable_preemption_service:  # type: ignore[attr-defined]  # jax adds it at run time
      yield lambda step: False
      return
    with handled(lambda name: os.kill(os.getpid(), signal.SIGTERM), (signal.SIGINT,)):
      yield multihost_utils.reached_preemption_sync_point
    return
  noticed = threading.Event()

  def notice(name):
    logging.warning("%s: saving, and ending; Ctrl-C ends at once", name)
    noticed.set()

  with handled(notice):
    yield lambda step: noticed.is_set()
