"""Declares what every kind of slice can do, and calls a function for all hosts of a slice at once."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from tpu_setup.config import Config
from tpu_setup.shell import CommandError, Shell

T = TypeVar("T")
AT_A_TIME = 16  # connections; each is a process of gcloud

# States of a slice.
MISSING = "missing"
WAITING = "waiting"
ACTIVE = "active"
LOST = "lost"  # preempted, suspended or failed; it can only be deleted


@dataclasses.dataclass(frozen=True)
class Host:
  """A machine of a slice."""

  node: str  # the slice's name; of several slices, this one's
  worker: int  # number within the node
  index: int  # number within all nodes; the process id of the run on it

  def __str__(self) -> str:
    return f"{self.node}:{self.worker}"


class TroubleError(Exception):
  """A failure that may pass: of a host, of a connection, or a slice that is not granted. One line that names it."""


class Slice(Protocol):
  """A slice, or several slices of one run. The object may stand for a slice that does not exist yet.

  Scripts start in a home directory on the host, with the variables of `environment` set.
  """

  config: Config
  shell: Shell

  def create(self) -> None:
    """Asks for the slice and waits until it is active. A request that fails is deleted."""

  def state(self) -> str:
    """MISSING, WAITING, ACTIVE or LOST."""

  def detail(self) -> str:
    """The state in the provider's words."""

  def delete(self) -> None:
    """Deletes the slice. It is no error if there is none."""

  def hosts(self) -> list[Host]:
    """All hosts of an active slice."""

  def run(self, host: Host, script: str) -> str:
    """Runs a shell script on a host and returns what it printed."""

  def send(self, host: Host, path: str, name: str) -> None:
    """Copies a file to the host's home directory."""

  def process_flags(self, hosts: Sequence[Host]) -> list[list[str]]:
    """For each host the flags with which its process finds the others."""

  def environment(self) -> dict[str, str]:
    """Variables that the scripts in host/ read."""

  def on_host(self, text: str) -> str:
    """Translates an argument of a command for the hosts: gs:// paths become paths of the mounted bucket."""

  def read(self, path: str) -> str | None:
    """Reads a small file of a run directory; None where there is none."""


def everywhere(slice_: Slice, function: Callable[[Host], T], hosts: Sequence[Host] | None = None) -> list[T]:
  """Calls `function` for every host, several at a time, and returns the results in the order of the hosts.

  Raises:
    TroubleError: a command failed on some hosts; the message names the first of them with its error.
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
