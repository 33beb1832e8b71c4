"""Small files of a pipeline, local or gs://, each there whole or not at all."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from etils import epath

Path = epath.Path


@contextlib.contextmanager
def written(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """A file to write to that appears under `path` when the block ends well."""
  target = Path(path)
  temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
  try:
    with temporary.open("wb") as file:
      yield file
    temporary.replace(target)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise


def write_arrays(path: str | os.PathLike, **arrays: np.ndarray) -> None:
  """Writes an npz archive."""
  with written(path) as file:
    np.savez(file, **arrays)


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads an npz archive."""
  with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
    return {name: archive[name] for name in archive.files}


def write_json(path: str | os.PathLike, value: Mapping[str, Any]) -> None:
  """Writes one JSON object."""
  with written(path) as file:
    file.write((json.dumps(value) + "\n").encode())


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """Reads one JSON object."""
  return json.loads(Path(path).read_text())
