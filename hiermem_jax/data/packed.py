"""The packed dataset on disk: ArrayRecord shards of fixed-length records, and a manifest.

  manifest.json               a `Manifest`; written last
  shard-00000.array_record    sequences 0, n, 2n, ... of n shards; sequence i is record i // n of shard i % n

A record is little-endian int32 [1 + 2 * S]: the leaf, S target tokens, S segment ids (0 is padding). The
paper, too, puts the leaf first and splits it off in the trainer (section A.2); it may exceed the vocabulary.
A directory appears under its name only when it is complete.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import threading
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hiermem_jax.errors import InputError

FORMAT = 1

# One record per chunk, lightly compressed, no readahead: a record is read without its neighbours.
_WRITER_OPTIONS = "group_size:1,zstd:1"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """One file: its name, records, bytes and sha256."""

  name: str
  records: int
  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """What a packed dataset holds and what it was made of.

  The last four fields are counted by `write_packed`.

  Attributes:
    length: S, positions of a sequence.
    vocab_size: of the tokenizer.
    eot_id: the token that ends a document.
    bos_id: the input at the beginning of a document.
    num_leaves: of the cluster tree; leaves are 0 .. num_leaves - 1.
    tokenizer_fingerprint: see `tokenizer.Tokenizer`.
    tree_fingerprint: see `retrieval.tree.ClusterTree`.
    num_documents: documents with at least one token.
    num_windows: windows of these documents.
    num_characters: characters of these documents.
    inputs: what the dataset is a function of, as it was asked for: two datasets with equal inputs are equal.
    num_sequences: records.
    num_tokens: positions that are not padding, end-of-text tokens included.
    sequences_per_leaf: number of sequences of each leaf that has any.
    shards: the files.
  """

  length: int
  vocab_size: int
  eot_id: int
  bos_id: int
  num_leaves: int
  tokenizer_fingerprint: str
  tree_fingerprint: str
  num_documents: int
  num_windows: int
  num_characters: int
  inputs: dict[str, Any]
  num_sequences: int = 0
  num_tokens: int = 0
  sequences_per_leaf: dict[int, int] = dataclasses.field(default_factory=dict)
  shards: tuple[Shard, ...] = ()

  def to_json(self) -> str:
    """One line per field, so that the per-leaf counts do not fill the screen."""
    fields = {"format": FORMAT, **dataclasses.asdict(self)}
    return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in fields.items()) + "\n}\n"

  @classmethod
  def from_json(cls, text: str) -> "Manifest":
    """Inverse of `to_json`; ValueError, TypeError or KeyError where the text is not of this format."""
    fields = json.loads(text)
    if (found := fields.pop("format")) != FORMAT:
      raise ValueError(f"format {found}")
    fields["sequences_per_leaf"] = {int(k): v for k, v in fields["sequences_per_leaf"].items()}
    fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
    return cls(**fields)


def write_packed(
  directory: str,
  sequences: Iterable[tuple[int, np.ndarray, np.ndarray]],
  manifest: Manifest,
  *,
  num_shards: int = 8,
) -> "PackedDataset":
  """Writes a packed dataset and opens it.

  Args:
    directory: a path that does not exist or is an empty directory.
    sequences: leaf, targets [S] and segments [S] of each sequence, in the order of their numbers.
    manifest: its counted fields are filled in.
    num_shards: files to write, or one per sequence where there are fewer.

  Raises:
    InputError: the directory is not empty, or there are no sequences.
  """
  from array_record.python import array_record_module

  target = pathlib.Path(directory)
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise InputError(f"{target} is not empty: give a new directory, or delete this one")
  partial = pathlib.Path(f"{os.path.abspath(directory)}.partial-{uuid.uuid4().hex[:8]}")
  partial.mkdir(parents=True)
  try:
    writers = []
    per_leaf = collections.Counter()
    count = tokens = 0
    for leaf, targets, segments in sequences:
      if targets.shape != (manifest.length,) or segments.shape != (manifest.length,):
        raise ValueError(f"sequence {count}: {targets.shape}, {segments.shape} for length {manifest.length}")
      if not 0 <= leaf < manifest.num_leaves:
        raise ValueError(f"sequence {count}: leaf {leaf} is not one of {manifest.num_leaves} leaves")
      if len(writers) < num_shards:
        path = partial / f"shard-{len(writers):05d}.array_record"
        writers.append(array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS))
      record = np.concatenate([[leaf], targets, segments]).astype("<i4")
      writers[count % num_shards].write(record.tobytes())
      per_leaf[int(leaf)] += 1
      tokens += int(np.count_nonzero(segments))
      count += 1
    if not count:
      raise InputError(f"no sequences to write to {target}: check that the source has documents")
    for writer in writers:
      writer.close()
    manifest = dataclasses.replace(
      manifest,
      num_sequences=count,
      num_tokens=tokens,
      sequences_per_leaf=dict(sorted(per_leaf.items())),
      shards=tuple(_describe(path) for path in sorted(partial.iterdir())),
    )
    (partial / "manifest.json").write_text(manifest.to_json())
    try:
      os.rename(partial, target)
    except OSError as error:
      raise InputError(f"{target} was written by another process meanwhile: use it or delete it") from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return PackedDataset(directory)


def _describe(path: pathlib.Path) -> Shard:
  reader = _open(path)
  records = reader.num_records()
  reader.close()
  return Shard(name=path.name, records=records, bytes=path.stat().st_size, sha256=_sha256(path))


class PackedDataset:
  """Random access to a packed dataset by sequence number; files are opened when first read.

  Attributes:
    directory: where it is.
    manifest: see `Manifest`.
  """

  directory: str
  manifest: Manifest

  def __init__(self, directory: str):
    """Reads the manifest and checks the sizes of the shards, not their content: see `verify`.

    Raises:
      InputError: the directory, the manifest or a shard is missing or damaged.
    """
    self.directory = str(directory)
    path = pathlib.Path(directory) / "manifest.json"
    try:
      self.manifest = Manifest.from_json(path.read_text())
    except OSError as error:
      reason = error.strerror or "not readable"
      raise InputError(f"{path}: {reason}; give the directory that the prepare verb wrote") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise InputError(f"{path} is not a format {FORMAT} manifest: {_remedy(directory)}") from error
    self._lock = threading.Lock()
    self._readers = {}
    for shard in self.manifest.shards:
      self._check_size(shard)
    if sum(shard.records for shard in self.manifest.shards) != len(self):
      raise InputError(f"{path}: the records of its shards are not {len(self)}: {_remedy(directory)}")

  def __len__(self) -> int:
    return self.manifest.num_sequences

  def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads sequences by number, in any order, repeats allowed.

    Args:
      indices: integer [n], each in 0 .. len - 1.

    Returns:
      leaf [n], targets [n, S] and segments [n, S], all int32.

    Raises:
      IndexError: a number is out of range.
      InputError: a shard is damaged.
    """
    indices = np.asarray(indices, np.int64)
    if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
      raise IndexError(f"sequences {indices.min()} .. {indices.max()} of a dataset of {len(self)}")
    width = 1 + 2 * self.manifest.length
    rows = np.empty((len(indices), width), np.int32)
    shards, records = indices % len(self.manifest.shards), indices // len(self.manifest.shards)
    for shard in np.unique(shards):
      chosen = np.flatnonzero(shards == shard)
      for row, content in zip(chosen, self._records(int(shard), records[chosen].tolist()), strict=True):
        if len(content) != 4 * width:
          raise InputError(f"{self._path(int(shard))}: a record of another length; {_remedy(self.directory)}")
        rows[row] = np.frombuffer(content, "<i4")
    leaf, targets, segments = np.split(rows, [1, 1 + self.manifest.length], axis=1)
    return leaf[:, 0], targets, segments

  def verify(self) -> None:
    """Reads every file and compares its checksum with the manifest's.

    Raises:
      InputError: a shard is missing or differs.
    """
    for shard in self.manifest.shards:
      self._check_size(shard)
      path = pathlib.Path(self.directory) / shard.name
      if _sha256(path) != shard.sha256:
        raise InputError(f"{path} is damaged (its sha256 is not the manifest's): {_remedy(self.directory)}")

  def _records(self, shard: int, records: list[int]) -> list[bytes]:
    with self._lock:  # a reader has one position
      try:
        if shard not in self._readers:
          reader = _open(self._path(shard))
          if reader.num_records() != self.manifest.shards[shard].records:
            raise RuntimeError("number of records")
          self._readers[shard] = reader
        return self._readers[shard].read(records)
      except (RuntimeError, IndexError, ValueError) as error:
        raise InputError(f"{self._path(shard)} is damaged: {_remedy(self.directory)}") from error

  def _check_size(self, shard: Shard) -> None:
    path = pathlib.Path(self.directory) / shard.name
    if not path.is_file():
      raise InputError(f"{path} is missing: {_remedy(self.directory)}")
    if (size := path.stat().st_size) != shard.bytes:
      raise InputError(f"{path} has {size} bytes, its manifest says {shard.bytes}: {_remedy(self.directory)}")

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


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
