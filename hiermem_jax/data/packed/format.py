"""The packed dataset on disk: ArrayRecord shards of fixed-length records, and a manifest. reading.py reads it.

  manifest.json               a `Manifest`; written last, so a directory without it is unfinished
  shard-00000.array_record    the first sequences; shards may differ in size
  shard-00000.leaves.npy      the leaves of the shard's sequences, int32 [records], a copy of what the records hold: the
                              sequences of a subtree can be found without reading all records

A record is one sequence: its leaf, int32, then S target tokens and S segment ids (0 is padding) of the manifest's
dtype, all little-endian. The paper, too, puts the leaf in front of the tokens (Appendix A.2). The leaf is int32 because
it may be larger than any token.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hiermem_jax import files

FORMAT = 2

# One record per chunk, so that a record can be read without its neighbours; light compression.
_WRITER_OPTIONS = "group_size:1,zstd:1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """One shard.

  Attributes:
    name: of the file.
    records: number of sequences in it.
    bytes: size of the file.
    sha256: checksum of the file, hexadecimal.
  """

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
    num_leaves: of the cluster tree; leaves are numbered from 0. Without a tree it is 0 and every leaf is -1, no memory.
    tokenizer_fingerprint: see `text.tokenizer.Tokenizer`.
    tree_fingerprint: see `retrieval.tree.ClusterTree`; "" without a tree.
    num_documents: documents with at least one token.
    num_windows: windows of these documents.
    num_characters: characters of these documents.
    inputs: the settings and the fingerprints of everything that the dataset was made of. Datasets with equal inputs are
      equal.
    input_tokens: number of tokens of the windows, end-of-text tokens included.
    dropped_tokens: reason -> number of these tokens that are not in the dataset.
    bad_records: kind of defect -> {"count": number of malformed records, which were skipped, "places": positions of the
      first ones}.
    num_sequences: number of records in all shards.
    num_tokens: number of positions that are not padding: input_tokens less all dropped_tokens.
    sequences_per_leaf: leaf -> number of its sequences; leaves without any are left out.
    shards: the files.

  Raises:
    ValueError: the numbers of tokens do not add up, or those of the sequences.
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
    """The JSON text of the manifest, one line per field."""
    fields = {"format": FORMAT, **dataclasses.asdict(self)}
    return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in fields.items()) + "\n}\n"

  @classmethod
  def from_json(cls, text: str) -> "Manifest":
    """The manifest that `to_json` made the text of.

    Raises:
      ValueError, TypeError, KeyError or AttributeError: the text is not of this format.
    """
    fields = json.loads(text)
    if (found := fields.pop("format")) != FORMAT:
      raise ValueError(f"format {found}")
    fields["sequences_per_leaf"] = {int(k): v for k, v in fields["sequences_per_leaf"].items()}
    fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
    return cls(**fields)


def encode_record(leaf: int, targets: np.ndarray, segments: np.ndarray, dtype: str) -> bytes:
  """The record of one sequence, whose targets and segments are integer [S]."""
  body = np.concatenate([targets, segments]).astype(np.dtype(dtype).newbyteorder("<"))
  return int(leaf).to_bytes(4, "little", signed=True) + body.tobytes()


def decode_records(records: Sequence[bytes], length: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The contents of records of sequences of S = `length` positions.

  Returns:
    leaves [n], targets [n, S] and segments [n, S], all int32.

  Raises:
    ValueError: a record has another size.
  """
  width = 2 * length
  leaves, bodies = np.empty(len(records), np.int32), np.empty((len(records), width), np.int32)
  for i, record in enumerate(records):
    leaves[i] = int.from_bytes(record[:4], "little", signed=True)
    body = np.frombuffer(record, np.dtype(dtype).newbyteorder("<"), offset=4)
    if len(body) != width:
      raise ValueError(f"a record of {len(body)} numbers for length {length}")
    bodies[i] = body
  return leaves, bodies[:, :length], bodies[:, length:]


def write_shard(path: str, records: Iterable[bytes]) -> Shard:
  """Writes one shard and the file of its leaves; the shard appears under its name last, when both are complete."""
  from array_record.python import array_record_module

  target = pathlib.Path(path)
  with files.replaced(path) as temporary:
    writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
    leaves = []
    for record in records:
      writer.write(record)
      leaves.append(int.from_bytes(record[:4], "little", signed=True))
    writer.close()
    shard = Shard(name=target.name, records=len(leaves), bytes=temporary.stat().length, sha256=sha256_of(temporary))
    with files.written(leaves_path(target)) as file:
      np.save(file, np.array(leaves, np.int32))
  return shard


def write_manifest(directory: str, manifest: Manifest) -> None:
  """Writes the manifest, which makes the shards in the directory a dataset."""
  files.write_text(os.path.join(directory, "manifest.json"), manifest.to_json())


def leaves_path(shard: pathlib.Path) -> pathlib.Path:
  """Path of the file with the leaves of a shard."""
  return shard.with_suffix(".leaves.npy")


def sha256_of(path: pathlib.Path) -> str:
  """Checksum of a file, hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
