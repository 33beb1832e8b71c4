"""First pipeline of `prepare`: reads every part of a source and finds the leaf of each window.

  WORK/part-00012.0000.npz   a chunk of the windows of part 12 (see `Chunk`)
  WORK/part-00012.json       what was read, the names of the chunks, and windows and tokens per leaf; written last

Most of the work of `prepare` is done here, because the windows are embedded. A part that is finished is not read again.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from absl import logging

from hiermem_jax import files
from hiermem_jax.data.corpus.embed import KnownEmbeddings
from hiermem_jax.data.corpus.reading import Counts, WindowBatch, read_part
from hiermem_jax.data.corpus.steps import cached_retriever, cached_tokenizer, part_name
from hiermem_jax.data.sources import Source

_CHUNK_TOKENS = 2**25  # a worker holds so many tokens in memory before it writes them
NO_LEAF = -1  # of every window when there is no tree


def token_dtype(num_values: int) -> type[np.integer]:
  """The smallest type used on disk that holds all numbers below `num_values`: uint16 or int32."""
  return np.uint16 if num_values <= 2**16 else np.int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
  """Windows as they are stored.

  Attributes:
    tokens: uint16 or int32 [sum of sizes], the tokens of all windows one after the other.
    sizes: int32 [n], number of tokens of each window.
    ends: bool [n], whether the window is the last of its document.
    keys: uint64 [n], see keys.py.
    leaves: int32 [n]; NO_LEAF without a tree.
  """

  tokens: np.ndarray
  sizes: np.ndarray
  ends: np.ndarray
  keys: np.ndarray
  leaves: np.ndarray

  @property
  def starts(self) -> np.ndarray:
    """Where the tokens of each window begin: int64 [n]."""
    return np.cumsum(self.sizes, dtype=np.int64) - self.sizes


class RoutePart(beam.DoFn):
  """Writes the chunks of one part; yields nothing."""

  def __init__(self, source: Source, tokenizer: str, router: "Router | None", work: str, window_tokens: int):
    """Takes paths where an object would be costly to send: each worker loads what they name.

    Args:
      source: the documents.
      tokenizer: path of the tokenizer.
      router: finds the leaves of windows; None if there is no tree.
      work: directory to write to.
      window_tokens: largest number of tokens in a window.
    """
    self._source, self._tokenizer, self._router, self._work = source, tokenizer, router, work
    self._window_tokens = window_tokens

  def summary(self, number: int) -> str:
    """Path of the file that is written when the part is finished."""
    return os.path.join(self._work, part_name(number, "json"))

  def process(self, element: tuple[int, str]) -> Iterator[None]:
    """Reads, routes and writes one part, given as (number, name)."""
    number, part = element
    tokenizer = cached_tokenizer(self._tokenizer)
    leaves_of = _no_leaves if self._router is None else self._router.of_part(number)
    dtype = token_dtype(tokenizer.vocab_size)
    counts = Counts()
    chunks: list[str] = []
    held: list[Chunk] = []
    per_leaf: dict[int, np.ndarray] = {}
    for batch in read_part(self._source, number, part, tokenizer, counts, window_tokens=self._window_tokens):
      leaves = leaves_of(batch)
      for leaf, of_leaf in _by_leaf(leaves, batch):
        per_leaf[leaf] = per_leaf.get(leaf, 0) + of_leaf
      held.append(
        Chunk(tokens=batch.tokens.astype(dtype), sizes=batch.sizes, ends=batch.ends, keys=batch.keys, leaves=leaves)
      )
      if sum(len(c.tokens) for c in held) >= _CHUNK_TOKENS:
        chunks.append(self._write(number, len(chunks), held))
        held = []
      logging.log_every_n_seconds(
        logging.INFO, "%s: %d documents, %d tokens", 10, part, counts.documents, counts.tokens
      )
    if held:
      chunks.append(self._write(number, len(chunks), held))
    totals = [[leaf, *map(int, of_leaf)] for leaf, of_leaf in sorted(per_leaf.items())]
    files.write_json(self.summary(number), {"counts": dataclasses.asdict(counts), "chunks": chunks, "leaves": totals})
    yield from ()

  def _write(self, number: int, chunk: int, held: Sequence[Chunk]) -> str:
    """Writes one chunk file and returns its name."""
    name = part_name(number, f"{chunk:04d}.npz")
    arrays = {f.name: np.concatenate([getattr(c, f.name) for c in held]) for f in dataclasses.fields(Chunk)}
    files.write_arrays(os.path.join(self._work, name), **arrays)
    return name


@dataclasses.dataclass(frozen=True)
class Router:
  """Finds the leaves of windows.

  Attributes:
    tree: directory of the tree and its encoder.
    inputs: what the embeddings are a function of; those stored in the directory are used if theirs are the same (see
      `KnownEmbeddings`).
  """

  tree: str
  inputs: dict[str, Any]

  def of_part(self, number: int) -> Callable[[WindowBatch], np.ndarray]:
    """A function from windows of one part to their leaves, int32 [n]."""
    retriever = cached_retriever(self.tree)
    known = KnownEmbeddings(self.tree, number, self.inputs)
    return lambda batch: retriever.tree.assign(known.embed(batch.keys, batch.texts, retriever.encoder))


def _no_leaves(batch: WindowBatch) -> np.ndarray:
  return np.full(len(batch.keys), NO_LEAF, np.int32)


def _by_leaf(leaves: np.ndarray, batch: WindowBatch) -> Iterator[tuple[int, np.ndarray]]:
  """Number of windows and of tokens (end-of-text tokens included) of each leaf: (leaf, int64 [2])."""
  present, inverse = np.unique(leaves, return_inverse=True)
  windows = np.bincount(inverse)
  tokens = np.bincount(inverse, batch.sizes + batch.ends).astype(np.int64)
  yield from ((int(leaf), np.array(pair)) for leaf, *pair in zip(present, windows, tokens))
