"""The configuration that a run directory keeps: written once, compared with what a later command is given."""

import hashlib
import os

from hiermem_jax import files, run_record
from hiermem_jax.errors import InputError


def save(path: str, text: str, replace: bool = False) -> None:
  """Writes a run's configuration, or checks that the one already there is the same; with `replace` writes in any case.

  Of several processes the first writes, and the others check that they were given the same.

  Raises:
    InputError: the directory belongs to a run of another configuration, or the processes do not share it.
  """
  from hiermem_jax.parallel import distributed

  distributed.on_first(lambda: _write_or_compare(path, text, replace))
  distributed.together(lambda: _require_same(path, text))


def agree(text: str) -> None:
  """Raises InputError when the processes of a run were given different configurations."""
  from hiermem_jax.parallel import distributed

  own = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
  first = distributed.from_first(own)

  def compare():
    if own != first:
      raise InputError("this process has another configuration than process 0; give all the same flags and gin files")

  distributed.together(compare)


def _write_or_compare(path: str, text: str, replace: bool) -> None:
  if os.path.exists(path):
    try:
      _require_same(path, text)
      return
    except InputError:
      if not replace:
        raise
  files.write_text(path, text)


def _require_same(path: str, text: str) -> None:
  if not os.path.exists(path):
    raise InputError(f"{path}: written by the first process and not here; --run_dir must be a directory that all share")
  with open(path, encoding="utf-8") as file:
    stored = file.read()
  if stored != text:
    before, now = _first_difference(stored, text)
    raise InputError(
      f"{path}: this directory is of a run with another configuration (there: {before!r}, now: {now!r}); use another"
      " --run_dir or delete this one"
    )


def discard(path: str) -> None:
  """Removes all but the log of a run that has written no more than its configuration: a corrected one may follow."""
  directory, name = os.path.split(path)
  beside = {entry for entry in os.listdir(directory) if not entry.startswith("log.")}
  if beside <= {name, run_record.short_name(name), run_record.NAME}:
    for other in beside:
      os.remove(os.path.join(directory, other))


def _first_difference(stored: str, text: str) -> tuple[str, str]:
  old, new = stored.splitlines(), text.splitlines()
  removed = [line for line in old if line not in new]
  added = [line for line in new if line not in old]
  return (removed[0] if removed else "nothing", added[0] if added else "nothing")
