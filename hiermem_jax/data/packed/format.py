"""The packed dataset on disk: ArrayRecord shards of fixed-length records, and a manifest.

  manifest.json               a `Manifest`; written last: a directory without it is unfinished
  shard-00000.array_record    the first sequences; shards may differ in size
  shard-00000.leaves.npy      their leaves once more, int32, so that those of a subtree are found without reading all

A record is little-endian: the leaf, int32, then S target tokens and S segment ids (0 is padding) of the manifest's
dtype. The paper, too, puts the leaf first and splits it off in the trainer (section A.2); it may exceed the vocabulary.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hiermem_jax import files
from hiermem_jax.errors import InputError

FORMAT = 2

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

  Attributes:
    length: S, positions of a sequence.
    dtype: of the tokens and segment ids in a record, "uint16" or "int32".
    vocab_size: of the tokenizer.
    eot_id: the token that ends a document.
    bos_id: the input at the beginning of a document.
    num_leaves: of the cluster tree; leaves are 0 .. num_leaves - 1. 0 without a tree: every leaf is -1, no memory.
    tokenizer_fingerprint: see `tokenizer.Tokenizer`.
    tree_fingerprint: see `retrieval.tree.ClusterTree`; "" without a tree.
    num_documents: documents with at least one token.
    num_windows: windows of these documents.
    num_characters: characters of these documents.
    inputs: what the dataset is a function of, as it was asked for: two datasets with equal inputs are equal.
    input_tokens: tokens of the windows, end-of-text tokens included.
    dropped_tokens: tokens of these that are not in the dataset, by reason.
    bad_records: kind -> {"count": malformed records that were passed over, "places": the first of them}.
    num_sequences: records.
    num_tokens: positions that are not padding, end-of-text tokens included; input_tokens less all dropped_tokens.
    sequences_per_leaf: number of sequences of each leaf that has any.
    shards: the files.

  Raises:
    ValueError: tokens do not add up, or records.
  """

  length: int
  dtype: str
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
  input_tokens: int
  dropped_tokens: dict[str, int]
  bad_records: dict[str, dict[str, Any]]
  num_sequences: int
  num_tokens: int
  sequences_per_leaf: dict[int, int]
  shards: tuple[Shard, ...]

  def __post_init__(self):
    if self.input_tokens != self.num_tokens + sum(self.dropped_tokens.values()):
      raise ValueError(f"{self.input_tokens} tokens in, {self.num_tokens} out, dropped {self.dropped_tokens}")
    records = sum(shard.records for shard in self.shards)
    if not self.num_sequences == records == sum(self.sequences_per_leaf.values()):
      raise ValueError(f"{self.num_sequences} sequences, {records} records, leaves {self.sequences_per_leaf}")

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


def encode_record(leaf: int, targets: np.ndarray, segments: np.ndarray, dtype: str) -> bytes:
  """The record of one sequence: targets and segments are integer [S]."""
  body = np.concatenate([targets, segments]).astype(np.dtype(dtype).newbyteorder("<"))
  return int(leaf).to_bytes(4, "little", signed=True) + body.tobytes()


def decode_records(records: Sequence[bytes], length: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Leaf [n], targets [n, S] and segments [n, S] of records, all int32.

  Raises:
    ValueError: a record has another size.
  """
  width = 2 * length
  leaves, rows = np.empty(len(records), np.int32), np.empty((len(records), width), np.int32)
  for i, record in enumerate(records):
    leaves[i] = int.from_bytes(record[:4], "little", signed=True)
    body = np.frombuffer(record, np.dtype(dtype).newbyteorder("<"), offset=4)
    if len(body) != width:
      raise ValueError(f"a record of {len(body)} numbers for length {length}")
    rows[i] = body
  return leaves, rows[:, :length], rows[:, length:]


def write_shard(path: str, records: Iterable[bytes]) -> Shard:
  """Writes one shard, which appears under its name when it is complete."""
  from array_record.python import array_record_module

  target = pathlib.Path(path)
  with files.replaced(path) as temporary:
    writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
    leaves = []
    for record in records:
      writer.write(record)
      leaves.append(int.from_bytes(record[:4], "little", signed=True))
    writer.close()
    shard = Shard(name=target.name, records=len(leaves), bytes=temporary.stat().length, sha256=_sha256(temporary))
    with files.written(_leaves_path(target)) as file:
      np.save(file, np.array(leaves, np.int32))
  return shard


def write_manifest(directory: str, manifest: Manifest) -> None:
  """Writes the manifest, which makes the shards in the directory a dataset."""
  files.write_text(os.path.join(directory, "manifest.json"), manifest.to_json())


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
    if path.parent.is_dir() and not path.exists():
      raise InputError(f"{path.parent}: no packed dataset, or an unfinished one; run prepare (again)")
    try:
      self.manifest = Manifest.from_json(path.read_text())
    except OSError as error:
      reason = error.strerror or "not readable"
      raise InputError(f"{path}: {reason}; give the directory that the prepare verb wrote") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise InputError(f"{path} is not a format {FORMAT} manifest: {_remedy(directory)}") from error
    self._lock = threading.Lock()
    self._readers = {}
    self._stops = np.cumsum([shard.records for shard in self.manifest.shards])
    for shard in self.manifest.shards:
      self._check_size(shard)

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
    records: list[bytes] = [b""] * len(indices)
    shards = np.searchsorted(self._stops, indices, side="right")
    for shard in np.unique(shards).tolist():
      chosen = np.flatnonzero(shards == shard)
      within = indices[chosen] - (self._stops[shard] - self.manifest.shards[shard].records)
      for row, record in zip(chosen, self._records(shard, within.tolist()), strict=True):
        records[row] = record
    try:
      return decode_records(records, self.manifest.length, self.manifest.dtype)
    except ValueError as error:
      raise InputError(f"{self.directory}: {error}; {_remedy(self.directory)}") from error

  def leaves(self) -> np.ndarray:
    """Leaf of every sequence, int32 [n].

    Raises:
      InputError: what `prepare` noted of a shard is missing or damaged.
    """
    parts = []
    for number, shard in enumerate(self.manifest.shards):
      path = _leaves_path(self._path(number))
      try:
        part = np.load(path)
      except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is missing or damaged: {_remedy(self.directory)}") from error
      if part.shape != (shard.records,):
        raise InputError(f"{path} has shape {part.shape}, the shard {shard.records} records: {_remedy(self.directory)}")
      parts.append(part)
    leaves = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    if collections.Counter(leaves.tolist()) != self.manifest.sequences_per_leaf:
      raise InputError(f"{self.directory}: its .leaves.npy files are not as in the manifest: {_remedy(self.directory)}")
    return leaves

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


def _leaves_path(shard: pathlib.Path) -> pathlib.Path:
  return shard.with_suffix(".leaves.npy")


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
