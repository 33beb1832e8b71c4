"""Dataset decomposition: documents cut into runs of power-of-two lengths (Pouransari et al., arXiv 2405.13226).

The anchors of the paper are pretrained on it (Appendix A.1). A document is cut by the binary expansion of its length.
For example, with lengths 2^8 to 2^13, a document of 1,309 tokens (end-of-text token included) gives

  1309 = 1024 + 256 + 29      a run of 1024, a run of 256, and a rest of 29 tokens

So every sequence is text of one document without padding, and long documents are trained on in long sequences. The rest
is shorter than the shortest run. It is left out with PackConfig.tails = 'drop', as in the authors' code (which, unlike
ours, also cuts documents longer than two of the longest runs at random positions). With 'pad', the rests of several
documents are packed into sequences of the shortest length.

On disk there is a packed dataset for each length, and a file that makes them one dataset:

  decomposition.json   the lengths; written last
  256/ 512/ ... 8192/  packed datasets, whose leaves are -1

All sequences of a step have the same length, and their number is such that every step has the same number of tokens. An
epoch is a number of cycles; each cycle has an equal share of the batches of every length. Within a cycle short lengths
tend to come first: the length of a step is drawn among those with batches left in the cycle, with a probability
proportional to the number of its batches in the cycle times its odds. The odds halve from one length to the next,
32:16:8:4:2:1 ("Grow-P2" in the authors' code).
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
  """Cuts a document into runs, the longest first.

  Args:
    num_tokens: length of the document.
    lengths: possible lengths of a run, ascending, each twice the one before.

  Returns:
    (start, length) of each run, and the position where the rest begins, which is shorter than any run.
  """
  runs, start = [], 0
  for length in reversed(lengths):
    while num_tokens - start >= length:
      runs.append((start, length))
      start += length
  return runs, start


class DecomposedDataset:
  """Packed datasets of several lengths, as one; its length is the number of all sequences.

  Attributes:
    directory: of the dataset.
    buckets: length -> packed dataset, in ascending order.
  """

  def __init__(self, directory: str):
    """Opens the packed datasets.

    Raises:
      InputError: the directory or one of the packed datasets is missing or damaged.
    """
    self.directory = str(directory)
    path = files.as_path(directory) / _FILE
    try:
      lengths = json.loads(files.patiently(path.read_text))["lengths"]
    except OSError as error:
      if files.may_pass(error):
        raise files.unreadable(path, error) from error
      reason = error.strerror or "not readable"
      raise InputError(f"{path}: {reason}; give the directory that the prepare verb wrote") from error
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(f"{path} is damaged: delete {directory} and run prepare again") from error
    self.buckets = {length: PackedDataset(os.path.join(directory, str(length))) for length in lengths}

  def __len__(self) -> int:
    return sum(map(len, self.buckets.values()))

  @property
  def manifest(self) -> Manifest:
    """The manifest of the shortest length. Manifests of other lengths differ in the length and in counts only."""
    return next(iter(self.buckets.values())).manifest

  def verify(self) -> None:
    """Reads every shard and compares its checksum with the manifest's.

    Raises:
      InputError: a shard is missing or damaged.
    """
    for bucket in self.buckets.values():
      bucket.verify()


def is_decomposed(directory: str) -> bool:
  """Whether the directory holds a finished decomposed dataset. Its files are not checked."""
  return (files.as_path(directory) / _FILE).exists()


def open_dataset(directory: str) -> PackedDataset | DecomposedDataset:
  """Opens a dataset that `prepare` wrote, of one length or of several.

  Raises:
    InputError: the dataset is missing, unfinished or damaged.
  """
  return DecomposedDataset(directory) if is_decomposed(directory) else PackedDataset(directory)


def write_decomposition(
  directory: str, lengths: Sequence[int], input_tokens: int, dropped_tokens: dict[str, int]
) -> None:
  """Writes the file that makes the packed datasets of these lengths one dataset; see `Manifest` for the numbers."""
  content = {"lengths": list(lengths), "input_tokens": input_tokens, "dropped_tokens": dropped_tokens}
  files.write_json(os.path.join(directory, _FILE), content)


class DecomposedBatches:
  """An endless stream of batches of several lengths. The batch of a step is computed from the step number alone.

  The module's docstring says how lengths are drawn. A batch has tokens_per_batch // length sequences. An epoch uses
  whole batches only, so a few sequences of each length are left out of it; the next epoch has another order and leaves
  out others. Each process holds 8 bytes per sequence (the orders of two epochs) and 5 bytes per step in memory.
  """

  def __init__(
    self,
    dataset: DecomposedDataset,
    *,
    tokens_per_batch: int,
    seed: int,
    positions: Callable[[int], np.ndarray] = np.arange,
    cycles: int = 8,
  ):
    """Sets up the stream; nothing is read yet.

    Args:
      dataset: where sequences are read from.
      tokens_per_batch: number of tokens in a global batch; a multiple of the longest length.
      seed: of the orders and of the lengths, non-negative.
      positions: number of sequences in a global batch -> the positions in it that this process reads, integer [b]; all
        by default.
      cycles: number of cycles in an epoch (8 in the authors' code).

    Raises:
      InputError: the tokens of a batch are no multiple of the longest length, or no length has enough sequences for one
        batch.
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
    # In the order of the smallest size, so that an error about sizes that cannot be split names that one.
    self._positions = [positions(size) for size in reversed(self._sizes)][::-1]
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
    """Length of the sequences of a step, and the numbers of this process's part of them, int64 [b]."""
    epoch, position = divmod(step, int(self._batches.sum()))
    buckets, ranks = self._schedule(epoch)
    bucket = int(buckets[position])
    first = int(ranks[position]) * self._sizes[bucket]
    return self._lengths[bucket], self._order(epoch, bucket)[first + self._positions[bucket]].astype(np.int64)

  def origin(self, step: int) -> dict[str, Any]:
    """Dataset and numbers of the sequences of this process's part of the batch of a step, for JSON."""
    length, indices = self.indices(step)
    return {"dataset": self.dataset.buckets[length].directory, "sequences": indices.tolist()}

  def at(self, step: int) -> dict[str, np.ndarray]:
    """This process's part of the batch of a step (see batches.py)."""
    length, indices = self.indices(step)
    dataset = self.dataset.buckets[length]
    return to_batch(*dataset.read(indices), bos_id=dataset.manifest.bos_id)

  def iterate(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yields `at(start_step)`, `at(start_step + 1)`, ... for ever; one thread reads a batch ahead."""
    return read_ahead(self.at, start_step)

  def _draw_schedule(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the lengths of the steps of an epoch.

    To draw one bucket after the other among those with batches left, with fixed weights, is the same as to run one
    Poisson process per bucket, with that weight as its rate, until it has had as many events as there are batches, and
    to take the buckets in the order of all events. So a cycle is drawn by sorting times.

    Returns:
      The number of the bucket of each step, int8 [steps], and how many earlier steps of the epoch have the same bucket,
      int32 [steps].
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
