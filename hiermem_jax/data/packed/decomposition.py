"""Dataset decomposition: documents cut into runs of power-of-two lengths (Pouransari et al., arXiv 2405.13226).

The anchors of the paper are pretrained on it (section A.1). With its end-of-text token a document of 1,309 tokens
gives, by the binary expansion of its length and for lengths 2^8 .. 2^13,

  1309 = 1024 + 256 + 29      a run of 1024, a run of 256, and 29 tokens left over

so every sequence is text of one document, without padding, and the cost of attention follows the documents. What is
left over, less than the shortest run, is left out (prepare.tails = 'drop', as in the authors' code, which also cuts
what is longer than two of the longest runs at random), or packed with other left-overs into sequences of the shortest
length under the document mask (prepare.tails = 'pad').

On disk there is a packed dataset per length, and a file that makes them one:

  decomposition.json   the lengths; written last
  256/ 512/ ... 8192/  packed datasets, their leaves -1

A step trains on one length, with as many sequences as make up a constant number of tokens. Short ones come first, more
or less: an epoch is a number of cycles, in each of which every length has its share of batches, and the length of a
step is drawn among those with batches left in the cycle. Its weight is its batches in the cycle times odds that halve
from one length to the next, 32:16:8:4:2:1 ("Grow-P2"), as in the authors' code; with equal odds all lengths would last
a cycle.
"""

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hiermem_jax import files
from hiermem_jax.data.packed.batches import epoch_order, read_ahead, to_batch
from hiermem_jax.data.packed.format import Manifest
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.errors import InputError

_FILE = "decomposition.json"


def decompose(num_tokens: int, lengths: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
  """Cuts a document into runs, longest first.

  Args:
    num_tokens: of the document.
    lengths: of runs, ascending, each twice the one before.

  Returns:
    (start, length) of each run, and where the rest begins that is shorter than any.
  """
  runs, start = [], 0
  for length in reversed(lengths):
    while num_tokens - start >= length:
      runs.append((start, length))
      start += length
  return runs, start


class DecomposedDataset:
  """Packed datasets of several lengths.

  Attributes:
    directory: where they are.
    buckets: length -> packed dataset, ascending.
  """

  def __init__(self, directory: str):
    """Opens them.

    Raises:
      InputError: the directory or one of the datasets is missing or damaged.
    """
    self.directory = str(directory)
    path = files.as_path(directory) / _FILE
    try:
      lengths = json.loads(path.read_text())["lengths"]
    except OSError as error:
      reason = error.strerror or "not readable"
      raise InputError(f"{path}: {reason}; give the directory that the prepare verb wrote") from error
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(f"{path} is damaged: delete {directory} and run prepare again") from error
    self.buckets = {length: PackedDataset(os.path.join(directory, str(length))) for length in lengths}

  def __len__(self) -> int:
    return sum(map(len, self.buckets.values()))

  @property
  def manifest(self) -> Manifest:
    """Of the shortest length; what is not a count or a length is the same for all."""
    return next(iter(self.buckets.values())).manifest

  def verify(self) -> None:
    """Reads every file and compares its checksum with the manifest's.

    Raises:
      InputError: a shard is missing or differs.
    """
    for bucket in self.buckets.values():
      bucket.verify()


def is_decomposed(directory: str) -> bool:
  """Whether the directory holds a decomposed dataset, as far as can be seen from outside."""
  return (files.as_path(directory) / _FILE).exists()


def open_dataset(directory: str) -> PackedDataset | DecomposedDataset:
  """Opens what `prepare` wrote.

  Raises:
    InputError: it is missing, unfinished or damaged.
  """
  return DecomposedDataset(directory) if is_decomposed(directory) else PackedDataset(directory)


def write_decomposition(directory: str, lengths: Sequence[int], input_tokens: int, dropped_tokens: dict[str, int]):
  """Writes the file that makes the packed datasets of the lengths one."""
  content = {"lengths": list(lengths), "input_tokens": input_tokens, "dropped_tokens": dropped_tokens}
  files.write_json(os.path.join(directory, _FILE), content)


class DecomposedBatches:
  """An endless stream of batches of varying length in which step n is computed from n alone (see the module).

  A step has tokens_per_batch // length sequences of its length. What does not fill a last batch of its length sits out
  an epoch; the next one has another order. Memory on each process: the orders of two epochs, 8 bytes a sequence, and 5
  bytes a step.
  """

  def __init__(
    self,
    dataset: DecomposedDataset,
    *,
    tokens_per_batch: int,
    seed: int,
    rows: Callable[[int], np.ndarray] = np.arange,
    cycles: int = 8,
  ):
    """Sets up the stream.

    Args:
      dataset: where sequences are read from.
      tokens_per_batch: of the global batch; a multiple of the longest length.
      seed: of the shuffles and the lengths, non-negative.
      rows: from the sequences of a global batch to the positions in it that `at` gives, int64 [b]; all by default.
      cycles: of an epoch (paper's reference: 8).

    Raises:
      InputError: the longest length does not divide the tokens, or no length has a batch of sequences.
    """
    longest = max(dataset.buckets)
    if tokens_per_batch < 1 or tokens_per_batch % longest:
      raise InputError(
        f"{tokens_per_batch} tokens a batch: must be a positive multiple of {longest}, the longest sequence; bind"
        " another train.batch_size"
      )
    self.dataset = dataset
    self.seed = seed
    self._lengths = sorted(dataset.buckets)
    self._sizes = [tokens_per_batch // length for length in self._lengths]
    self._rows = [rows(size) for size in reversed(self._sizes)][::-1]  # a size that does not fit: the smallest is named
    self._batches = np.array([len(dataset.buckets[n]) // size for n, size in zip(self._lengths, self._sizes)])
    self._cycles = cycles
    if not self._batches.any():
      raise InputError(
        f"{dataset.directory}: no length has a batch of {tokens_per_batch} tokens; prepare a larger corpus or bind a"
        " smaller train.batch_size"
      )
    self._schedule = functools.lru_cache(maxsize=2)(self._draw_schedule)
    self._order = functools.lru_cache(maxsize=2 * len(self._lengths))(self._draw_order)

  def indices(self, step: int) -> tuple[int, np.ndarray]:
    """Length of a step's sequences, and the numbers of this process's part of them in their dataset, int64 [b]."""
    epoch, position = divmod(step, int(self._batches.sum()))
    buckets, ranks = self._schedule(epoch)
    bucket = int(buckets[position])
    first = int(ranks[position]) * self._sizes[bucket]
    return self._lengths[bucket], self._order(epoch, bucket)[first + self._rows[bucket]].astype(np.int64)

  def describe(self, step: int) -> dict[str, Any]:
    """Where this process's part of batch `step` comes from, for JSON."""
    length, indices = self.indices(step)
    return {"dataset": self.dataset.buckets[length].directory, "sequences": indices.tolist()}

  def at(self, step: int) -> dict[str, np.ndarray]:
    """This process's part of batch `step` (see batches.py)."""
    length, indices = self.indices(step)
    dataset = self.dataset.buckets[length]
    return to_batch(*dataset.read(indices), bos_id=dataset.manifest.bos_id)

  def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yields `at(start_step)`, `at(start_step + 1)`, ... for ever; one thread reads a batch ahead."""
    return read_ahead(self.at, start_step)

  def _draw_schedule(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every step of an epoch, the bucket, int8, and how many steps before it had the same, int32.

    A bucket drawn with fixed weights among those with batches left is the next event of independent Poisson processes
    that stop after so many events: all of a cycle is drawn by sorting times.
    """
    rng = np.random.default_rng([self.seed, epoch, len(self._lengths)])
    odds = 2.0 ** np.arange(len(self._lengths) - 1, -1, -1)
    shares = np.arange(self._cycles + 1)[:, None] * self._batches // self._cycles
    cycles = []
    for counts in np.diff(shares, axis=0):
      buckets = np.repeat(np.arange(len(counts), dtype=np.int8), counts)
      times = [np.cumsum(rng.exponential(size=count)) / (count * odd) for count, odd in zip(counts, odds)]
      cycles.append(buckets[np.argsort(np.concatenate(times), kind="stable")])
    buckets = np.concatenate(cycles)
    ranks = np.empty(len(buckets), np.int32)
    for bucket, count in enumerate(self._batches):
      ranks[buckets == bucket] = np.arange(count)
    return buckets, ranks

  def _draw_order(self, epoch: int, bucket: int) -> np.ndarray:
    length = self._lengths[bucket]
    return epoch_order(len(self.dataset.buckets[length]), (self.seed, epoch, length))
