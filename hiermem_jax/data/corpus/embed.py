"""Embeds the windows of a corpus and keeps the embeddings, so that `prepare` need not compute those of `cluster` again.

  DIRECTORY/inputs.json         what the embeddings are a function of
  DIRECTORY/part-00012.npz      keys uint64 [n] and embeddings float32 [n, E] of the windows of part 12
  DIRECTORY/part-00012.json     what was read (see `Counts`); written last

DIRECTORY is TREE/embeddings, where TREE is the directory of the tree and its encoder.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from absl import logging

from hiermem_jax import files
from hiermem_jax.data.corpus.config import ReadConfig
from hiermem_jax.data.corpus.reading import Counts, read_part
from hiermem_jax.data.corpus.steps import cached_encoder, cached_tokenizer, part_name, source_repr
from hiermem_jax.data.sources import Source
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.retrieval.encoders import Encoder


def embedding_inputs(
  source: Source, tokenizer: Tokenizer, encoder_fingerprint: str, read: ReadConfig
) -> dict[str, Any]:
  """What decides the windows of a corpus, their keys and their embeddings, apart from the list of parts."""
  return {
    "source": source_repr(source),
    "tokenizer": tokenizer.fingerprint,
    "encoder": encoder_fingerprint,
    **read.identity(),
  }


def parts_fingerprint(parts: Sequence[str]) -> str:
  """First 16 hex digits of a sha256 over the names of a source's parts."""
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class EmbedPart(beam.DoFn):
  """Writes keys and embeddings of the windows of one part; yields nothing."""

  def __init__(self, source: Source, tokenizer: str, tree: str, read: ReadConfig, sample: float):
    """Takes paths where an object would be costly to send: each worker loads what they name.

    Args:
      source: the documents.
      tokenizer: path of the tokenizer.
      tree: directory with the encoder; the embeddings go to `tree/embeddings`.
      read: how documents are read.
      sample: share of the documents to embed.
    """
    self._source, self._tokenizer, self._tree = source, tokenizer, tree
    self._read, self._sample = read, sample

  def path(self, number: int, kind: str) -> str:
    """Path of a file of one part."""
    return os.path.join(self._tree, "embeddings", part_name(number, kind))

  def done(self, number: int) -> bool:
    """Whether the part has been embedded."""
    return files.as_path(self.path(number, "json")).exists()

  def process(self, element: tuple[int, str]) -> Iterator[None]:
    """Embeds one part, given as (number, name)."""
    number, part = element
    encoder = cached_encoder(os.path.join(self._tree, "encoder"))
    tokenizer = cached_tokenizer(self._tokenizer)
    counts = Counts()
    keys, embeddings = [np.zeros(0, np.uint64)], [np.zeros((0, encoder.dim), np.float32)]
    batches = read_part(
      self._source, number, part, tokenizer, counts, window_tokens=self._read.window_tokens, sample=self._sample
    )
    for batch in batches:
      keys.append(batch.keys)
      embeddings.append(encoder.encode(batch.texts))
      logging.log_every_n_seconds(logging.INFO, "%s: %d windows embedded", 10, part, counts.windows)
    files.write_arrays(self.path(number, "npz"), keys=np.concatenate(keys), embeddings=np.concatenate(embeddings))
    files.write_json(self.path(number, "json"), dataclasses.asdict(counts))
    yield from ()


class KnownEmbeddings:
  """The stored embeddings of the windows of one part."""

  def __init__(self, tree: str, number: int, inputs: dict[str, Any]):
    """Opens the embeddings of part `number` below the directory of a tree.

    There are none if the part was not embedded, or if its embeddings were made of other `inputs` (`embedding_inputs`,
    and the fingerprint of the parts under "parts").
    """
    self._keys, self._embeddings = np.zeros(0, np.uint64), np.zeros((0, 0), np.float32)
    folder = files.as_path(tree) / "embeddings"
    held = files.read_json(folder / "inputs.json") if (folder / "inputs.json").exists() else {}
    if all(held.get(name) == value for name, value in inputs.items()):
      path = folder / part_name(number, "npz")
      if path.exists() and (folder / part_name(number, "json")).exists():
        arrays = files.read_arrays(path)
        order = np.argsort(arrays["keys"])
        self._keys, self._embeddings = arrays["keys"][order], arrays["embeddings"][order]

  def __len__(self) -> int:
    return len(self._keys)

  def embed(self, keys: np.ndarray, texts: Sequence[str], encoder: Encoder) -> np.ndarray:
    """Embeddings of windows, float32 [n, E]: the stored ones, and computed ones for windows that have none stored.

    Args:
      keys: uint64 [n], of the windows.
      texts: of the windows.
      encoder: computes the embeddings that are not stored.
    """
    known = np.isin(keys, self._keys)
    result = np.empty((len(keys), encoder.dim), np.float32)
    if known.any():
      result[known] = self._embeddings[np.searchsorted(self._keys, keys[known])]
    if not known.all():
      result[~known] = encoder.encode([text for text, there in zip(texts, known) if not there])
    return result
