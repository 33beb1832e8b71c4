"""Batches for training: what a batch is, and a stream of batches of which each is computed from its step number.

A batch of one sequence of leaf 7, which holds two documents, [5, 6] and [8], and padding (the
end-of-text token is 2, the begin-of-document token 0):

  targets                  [5, 6, 2, 8, 2, 0]
  segments                 [1, 1, 1, 2, 2, 0]

  decoder_target_tokens    [5, 6, 2, 8, 2, 0]   int32 [B, S]
  decoder_input_tokens     [0, 5, 6, 0, 8, 0]   int32 [B, S]  targets, shifted right within each segment
  decoder_segment_ids      [1, 1, 1, 2, 2, 0]   int32 [B, S]  0 is padding
  decoder_positions        [0, 1, 2, 0, 1, 0]   int32 [B, S]  position within the segment
  decoder_loss_weights     [1, 1, 1, 1, 1, 0]   float32 [B, S]
  memory_leaf              7                    int32 [B]

Names and values are those of SeqIO's decoder-only feature converters; `seqio_tasks.MemoryLMFeatureConverter` gives
the same.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.errors import InputError


def to_batch(leaf: np.ndarray, targets: np.ndarray, segments: np.ndarray, *, bos_id: int = 0) -> dict[str, np.ndarray]:
  """Makes a batch of packed sequences (see the module's docstring).

  Args:
    leaf: integer [B].
    targets: integer [B, S].
    segments: integer [B, S]: 1, 2, ..., and 0 for padding at the end.
    bos_id: the input at the first position of each segment.
  """
  valid = segments > 0
  previous = np.pad(segments[:, :-1], ((0, 0), (1, 0)))
  starts = segments != previous  # the first segment has id 1, so a segment starts at position 0 unless it is padding
  shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
  index = np.arange(segments.shape[1], dtype=np.int32)
  first = np.maximum.accumulate(np.where(starts, index, 0), axis=1)
  return {
    "decoder_input_tokens": np.where(valid, np.where(starts, bos_id, shifted), 0).astype(np.int32),
    "decoder_target_tokens": np.where(valid, targets, 0).astype(np.int32),
    "decoder_segment_ids": segments.astype(np.int32),
    "decoder_positions": np.where(valid, index - first, 0).astype(np.int32),
    "decoder_loss_weights": valid.astype(np.float32),
    "memory_leaf": np.asarray(leaf).astype(np.int32),
  }


class Batches:
  """An endless, shuffled stream of batches. The batch of a step is computed from the step number alone.

  The stream is a sequence of epochs. Epoch e visits every sequence once, in an order drawn from
  (seed, e). The global batch of step n holds the positions n * batch_size to (n + 1) * batch_size - 1
  of the stream. It may contain the end of one epoch and the beginning of the next, or several epochs
  if the dataset is smaller than a batch. The stream does not depend on the number of processes: each
  process reads the part of the same global batch that its devices need.

  Each process holds the orders of two epochs in memory, 8 bytes per sequence in all (4.3 GB for 2^40
  tokens in sequences of 2048). The order is that of NumPy's `Generator.shuffle`; another version of
  NumPy may draw another one.
  """

  def __init__(
    self,
    dataset: PackedDataset,
    *,
    batch_size: int,
    seed: int,
    positions: np.ndarray | None = None,
    sequences: np.ndarray | None = None,
  ):
    """Sets up the stream; nothing is read yet.

    Args:
      dataset: where sequences are read from.
      batch_size: number of sequences in a global batch.
      seed: of the orders, non-negative.
      positions: integer [b], the positions in a global batch that this process reads; all by default.
      sequences: integer [n], numbers of the sequences that the stream consists of; all of the dataset by default.

    Raises:
      InputError: the batch is empty, or there are no sequences.
    """
    if batch_size < 1:
      raise InputError(f"batch_size {batch_size}: must be positive; bind another")
    self._sequences = sequences
    self._count = len(dataset) if sequences is None else len(sequences)
    if not self._count:
      raise InputError(f"packed dataset {dataset.directory} has no such sequences: prepare a larger corpus")
    self.dataset = dataset
    self.batch_size = batch_size
    self.seed = seed
    self._positions = np.arange(batch_size) if positions is None else positions
    self._order = functools.lru_cache(maxsize=2)(self._permutation)

  def indices(self, step: int) -> np.ndarray:
    """Numbers of the sequences of this process's part of the batch of a step: int64 [b]."""
    epochs, offsets = np.divmod(step * self.batch_size + self._positions, self._count)
    indices = np.empty(len(self._positions), np.int64)
    for epoch in np.unique(epochs):
      indices[epochs == epoch] = self._order(int(epoch))[offsets[epochs == epoch]]
    return indices if self._sequences is None else self._sequences[indices].astype(np.int64)

  def origin(self, step: int) -> dict[str, Any]:
    """Dataset and numbers of the sequences of this process's part of the batch of a step, for JSON."""
    return {"dataset": self.dataset.directory, "sequences": self.indices(step).tolist()}

  def at(self, step: int) -> dict[str, np.ndarray]:
    """This process's part of the batch of a step, of b sequences (see the module's docstring)."""
    return to_batch(*self.dataset.read(self.indices(step)), bos_id=self.dataset.manifest.bos_id)

  def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yields `at(start_step)`, `at(start_step + 1)`, ... for ever; one thread reads a batch ahead."""
    return read_ahead(self.at, start_step)

  def _permutation(self, epoch: int) -> np.ndarray:
    return epoch_order(self._count, (self.seed, epoch))


def epoch_order(count: int, seed: tuple[int, ...]) -> np.ndarray:
  """A random order of the numbers from 0 to count - 1: int32 [count], or int64 if int32 is too small."""
  order = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)
  np.random.default_rng(seed).shuffle(order)
  return order


def read_ahead(at: Callable[[int], dict[str, np.ndarray]], start_step: int) -> Iterator[dict[str, np.ndarray]]:
  """Yields `at(start_step)`, `at(start_step + 1)`, ... for ever; one thread reads a batch ahead."""
  with ThreadPoolExecutor(max_workers=1) as reader:
    pending = reader.submit(at, start_step)
    for step in itertools.count(start_step + 1):
      batch = pending.result()
      pending = reader.submit(at, step)
      yield batch


def in_order(dataset: PackedDataset, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
  """Yields every sequence once, in the order of their numbers; the last batch may be smaller."""
  for start in range(0, len(dataset), batch_size):
    indices = np.arange(start, min(start + batch_size, len(dataset)))
    yield to_batch(*dataset.read(indices), bos_id=dataset.manifest.bos_id)
