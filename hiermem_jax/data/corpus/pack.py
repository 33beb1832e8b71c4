"""Second pipeline of `prepare`: packs the windows of all parts into sequences and writes the shards.

1. Windows are grouped by leaf. A leaf with many windows is cut into pieces at random, so that no worker holds more than
   about `PIECE_TOKENS` tokens.
2. The windows of a group are put into a random order and packed into sequences (see packed/packing.py).
3. All sequences are shuffled: each has a hash, which decides its shard and its place within the shard.

Every random order is the order of a hash (see keys.py).

  WORK/LENGTH.00003.json   what shard 3 of the sequences of that length holds; written after the shard
  WORK/dropped.json        number of tokens that were left out, by reason
"""

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from hiermem_jax import files
from hiermem_jax.data.corpus.config import PackConfig
from hiermem_jax.data.corpus.keys import mix, partition
from hiermem_jax.data.corpus.route import Chunk
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.packed.decomposition import decompose
from hiermem_jax.data.packed.format import encode_record, write_shard
from hiermem_jax.data.packed.packing import pack, pack_tails

PIECE_TOKENS = 2**24

# One hash function for each purpose, so that the orders have nothing to do with one another.
_ORDER, _PIECE, _GROUP, _MIXED, _SEQUENCE, _RANDOM_LEAF = range(1, 7)
_MASK = 2**64 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackJob:
  """Everything that decides the sequences of a dataset, apart from the windows.

  Attributes:
    work: directory of the chunks and of this pipeline's notes.
    directories: length of the sequences -> directory of their packed dataset.
    config: see `PackConfig`.
    eot_id: token that ends a document.
    dtype: of the records, "uint16" or "int32".
    branching: of the tree; 1 without one.
    pieces: leaf -> number of pieces that the leaf is cut into, where that is not 1.
    random_leaves: for `shuffle_leaves`: leaves int [n] and the running sum of their numbers of windows int [n]. A
      window's leaf is drawn with a probability proportional to the leaf's number of windows. None otherwise.
  """

  work: str
  directories: Mapping[int, str]
  config: PackConfig
  eot_id: int
  dtype: str
  branching: int
  pieces: Mapping[int, int]
  random_leaves: tuple[np.ndarray, np.ndarray] | None

  def shard_path(self, length: int, shard: int) -> str:
    """Path of a shard."""
    return os.path.join(self.directories[length], f"shard-{shard:05d}.array_record")

  def summary_path(self, length: int, shard: int) -> str:
    """Path of the file that is written when a shard is finished."""
    return os.path.join(self.work, f"{length}.{shard:05d}.json")

  @property
  def dropped_path(self) -> str:
    """Path of the file with the number of tokens that were left out."""
    return os.path.join(self.work, "dropped.json")

  def mix(self, values: np.ndarray | int, purpose: int) -> np.ndarray:
    """Hashes of numbers for one purpose: uint64 [...]."""
    return mix(mix(values, self.config.seed), purpose)

  def piece(self, chunk: Chunk) -> np.ndarray:
    """The piece of its leaf that each window belongs to: int64 [n]."""
    return partition(self.mix(chunk.keys, _PIECE), np.array([self.pieces.get(int(leaf), 1) for leaf in chunk.leaves]))

  def sequence_hash(self, base: int, number: int) -> int:
    """Hash of sequence `number` of a group, whose own hash is `base`."""
    return int(self.mix(base + number & _MASK, _SEQUENCE))

  def record(
    self, length: int, order: int, leaf: int, targets: np.ndarray, segments: np.ndarray
  ) -> tuple[tuple[int, int], tuple[int, bytes]]:
    """A sequence with its destination: ((length, shard), (order within the shard, record))."""
    shard = int(partition(order, self.config.num_shards))
    return (length, shard), (order, encode_record(leaf, targets, segments, self.dtype))


def pack_corpus(job: PackJob, chunks: Sequence[str], beam_config: BeamConfig) -> None:
  """Packs the windows of the chunks and writes the shards that are not there yet."""
  shortest = min(job.directories)
  done = frozenset(
    (length, shard)
    for length in job.directories
    for shard in range(job.config.num_shards)
    if files.as_path(job.summary_path(length, shard)).exists()
  )

  def build(pipeline):
    windows = pipeline | beam.Create(list(chunks)) | beam.Reshuffle()
    if job.config.buckets:
      cut = windows | "cut" >> beam.FlatMap(_cut_documents, job).with_outputs("groups", "dropped", main="sequences")
      groups, whole, dropped = cut.groups, [cut.sequences], [cut.dropped]
    else:
      groups, whole, dropped = windows | "group" >> beam.FlatMap(_group_windows, job), [], []
    packed = (
      groups
      | "by leaf" >> beam.GroupByKey()
      | "pack" >> beam.FlatMap(_pack_group, job, shortest).with_outputs("tails", "dropped", main="sequences")
    )
    mixed = packed.tails | "by parent" >> beam.GroupByKey() | "mix" >> beam.FlatMap(_pack_tails, job, shortest)
    (
      (*whole, packed.sequences, mixed)
      | "all" >> beam.Flatten()
      | "missing" >> beam.Filter(lambda item: item[0] not in done)
      | "by shard" >> beam.GroupByKey()
      | "write" >> beam.Map(_write_shard, job)
    )
    (
      (*dropped, packed.dropped)
      | "all dropped" >> beam.Flatten()
      | "dropped" >> beam.CombinePerKey(sum)
      | beam.combiners.ToDict()
      | "note" >> beam.Map(lambda dropped: files.write_json(job.dropped_path, dropped))
    )

  beam_config.run(build, num_units=len(chunks))


def _group_windows(path: str, job: PackJob) -> Iterator[tuple[Any, Any]]:
  """Windows of one chunk by leaf and piece: ((leaf, piece), (hashes [n], sizes [n], ends [n], tokens))."""
  chunk = _read_chunk(path, job)
  starts, pieces, hashes = chunk.starts, job.piece(chunk), job.mix(chunk.keys, _ORDER)
  order = np.lexsort((pieces, chunk.leaves))
  borders = np.flatnonzero(np.diff(chunk.leaves[order]) | np.diff(pieces[order])) + 1
  for members in np.split(order, borders):
    tokens = np.concatenate([chunk.tokens[starts[i] : starts[i] + chunk.sizes[i]] for i in members])
    group = (int(chunk.leaves[members[0]]), int(pieces[members[0]]))
    yield group, (hashes[members], chunk.sizes[members], chunk.ends[members], tokens)


def _cut_documents(path: str, job: PackJob) -> Iterator[Any]:
  """Documents of one chunk cut into runs (dataset decomposition): sequences, and groups of the tokens left over."""
  chunk = _read_chunk(path, job)
  starts, pieces, hashes = chunk.starts, job.piece(chunk), job.mix(chunk.keys, _ORDER)
  for i, start in enumerate(starts):
    leaf = int(chunk.leaves[i])
    tokens = np.append(chunk.tokens[start : start + chunk.sizes[i]], chunk.tokens.dtype.type(job.eot_id))
    runs, left = decompose(len(tokens), job.config.buckets)
    for at, length in runs:
      order = job.sequence_hash(int(hashes[i]), at)
      yield job.record(length, order, leaf, tokens[at : at + length], np.ones(length, np.int32))
    rest = tokens[left:]
    if len(rest) and job.config.tails == "drop":
      yield beam.pvalue.TaggedOutput("dropped", ("short", len(rest)))
    elif len(rest):
      # `_pack_group` appends the end-of-text token again.
      sizes = np.array([len(rest) - 1], np.int32)
      group = (leaf, int(pieces[i]))
      yield beam.pvalue.TaggedOutput("groups", (group, (hashes[i : i + 1], sizes, np.array([True]), rest[:-1])))


def _pack_group(group: tuple[tuple[int, int], Iterable[Any]], job: PackJob, length: int) -> Iterator[Any]:
  """Sequences of one leaf or of a piece of it. Its incomplete last sequence is padded, dropped or passed on."""
  (leaf, piece), parts = group
  parts = list(parts)
  hashes, sizes, ends = (np.concatenate([part[i] for part in parts]) for i in range(3))
  tokens = np.concatenate([part[3] for part in parts])
  starts = np.cumsum(sizes, dtype=np.int64) - sizes
  order = np.argsort(hashes)
  windows = [tokens[starts[i] : starts[i] + sizes[i]] for i in order]
  targets, segments = pack(windows, ends[order], length=length, eot_id=job.eot_id)
  incomplete = segments[-1, -1] == 0
  if incomplete and job.config.tails != "pad":
    size = int(np.count_nonzero(segments[-1]))
    if job.config.tails == "drop":
      yield beam.pvalue.TaggedOutput("dropped", ("tails", size))
    else:
      tail = (leaf, piece, targets[-1, :size].astype(job.dtype), segments[-1, :size])
      yield beam.pvalue.TaggedOutput("tails", (leaf // job.branching, tail))
    targets, segments = targets[:-1], segments[:-1]
  base = int(job.mix((leaf + 1 << 24) + piece, _GROUP))
  for i, (target, segment) in enumerate(zip(targets, segments)):
    yield job.record(length, job.sequence_hash(base, i), leaf, target, segment)


def _pack_tails(group: tuple[int, Iterable[Any]], job: PackJob, length: int) -> Iterator[tuple[Any, Any]]:
  """Sequences of the incomplete last sequences of one parent's leaves."""
  parent, tails = group
  tails = [(leaf, targets, segments) for leaf, _, targets, segments in sorted(tails, key=lambda tail: tail[:2])]
  leaves, targets, segments = pack_tails(tails, length=length)
  base = int(job.mix(parent + 1, _MIXED))
  for i, (leaf, target, segment) in enumerate(zip(leaves, targets, segments)):
    yield job.record(length, job.sequence_hash(base, i), int(leaf), target, segment)


def _write_shard(shard: tuple[tuple[int, int], Iterable[tuple[int, bytes]]], job: PackJob) -> None:
  """Writes one shard, then the summary of what it holds."""
  (length, number), sequences = shard
  records = [record for _, record in sorted(sequences)]
  written = write_shard(job.shard_path(length, number), records)
  width = np.dtype(job.dtype).itemsize
  leaves = collections.Counter(int.from_bytes(record[:4], "little", signed=True) for record in records)
  tokens = sum(int(np.count_nonzero(np.frombuffer(record, job.dtype, offset=4 + length * width))) for record in records)
  summary = {"shard": dataclasses.asdict(written), "tokens": tokens, "leaves": sorted(leaves.items())}
  files.write_json(job.summary_path(length, number), summary)


def _read_chunk(path: str, job: PackJob) -> Chunk:
  """A chunk, with random leaves where the job asks for them."""
  chunk = Chunk(**files.read_arrays(os.path.join(job.work, path)))
  if job.random_leaves is None:
    return chunk
  leaves, stops = job.random_leaves
  drawn = partition(job.mix(chunk.keys, _RANDOM_LEAF), int(stops[-1]))
  return dataclasses.replace(chunk, leaves=leaves[np.searchsorted(stops, drawn, side="right")].astype(np.int32))
