"""Facts about a host (chips, versions, code), and the check that all hosts of a run agree on them.

  python -m hiermem_jax.parallel.hosts

prints this host's facts as a line of JSON, without starting a device. `distributed.initialize` compares the same facts.
"""

import collections
import glob
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import socket
from collections.abc import Mapping, Sequence

from hiermem_jax.errors import InputError

_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")
_CODE = pathlib.Path(__file__).parents[1]
Facts = Mapping[str, str | int]


def facts() -> dict[str, str | int]:
  """This host's name, number of TPU chips, and versions of Python, of the packages below and of this code.

  A package that is not installed has the version "". The code's version is a digest of its files.
  """
  found: dict[str, str | int] = {"host": socket.gethostname(), "chips": _chips(), "python": platform.python_version()}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = ""
  digest = hashlib.sha256()
  for path in sorted(_CODE.rglob("*.py")):
    digest.update(path.relative_to(_CODE).as_posix().encode() + b"\0" + path.read_bytes())
  return found | {"hiermem_jax": digest.hexdigest()[:12]}


def _chips() -> int:
  """TPU chips of this host: libtpu's device files, of the older driver or of VFIO."""
  return len(glob.glob("/dev/accel[0-9]*")) or len(glob.glob("/dev/vfio/[0-9]*"))


def check_chips(host: Facts, platforms: str | None) -> None:
  """Raises InputError when jax is told to run on TPUs (`jax_platforms`) and this host has none."""
  if not host["chips"] and "tpu" in (platforms or "").split(","):
    raise InputError(
      f"{host['host']}: JAX_PLATFORMS={platforms}, but there is no TPU chip (no /dev/accel*, no /dev/vfio/*);"
      " recreate the slice, or choose another platform"
    )


def check_agreement(hosts: Sequence[Facts]) -> None:
  """Raises InputError when a host differs from the others, that is, from most of them, and names it."""
  for name in hosts[0]:
    values = collections.Counter(host[name] for host in hosts)
    if name != "host" and len(values) > 1:
      usual = values.most_common(1)[0][0]
      index, odd = next((index, host) for index, host in enumerate(hosts) if host[name] != usual)
      raise InputError(
        f"{odd['host']} (process {index}): has {name} {odd[name] or 'none'}, {values[usual]} of {len(hosts)} hosts have"
        f" {usual or 'none'}; set up the same code and environment on every host"
      )


if __name__ == "__main__":
  print(json.dumps(facts()))
