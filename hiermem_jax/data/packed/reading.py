"""Reads packed datasets: any sequence by its number, without TensorFlow and without reading its neighbours."""

import collections
import errno
import functools
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from hiermem_jax import files
from hiermem_jax.data.packed.format import FORMAT, Manifest, Shard, decode_records, leaves_path, sha256_of
from hiermem_jax.errors import InputError

T = TypeVar("T")

_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # reads no more than what is asked for


class PackedDataset:
  """A packed dataset; its length is the number of sequences. A shard is opened when a sequence of it is first read.

  Attributes:
    directory: of the dataset.
    manifest: see `Manifest`.
  """

  directory: str
  manifest: Manifest

  def __init__(self, directory: str):
    """Reads the manifest and checks the sizes of the shards. Their contents are checked by `verify` only.

    Raises:
      InputError: the directory, the manifest or a shard is missing, damaged or out of reach.
    """
    self.directory = str(directory)
    path = pathlib.Path(directory) / "manifest.json"
    others = "" if path.exists() else files.beside(directory, path.name)
    if path.parent.is_dir() and not path.exists():
      raise InputError(f"{path.parent}: no packed dataset, or an unfinished one{others}; run prepare (again)")
    try:
      self.manifest = Manifest.from_json(files.patiently(path.read_text))
    except OSError as error:
      if files.may_pass(error):
        raise files.unreadable(path, error) from error
      reason = error.strerror or "not readable"
      raise InputError(f"{path}: {reason}{others}; give the directory that the prepare verb wrote") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise InputError(f"{path} is not a format {FORMAT} manifest: {_remedy(directory)}") from error
    self._lock = threading.Lock()
    self._readers: dict[int, Any] = {}
    self._stops = np.cumsum([shard.records for shard in self.manifest.shards])
    for shard in self.manifest.shards:
      self._check_size(shard)

  def __len__(self) -> int:
    return self.manifest.num_sequences

  def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads sequences by their numbers.

    Args:
      indices: integer [n], each from 0 to len - 1, in any order; a number may occur more than once.

    Returns:
      leaves [n], targets [n, S] and segments [n, S], all int32.

    Raises:
      IndexError: a number is out of range.
      InputError: a shard is damaged, or out of reach for longer than 12 seconds.
    """
    indices = np.asarray(indices, np.int64)
    if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
      raise IndexError(f"sequences {indices.min()} .. {indices.max()} of a dataset of {len(self)}")
    records: list[bytes] = [b""] * len(indices)
    shards = np.searchsorted(self._stops, indices, side="right")
    for shard in np.unique(shards).tolist():
      chosen = np.flatnonzero(shards == shard)
      within = indices[chosen] - (self._stops[shard] - self.manifest.shards[shard].records)
      for i, record in zip(chosen, self._records(shard, within.tolist()), strict=True):
        records[i] = record
    try:
      return decode_records(records, self.manifest.length, self.manifest.dtype)
    except ValueError as error:
      raise InputError(f"{self.directory}: {error}; {_remedy(self.directory)}") from error

  def leaves(self) -> np.ndarray:
    """The leaf of every sequence, int32 [len]. It is read from the shards' .leaves.npy files.

    Raises:
      InputError: such a file is missing or damaged.
    """
    parts = []
    for number, shard in enumerate(self.manifest.shards):
      path = leaves_path(self._path(number))
      try:
        part = files.patiently(functools.partial(np.load, path))
      except (OSError, ValueError, EOFError) as error:
        if isinstance(error, OSError) and files.may_pass(error):
          raise files.unreadable(path, error) from error
        raise InputError(f"{path} is missing or damaged: {_remedy(self.directory)}") from error
      if part.shape != (shard.records,):
        raise InputError(f"{path} has shape {part.shape}, the shard {shard.records} records: {_remedy(self.directory)}")
      parts.append(part)
    leaves = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    if collections.Counter(leaves.tolist()) != self.manifest.sequences_per_leaf:
      raise InputError(f"{self.directory}: its .leaves.npy files are not as in the manifest: {_remedy(self.directory)}")
    return leaves

  def verify(self) -> None:
    """Reads every shard and compares its checksum with the manifest's.

    Raises:
      InputError: a shard is missing, damaged or out of reach.
    """
    for shard in self.manifest.shards:
      self._check_size(shard)
      self._reached(shard, functools.partial(self._check_content, shard))

  def _records(self, shard: int, records: list[int]) -> list[bytes]:
    return self._reached(self.manifest.shards[shard], functools.partial(self._try_records, shard, records))

  def _try_records(self, shard: int, records: list[int]) -> list[bytes]:
    """Reads records. The reader does not say why it fails, so the file's checksum tells damage from the rest."""
    with self._lock:  # a reader cannot be used by two threads at once
      try:
        if shard not in self._readers:
          reader = _open(self._path(shard))
          if reader.num_records() != self.manifest.shards[shard].records:
            raise RuntimeError("another number of records")
          self._readers[shard] = reader
        return self._readers[shard].read(records)
      except (RuntimeError, IndexError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        for reader in self._readers.values():  # the files that may be open are limited
          reader.close()
        self._readers.clear()
    self._check_content(self.manifest.shards[shard])
    raise OSError(errno.EIO, f"its checksum is right, and its reader says: {reason}")

  def _check_size(self, shard: Shard) -> None:
    path = pathlib.Path(self.directory) / shard.name
    if not self._reached(shard, path.is_file):
      raise InputError(f"{path} is missing: {_remedy(self.directory)}")
    if (size := self._reached(shard, path.stat).st_size) != shard.bytes:
      raise InputError(f"{path} has {size} bytes, its manifest says {shard.bytes}: {_remedy(self.directory)}")

  def _check_content(self, shard: Shard) -> None:
    path = pathlib.Path(self.directory) / shard.name
    if sha256_of(path) != shard.sha256:
      raise InputError(f"{path} is damaged (its sha256 is not the manifest's): {_remedy(self.directory)}")

  def _reached(self, shard: Shard, read: Callable[[], T]) -> T:
    """What `read` gives of a shard; tries again what may pass."""
    path = pathlib.Path(self.directory) / shard.name
    try:
      return files.patiently(read)
    except FileNotFoundError as error:
      raise InputError(f"{path} is missing: {_remedy(self.directory)}") from error
    except OSError as error:
      raise files.unreadable(path, error) from error

  def _path(self, shard: int) -> pathlib.Path:
    return pathlib.Path(self.directory) / self.manifest.shards[shard].name


def _open(path: pathlib.Path) -> Any:
  from array_record.python import array_record_module

  reader = array_record_module.ArrayRecordReader(str(path), _READER_OPTIONS)
  if not reader.ok():
    raise RuntimeError(f"{path} is not an ArrayRecord file")
  return reader


def _remedy(directory: str) -> str:
  return f"delete {directory} and run prepare again"
