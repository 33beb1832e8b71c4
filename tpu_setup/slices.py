"""What every kind of slice can do, and how a command reaches all of its hosts."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from tpu_setup.config import Config
from tpu_setup.shell import CommandError, Shell

T = TypeVar("T")
AT_A_TIME = 16  # connections; each is a process of gcloud's

# States of a slice.
MISSING = "missing"
WAITING = "waiting"
ACTIVE = "active"
LOST = "lost"  # preempted, suspended, failed: only good for deletion


@dataclasses.dataclass(frozen=True)
class Host:
  """A machine of a slice."""

  node: str  # the slice's name; of several slices, this one's
  worker: int  # within it
  index: int  # over all

  def __str__(self) -> str:
    return f"{self.node}:{self.worker}"


class TroubleError(Exception):
  """Something failed that may pass: a host, a connection, a slice that is not granted. One line that names it."""


class Slice(Protocol):
  """A slice, or several of one run; there may be none of this name yet.

  Scripts start in a home directory of the host's, with `environment` set.
  """

  config: Config
  shell: Shell

  def create(self) -> None:
    """Asks for the slice and waits until it is there; what was begun and failed is taken back."""

  def state(self) -> str:
    """MISSING, WAITING, ACTIVE or LOST."""

  def detail(self) -> str:
    """The provider's own word for the state."""

  def delete(self) -> None:
    """Gives everything back; says nothing if there is nothing."""

  def hosts(self) -> list[Host]:
    """All hosts of an active slice."""

  def run(self, host: Host, script: str) -> str:
    """Runs a shell script on a host and returns what it printed."""

  def send(self, host: Host, path: str, name: str) -> None:
    """Copies a file to the host's home directory."""

  def process_flags(self, hosts: Sequence[Host]) -> list[list[str]]:
    """What each host's process must be told to find the others."""

  def environment(self) -> dict[str, str]:
    """What the scripts of host/ need to know."""

  def on_host(self, text: str) -> str:
    """A command's argument as a host must have it: gs:// paths become paths."""

  def read(self, path: str) -> str | None:
    """A small file of a run directory; None if there is none."""


def everywhere(slice_: Slice, function: Callable[[Host], T], hosts: Sequence[Host] | None = None) -> list[T]:
  """Calls `function` for every host, several at a time.

  Raises:
    TroubleError: it failed for some; the first of them is named with what it said.
  """
  hosts = slice_.hosts() if hosts is None else hosts
  if slice_.shell.dry_run:
    return [function(host) for host in hosts]
  with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
    futures = [pool.submit(function, host) for host in hosts]
    concurrent.futures.wait(futures)
  failed = []
  for host, future in zip(hosts, futures):
    error = future.exception()
    if isinstance(error, CommandError):
      failed.append((host, error))
    elif error is not None:
      raise error
  if failed:
    host, first = failed[0]
    others = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    raise TroubleError(f"{host}{others} of {len(hosts)} hosts: {first.line}")
  return [future.result() for future in futures]
