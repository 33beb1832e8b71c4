"""A run directory in use: one process at a time fills it.

The lock is the kernel's (flock) on the file `.lock`, which says who holds it. When its process ends, however it does,
the lock is gone, and whoever comes next takes the file over. It holds between processes of one machine, and between
machines on file systems that pass flock on: NFS does, Lustre and GPFS do where they are mounted so, a bucket mounted by
gcsfuse does not. Where the file system has no locks at all, a warning says so and the run goes on.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator

from absl import logging

from hiermem_jax.errors import InputError

NAME = ".lock"
_BUSY = (errno.EAGAIN, errno.EACCES)


@contextlib.contextmanager
def held(directory: str) -> Iterator[None]:
  """Holds the lock of a directory, which is created where it is missing, while the block runs.

  Raises:
    InputError: a live process holds it; the message names host and process.
    OSError: the directory cannot be written to.
  """
  os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, NAME)
  descriptor = _acquired(directory, path)
  try:
    yield
  finally:
    if descriptor is not None:
      with contextlib.suppress(OSError):  # the directory may be gone
        os.unlink(path)
      os.close(descriptor)


def _acquired(directory: str, path: str) -> int | None:
  """The locked file's descriptor; None where the file system has no locks."""
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      holder = _holder(descriptor)
      os.close(descriptor)
      if error.errno in _BUSY:
        raise InputError(f"{directory}: in use by {holder}; wait for it, end it, or use another --run_dir") from None
      logging.warning("%s: the file system has no locks (%s); see that one run at a time uses it", directory, error)
      return None
    if _is_still(descriptor, path):
      break
    os.close(descriptor)  # whoever held it has removed the file in the meantime
  os.ftruncate(descriptor, 0)
  os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
  return descriptor


def _holder(descriptor: int) -> str:
  try:
    about = json.loads(os.pread(descriptor, 4096, 0))
    return f"process {about['pid']} on {about['host']}"
  except (ValueError, KeyError, TypeError):  # it has only just been created
    return "another process"


def _is_still(descriptor: int, path: str) -> bool:
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except FileNotFoundError:
    return False
