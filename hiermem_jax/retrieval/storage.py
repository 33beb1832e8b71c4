"""Artifacts on disk: named arrays (npz) and a JSON object that belongs to them, without pickle.

The artifact NAME in a directory is NAME.npz and NAME.json. The json is written last, so an
artifact without it is unfinished, and it holds a checksum of both.
"""

import hashlib
import json
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hiermem_jax import files
from hiermem_jax.errors import InputError

_FORMAT = 1


def digest(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
  """First 16 hex characters of a sha256 over `meta` and the arrays with their names, types and shapes.

  The order of the names does not count.
  """
  sha = hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode())
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    sha.update(f"{name} {array.dtype.str} {array.shape}".encode())
    sha.update(array.data)
  return sha.hexdigest()[:16]


def write_artifact(directory: str, name: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
  """Writes `directory/name.npz` and `directory/name.json`, in place of earlier ones."""
  folder = pathlib.Path(directory)
  header = {"format": _FORMAT, **meta, "digest": digest(meta, arrays)}
  values: dict[str, Any] = dict(arrays)
  # Both are complete before either is renamed; the json, which is opened first, is renamed last.
  with files.written(folder / f"{name}.json") as described, files.written(folder / f"{name}.npz") as archive:
    np.savez(archive, **values)
    described.write((json.dumps(header, indent=2, sort_keys=True) + "\n").encode())


def read_meta(directory: str, name: str) -> dict[str, Any]:
  """Reads the JSON object that was given to `write_artifact`, with the checksum added as `digest`.

  Raises:
    InputError: the file is missing, not JSON, or of another format.
  """
  path = pathlib.Path(directory) / f"{name}.json"
  try:
    header = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError) as error:
    others = files.beside(directory, path.name)
    raise InputError(
      f"no {path.name} in {directory}{others}: give the directory that the cluster verb wrote"
    ) from error
  except ValueError as error:
    raise InputError(f"{path} is damaged (not json): restore it or cluster the corpus again") from error
  if not isinstance(header, dict) or header.pop("format", None) != _FORMAT or "digest" not in header:
    raise InputError(f"{path} is not a format {_FORMAT} description: cluster the corpus again with this version")
  return header


def read_artifact(directory: str, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Reads the JSON object and the arrays that were given to `write_artifact`.

  Raises:
    InputError: a file is missing, damaged or out of reach, or the two files do not belong together.
  """
  meta = read_meta(directory, name)
  expected = meta.pop("digest")
  path = pathlib.Path(directory) / f"{name}.npz"
  try:
    arrays = files.patiently(lambda: files.read_arrays(path))
  except FileNotFoundError as error:
    raise InputError(f"{path} is missing: restore it or cluster the corpus again") from error
  except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
    if isinstance(error, OSError) and files.may_pass(error):
      raise files.unreadable(path, error) from error
    raise InputError(f"{path} is damaged (not an npz archive): restore it or cluster the corpus again") from error
  if digest(meta, arrays) != expected:
    raise InputError(f"{path} does not match {name}.json beside it: restore both or cluster the corpus again")
  return meta, arrays
