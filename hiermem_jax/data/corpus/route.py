"""First half of `prepare`: every part of a source to windows of tokens with their leaves.

  WORK/part-00012.0000.npz   a chunk of the windows of part 12
  WORK/part-00012.json       what the part held, its chunks, and windows and tokens per leaf; written last

This is the dear half (it embeds), and each part is done once: a pipeline that was killed goes on with the others.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from absl import logging

from hiermem_jax import files
from hiermem_jax.data.corpus.cluster import KnownEmbeddings
from hiermem_jax.data.corpus.reading import Counts, WindowBatch, read_part
from hiermem_jax.data.corpus.steps import cached_retriever, cached_tokenizer, part_name
from hiermem_jax.data.sources import Source

_CHUNK_TOKENS = 2**25  # held by a worker before they are written
NO_LEAF = -1  # of windows that no tree has routed


def token_dtype(num_values: int) -> type[np.integer]:
  """Smallest type of the chunks and records that holds ids below `num_values`."""
  return np.uint16 if num_values <= 2**16 else np.int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
  """Windows as they lie in a chunk file; window i has the next `sizes[i]` of `tokens`.

  Attributes:
    tokens: uint16 or int32 [sum of sizes].
    sizes: int32 [n].
    ends: bool [n]; last of its document.
    keys: uint64 [n], see keys.py.
    leaves: int32 [n]; NO_LEAF without a tree.
  """

  tokens: np.ndarray
  sizes: np.ndarray
  ends: np.ndarray
  keys: np.ndarray
  leaves: np.ndarray


class RoutePart(beam.DoFn):
  """Writes the chunks of one part, and yields nothing."""

  def __init__(self, source: Source, tokenizer: str, router: "Router | None", work: str, window_tokens: int):
    """Takes places rather than things: workers load them.

    Args:
      source: documents.
      tokenizer: its file.
      router: gives windows their leaves; None leaves them without.
      work: where to write.
      window_tokens: greatest size of a window.
    """
    self._source, self._tokenizer, self._router, self._work = source, tokenizer, router, work
    self._window_tokens = window_tokens

  def summary(self, number: int) -> str:
    """Path of the file that says that the part is done."""
    return os.path.join(self._work, part_name(number, "json"))

  def process(self, element: tuple[int, str]) -> Iterator[None]:
    """Reads, routes and writes one part."""
    number, part = element
    tokenizer = cached_tokenizer(self._tokenizer)
    leaves_of = _no_leaves if self._router is None else self._router.of_part(number)
    dtype = token_dtype(tokenizer.vocab_size)
    counts, chunks, held = Counts(), [], []
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
    leaves = [[leaf, *map(int, of_leaf)] for leaf, of_leaf in sorted(per_leaf.items())]
    files.write_json(self.summary(number), {"counts": dataclasses.asdict(counts), "chunks": chunks, "leaves": leaves})
    yield from ()

  def _write(self, number: int, chunk: int, held: Sequence[Chunk]) -> str:
    name = part_name(number, f"{chunk:04d}.npz")
    arrays = {f.name: np.concatenate([getattr(c, f.name) for c in held]) for f in dataclasses.fields(Chunk)}
    files.write_arrays(os.path.join(self._work, name), **arrays)
    return name


@dataclasses.dataclass(frozen=True)
class Router:
  """Gives windows their leaves.

  Attributes:
    tree: directory of the tree and its encoder.
    inputs: see `embedding_inputs`; embeddings in that directory are used where they were made of the same.
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
  """Windows and tokens (end-of-text included) of each leaf: (leaf, int64 [2])."""
  present, inverse = np.unique(leaves, return_inverse=True)
  windows = np.bincount(inverse)
  tokens = np.bincount(inverse, batch.sizes + batch.ends).astype(np.int64)
  yield from ((int(leaf), np.array(pair)) for leaf, *pair in zip(present, windows, tokens))
