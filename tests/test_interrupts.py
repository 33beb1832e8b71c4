"""Signals: the first one is a notice, a second SIGINT ends, and what was inherited does not matter."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from hiermem_jax import interrupts
from hiermem_jax.training.preemption import preemption_notice

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAM = """
import sys, time
from hiermem_jax import interrupts
noticed = []
with interrupts.handled(noticed.append):
  print("ready", flush=True)
  while True:
    time.sleep(0.01)
    if noticed:
      print(noticed, flush=True)
      noticed.clear()
"""


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_training_hears_of_a_signal_and_goes_on_to_its_save(number):
  before = [signal.getsignal(each) for each in interrupts.SIGNALS]
  with preemption_notice() as ends_at:
    assert not ends_at(1)
    os.kill(os.getpid(), number)
    assert ends_at(2) and ends_at(3)
  assert [signal.getsignal(each) for each in interrupts.SIGNALS] == before


def test_outside_of_training_a_signal_is_an_interrupt():
  with pytest.raises(KeyboardInterrupt, match="SIGTERM"), interrupts.handled(interrupts.interrupt):
    os.kill(os.getpid(), signal.SIGTERM)


def test_in_another_thread_nothing_is_handled():
  def body():
    with interrupts.handled(print):
      handlers.append(signal.getsignal(signal.SIGTERM))

  handlers: list = []
  thread = threading.Thread(target=body)
  thread.start()
  thread.join()
  assert handlers == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize("first", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_second_sigint_ends_at_once(first, ignored):
  """Also where the process inherits SIGINT as ignored, as from `nohup` or a script's `&`."""

  def ignore():
    signal.signal(signal.SIGINT, signal.SIG_IGN)

  with subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(PROGRAM)],
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    preexec_fn=ignore if ignored else None,
  ) as process:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, first))
    assert process.stdout.readline() == f"['{first}']\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == -signal.SIGINT
