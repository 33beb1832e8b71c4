"""SIGTERM, with which pods and batch systems announce that a machine will be taken away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from absl import logging
from jax.experimental import multihost_utils


@contextlib.contextmanager
def preemption_notice() -> Iterator[Callable[[int], bool]]:
  """Gives a function that is called before each step and returns whether the run must end there.

  With several processes, all get the same answer at the same step, even if only one of them was signalled. So every
  process must call the function before every step.
  """
  if jax.distributed.is_initialized():
    # Without the service SIGTERM ends a process, see `distributed.initialize`.
    serviced = jax.config.jax_enable_preemption_service  # type: ignore[attr-defined]  # jax adds it at run time
    yield multihost_utils.reached_preemption_sync_point if serviced else lambda step: False
    return
  noticed = threading.Event()

  def handle(signum, frame):
    logging.warning("SIGTERM: saving, and ending")
    noticed.set()

  if threading.current_thread() is not threading.main_thread():
    yield lambda step: False  # Python hands signals to the main thread alone
    return
  previous = signal.signal(signal.SIGTERM, handle)
  try:
    yield lambda step: noticed.is_set()
  finally:
    signal.signal(signal.SIGTERM, previous)
