"""Several processes, usually one per host, that train together: how they start, and how they agree.

All processes run the same program in the same order and share the run directory. The first process writes the files of
which there is one (configuration, metrics, reports); all processes write checkpoints.
"""

import json
import threading
from collections.abc import Callable
from typing import TypeVar

import jax
from absl import logging

from hiermem_jax.errors import InputError
from hiermem_jax.parallel import agreement, hosts

T = TypeVar("T")

_HEARTBEAT_SECONDS = 60  # a process that is silent for so long counts as dead, and the others end


def initialize(
  coordinator_address: str | None, num_processes: int | None, process_id: int | None, *, preemptible: bool = False
) -> None:
  """Joins this process to the others of the run. It must be called before anything touches a device.

  When one of the processes dies, the others end with an error: at once if they are waiting for it, and within about a
  minute otherwise.

  Args:
    coordinator_address: HOST:PORT of the first process, where it listens; None: as the environment says.
    num_processes: how many there are; None: as the environment says.
    process_id: which of them this is, from 0; None: as the environment says.
    preemptible: SIGTERM no longer ends a process, but is left to training, which saves first.

  Raises:
    InputError: the arguments do not fit each other, or what is not given cannot be detected (on Cloud TPU and under
      Slurm, Open MPI or Kubernetes it can); this host has no chips; or the hosts run different code or versions.
  """
  if coordinator_address is not None and not coordinator_address.rpartition(":")[2].isdigit():
    raise InputError(f"--coordinator_address={coordinator_address}: has no port; give HOST:PORT of process 0")
  if process_id is not None and num_processes is not None and process_id >= num_processes:
    raise InputError(f"--process_id={process_id}: --num_processes={num_processes} are counted from 0; give less")
  here = hosts.facts()
  hosts.check_chips(here, jax.config.jax_platforms)  # type: ignore[attr-defined]  # jax adds its options at run time
  jax.config.update("jax_enable_preemption_service", preemptible)
  logging.info("waiting for the other processes, up to five minutes")
  try:
    jax.distributed.initialize(
      coordinator_address, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
    )
  except ValueError as error:  # it names the one that is missing
    raise InputError(
      f"--distributed: {str(error).rstrip('.')}, and nothing here says it; give --coordinator_address, --num_processes"
      " and --process_id"
    ) from None
  if not is_first():
    logging.set_verbosity(logging.WARNING)
  devices = jax.local_device_count(), jax.device_count()
  logging.info("%d processes; of %d devices, %d are here", jax.process_count(), *devices[::-1])
  hosts.check_agreement([json.loads(each) for each in agreement.exchange(json.dumps(here))])


def leave(seconds: float) -> bool:
  """Leaves the other processes in order, waiting at most `seconds` for them; returns whether there were any."""
  if not jax.distributed.is_initialized():
    return False
  goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)
  goodbye.start()
  goodbye.join(seconds)
  return True


def is_first() -> bool:
  """Whether this process is the one that writes and prints: the first of several, or the only one."""
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def number() -> int:
  """Which of the processes this is, from 0; 0 for the only one."""
  return jax.process_index() if jax.distributed.is_initialized() else 0


def together(function: Callable[[], T]) -> T:
  """Calls `function` in every process and waits until all have returned; it may do something else in each.

  Raises:
    InputError: `function` raised it or an OSError in another process, whose line it repeats.
    RuntimeError: it raised something else in another process.
    Exception: what it raised here.
  """
  if not jax.distributed.is_initialized():
    return function()
  result: list[T] = []
  failure, kind = None, 0
  try:
    result.append(function())
  except Exception as error:
    failure, kind = error, 1 if isinstance(error, (InputError, OSError)) else 2
  lines = agreement.exchange(f"{kind}process {jax.process_index()}: {failure}" if failure else "")
  if failure:
    raise failure
  for line in filter(None, lines):
    raise (InputError if line[0] == "1" else RuntimeError)(line[1:])
  return result[0]


def on_first(function: Callable[[], object]) -> None:
  """Calls `function` in the first process alone; the others wait, and fail if it does."""
  together(lambda: function() if is_first() else None)


def from_first(number: int) -> int:
  """The first process's value of a number."""
  if not jax.distributed.is_initialized():
    return number
  return int(agreement.exchange(str(number))[0])
