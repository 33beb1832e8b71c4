"""Atomic writes: a file appears under its name when it is complete, or the old one stays.

Everything that this project writes in one piece (reports, manifests, plots, arrays, tokenizers) goes through here. Each
function writes a temporary file in the folder of the target, named `.NAME.XXXXXXXX.tmp`, and renames it at the end. An
exception removes the temporary file; a killed process leaves it, and it is never read.

Paths may be local or in a bucket (gs://). numpy and etils are imported when they are needed, because every command
imports this module.
"""

import contextlib
import errno
import fnmatch
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from hiermem_jax.errors import InputError, listed

if TYPE_CHECKING:
  import numpy as np
  from etils import epath

  AnyPath = str | os.PathLike[str]

T = TypeVar("T")

_RETRY_PAUSES = (2.0, 10.0)  # seconds before the second and the third try


def as_path(path: "AnyPath") -> "epath.Path":
  """`path` as a `pathlib.Path` or its counterpart for a bucket."""
  from etils import epath

  return epath.Path(path)


def matching(directory: "AnyPath", pattern: str) -> list["epath.Path"]:
  """What is in a directory under a name that matches, in order. The directory's own name is no pattern."""
  folder = as_path(directory)
  inside = folder.iterdir() if folder.is_dir() else ()
  return sorted(path for path in inside if fnmatch.fnmatchcase(path.name, pattern))


@contextlib.contextmanager
def replaced(path: "AnyPath") -> Iterator["epath.Path"]:
  """Yields the path of a temporary file to create; it becomes `path` when the block ends without an exception.

  Missing folders of `path` are created.
  """
  target = as_path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
  try:
    yield temporary
    temporary.replace(target)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def written(path: "AnyPath") -> Iterator[BinaryIO]:
  """Yields a binary file to write to; it becomes `path` when the block ends without an exception."""
  with replaced(path) as temporary, temporary.open("wb") as file:
    yield file


def write_bytes(path: "AnyPath", content: bytes) -> None:
  """Writes a file of these bytes."""
  with written(path) as file:
    file.write(content)


def write_text(path: "AnyPath", text: str) -> None:
  """Writes a file of this text in UTF-8."""
  write_bytes(path, text.encode())


def write_json(path: "AnyPath", value: Mapping[str, Any], *, indent: int | None = None) -> None:
  """Writes one JSON object and a line break."""
  write_text(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: "AnyPath") -> dict[str, Any]:
  """Reads one JSON object.

  Raises:
    InputError: the file holds something else, as one that was cut off does.
  """
  return _object(as_path(path).read_bytes(), str(path))


def read_jsonl(path: "AnyPath", *, growing: bool = False) -> list[dict[str, Any]]:
  """Reads a JSON object per line; with `growing`, leaves out a last line that has no end yet.

  Raises:
    InputError: a line holds something else.
  """
  lines = as_path(path).read_bytes().split(b"\n")
  last = lines.pop()
  if last and not growing:
    lines.append(last)
  return [_object(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _object(text: bytes, place: str) -> dict[str, Any]:
  try:
    if isinstance(found := json.loads(text), dict):
      return found
    reason = f"it is a {type(found).__name__}"
  except ValueError as error:
    reason = str(error)
  raise InputError(f"{place}: damaged, not a JSON object ({reason}); delete the file, or bring back a whole one")


def refuse_pattern(path: "AnyPath") -> None:
  """Raises InputError when a directory that will hold checkpoints has a name that orbax reads as a pattern."""
  if odd := sorted(set(os.path.abspath(path)) & set("[]*?\\")):
    raise InputError(
      f"{path}: has {' '.join(odd)} in its path, and what is saved there could not be read back; use another directory"
    )


def may_pass(error: BaseException) -> bool:
  """Whether a file could not be read for a reason that says nothing of what it holds, and may be gone in a while."""
  if not isinstance(error, OSError) or isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
    return False
  return error.errno is not None or isinstance(error, (TimeoutError, ConnectionError))


def patiently(function: Callable[[], T], again: Callable[[BaseException], bool] = may_pass) -> T:
  """What `function` gives. As long as `again` is true of what it raises, it is called three times in 12 seconds."""
  for pause in _RETRY_PAUSES:
    try:
      return function()
    except Exception as error:
      if not again(error):
        raise
    time.sleep(pause)
  return function()


def unreadable(path: "AnyPath", error: OSError) -> InputError:
  """What to raise when `patiently` gave up on a file, which is not damaged for all that is known."""
  limits = error.errno in (errno.EMFILE, errno.ENFILE)
  remedy = "raise the limit of open files (ulimit -n)" if limits else "make the place reachable"
  reason = error.strerror or str(error) or type(error).__name__
  return InputError(
    f"{path} could not be read in three tries ({reason}), which says nothing against what it holds; {remedy}, and run"
    " the same command again"
  )


def write_arrays(path: "AnyPath", **arrays: "np.ndarray") -> None:
  """Writes an npz archive."""
  import numpy as np

  values: dict[str, Any] = dict(arrays)
  with written(path) as file:
    np.savez(file, **values)


def read_arrays(path: "AnyPath") -> dict[str, "np.ndarray"]:
  """Reads an npz archive."""
  import numpy as np

  with as_path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
    return {name: archive[name] for name in archive.files}


def beside(path: str, holds: str) -> str:
  """Which directories in or beside a local path hold some file, for a message that it is not at the path.

  Returns " (there are 'runs/q/anchor', 'runs/q/baseline')", or "" where there are none.
  """
  path = os.path.normpath(path)
  found = []
  for folder in (path, os.path.dirname(path) or "."):
    inside = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    places = [os.path.normpath(os.path.join(folder, name)) for name in inside]
    found += [place for place in places if os.path.exists(os.path.join(place, holds)) and place not in found]
  return f" (there are {listed(found)})" if found else ""
