"""Second half of `prepare`: the windows of all parts to packed sequences in shards.

Windows are grouped by leaf, put into the order of a hash of their keys, and packed; sequences are put into the order of
a hash of theirs, which is the global shuffle: a shard is a range of the hashes. A group that is large is packed in
pieces, chosen by another hash, so that no worker holds more than a bounded number of tokens.

  WORK/DATASET.0003.json   what shard 3 holds; written after the shard
  WORK/dropped.json        tokens that were left out, by reason
"""

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from hiermem_jax import files
from hiermem_jax.data.corpus.keys import mix, slot
from hiermem_jax.data.corpus.route import Chunk
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.packed.decomposition import decompose
from hiermem_jax.data.packed.format import encode_record, write_shard
from hiermem_jax.data.packed.packing import pack, pack_tails

PIECE_TOKENS = 2**24  # about what a worker packs at once

# Salts of the hashes, so that the orders they give have nothing to do with one another.
_ORDER, _PIECE, _GROUP, _MIXED, _RUN, _DEAL = range(1, 7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackJob:
  """Everything that decides the sequences of a dataset, apart from the windows.

  Attributes:
    work: directory of the chunks, and of what is noted here.
    directories: length of the sequences -> directory of the packed dataset. Several lengths mean dataset decomposition.
    eot_id: token that ends a document.
    dtype: of the records, "uint16" or "int32".
    tails: what becomes of a leaf's last, incomplete sequence: "pad", "drop" or "mix" (see packing.py). With several
      lengths, "drop" leaves out what of a document is shorter than the shortest, "pad" packs it.
    branching: of the tree; 1 without one.
    num_shards: files of each dataset.
    pieces: leaf -> number of pieces that it is packed in, where that is not 1.
    dealt: for the trap control: leaves [n] and the running sum of their windows [n], by which windows are dealt
      leaves at random; None for their own.
    seed: of all orders.
  """

  work: str
  directories: Mapping[int, str]
  eot_id: int
  dtype: str
  tails: str
  branching: int
  num_shards: int
  pieces: Mapping[int, int]
  dealt: tuple[np.ndarray, np.ndarray] | None
  seed: int

  def shard_path(self, length: int, shard: int) -> str:
    """Where a shard goes."""
    return os.path.join(self.directories[length], f"shard-{shard:05d}.array_record")

  def summary_path(self, length: int, shard: int) -> str:
    """The file that says that a shard is done."""
    return os.path.join(self.work, f"{length}.{shard:05d}.json")

  @property
  def dropped_path(self) -> str:
    """The file with the tokens that were left out."""
    return os.path.join(self.work, "dropped.json")

  def mix(self, values: np.ndarray | int, salt: int) -> np.ndarray:
    """Hashes for one purpose."""
    return mix(mix(values, self.seed), salt)


def pack_corpus(job: PackJob, chunks: Sequence[str], runner: BeamConfig) -> None:
  """Packs the chunks and writes those shards that are not there yet."""
  shortest = min(job.directories)
  done = frozenset(
    (length, shard)
    for length in job.directories
    for shard in range(job.num_shards)
    if files.as_path(job.summary_path(length, shard)).exists()
  )

  def build(pipeline):
    windows = pipeline | beam.Create(list(chunks)) | beam.Reshuffle()
    if len(job.directories) > 1:
      read = windows | "cut" >> beam.FlatMap(_cut_documents, job).with_outputs("groups", "dropped", main="sequences")
      groups, whole, dropped = read.groups, [read.sequences], [read.dropped]
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

  runner.run(build, num_units=len(chunks))


def _group_windows(path: str, job: PackJob) -> Iterator[tuple[Any, Any]]:
  """Windows of one chunk by leaf and piece: ((leaf, piece), (order [n], sizes [n], ends [n], tokens))."""
  chunk = _read_chunk(path, job)
  starts = np.cumsum(chunk.sizes) - chunk.sizes
  pieces = slot(job.mix(chunk.keys, _PIECE), np.array([job.pieces.get(int(leaf), 1) for leaf in chunk.leaves]))
  order = np.lexsort((pieces, chunk.leaves))
  borders = np.flatnonzero(np.diff(chunk.leaves[order]) | np.diff(pieces[order])) + 1
  hashes = job.mix(chunk.keys, _ORDER)
  for rows in np.split(order, borders):
    tokens = np.concatenate([chunk.tokens[starts[i] : starts[i] + chunk.sizes[i]] for i in rows])
    group = (int(chunk.leaves[rows[0]]), int(pieces[rows[0]]))
    yield group, (hashes[rows], chunk.sizes[rows], chunk.ends[rows], tokens)


def _cut_documents(path: str, job: PackJob) -> Iterator[Any]:
  """Documents of one chunk cut into runs (dataset decomposition): sequences, and groups of what is left over."""
  chunk = _read_chunk(path, job)
  lengths = tuple(sorted(job.directories))
  starts = np.cumsum(chunk.sizes) - chunk.sizes
  hashes = job.mix(chunk.keys, _ORDER)
  pieces = slot(job.mix(chunk.keys, _PIECE), np.array([job.pieces.get(int(leaf), 1) for leaf in chunk.leaves]))
  for i, start in enumerate(starts):
    tokens = np.append(chunk.tokens[start : start + chunk.sizes[i]], chunk.tokens.dtype.type(job.eot_id))
    runs, left = decompose(len(tokens), lengths)
    for at, length in runs:
      yield _sequence(job, length, int(job.mix(int(hashes[i]) + at & (2**64 - 1), _RUN)), int(chunk.leaves[i]),
                      tokens[at : at + length], np.ones(length, np.int32))  # fmt: skip
    rest = tokens[left:]
    if len(rest) and job.tails == "drop":
      yield beam.pvalue.TaggedOutput("dropped", ("short", len(rest)))
    elif len(rest):
      # Its end-of-text token comes back when it is packed.
      sizes = np.array([len(rest) - 1], np.int32)
      group = (int(chunk.leaves[i]), int(pieces[i]))
      yield beam.pvalue.TaggedOutput("groups", (group, (hashes[i : i + 1], sizes, np.array([True]), rest[:-1])))


def _pack_group(group: tuple[tuple[int, int], Iterable[Any]], job: PackJob, length: int) -> Iterator[Any]:
  """Sequences of one leaf, or of a piece of it; its tail as the job says."""
  (leaf, piece), parts = group
  parts = list(parts)
  hashes, sizes, ends = (np.concatenate([part[i] for part in parts]) for i in range(3))
  tokens = np.concatenate([part[3] for part in parts])
  starts = np.cumsum(sizes, dtype=np.int64) - sizes
  order = np.argsort(hashes)
  windows = [tokens[starts[i] : starts[i] + sizes[i]] for i in order]
  targets, segments = pack(windows, ends[order], length=length, eot_id=job.eot_id)
  incomplete = segments[-1, -1] == 0
  if incomplete and job.tails != "pad":
    size = int(np.count_nonzero(segments[-1]))
    if job.tails == "drop":
      yield beam.pvalue.TaggedOutput("dropped", ("tails", size))
    else:
      tail = (leaf, piece, targets[-1, :size].astype(job.dtype), segments[-1, :size])
      yield beam.pvalue.TaggedOutput("tails", (leaf // job.branching, tail))
    targets, segments = targets[:-1], segments[:-1]
  base = int(job.mix((leaf + 1 << 24) + piece, _GROUP))
  for i, (target, segment) in enumerate(zip(targets, segments)):
    yield _sequence(job, length, int(job.mix(base + i & (2**64 - 1), _RUN)), leaf, target, segment)


def _pack_tails(group: tuple[int, Iterable[Any]], job: PackJob, length: int) -> Iterator[tuple[Any, Any]]:
  """Sequences of the tails of one parent's children."""
  parent, tails = group
  tails = [(leaf, targets, segments) for leaf, _, targets, segments in sorted(tails, key=lambda tail: tail[:2])]
  leaves, targets, segments = pack_tails(tails, length=length)
  base = int(job.mix(parent + 1, _MIXED))
  for i, (leaf, target, segment) in enumerate(zip(leaves, targets, segments)):
    yield _sequence(job, length, int(job.mix(base + i & (2**64 - 1), _RUN)), int(leaf), target, segment)


def _sequence(
  job: PackJob, length: int, order: int, leaf: int, targets: np.ndarray, segments: np.ndarray
) -> tuple[tuple[int, int], tuple[int, bytes]]:
  """A sequence on its way to its shard: ((length, shard), (order, record))."""
  return (length, int(slot(order, job.num_shards))), (order, encode_record(leaf, targets, segments, job.dtype))


def _write_shard(shard: tuple[tuple[int, int], Iterable[tuple[int, bytes]]], job: PackJob) -> None:
  """Writes one shard and what it holds."""
  (length, number), sequences = shard
  records = [record for _, record in sorted(sequences)]
  written = write_shard(job.shard_path(length, number), records)
  width = np.dtype(job.dtype).itemsize
  leaves = collections.Counter(int.from_bytes(record[:4], "little", signed=True) for record in records)
  tokens = sum(int(np.count_nonzero(np.frombuffer(record, job.dtype, offset=4 + length * width))) for record in records)
  summary = {"shard": dataclasses.asdict(written), "tokens": tokens, "leaves": sorted(leaves.items())}
  files.write_json(job.summary_path(length, number), summary)


def _read_chunk(path: str, job: PackJob) -> Chunk:
  chunk = Chunk(**files.read_arrays(os.path.join(job.work, path)))
  if job.dealt is None:
    return chunk
  leaves, stops = job.dealt
  drawn = slot(job.mix(chunk.keys, _DEAL), int(stops[-1]))
  return dataclasses.replace(chunk, leaves=leaves[np.searchsorted(stops, drawn, side="right")].astype(np.int32))
