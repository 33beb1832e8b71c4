"""Source to packed dataset: window, route, tokenize, group by leaf, pack, shuffle, write (paper, A.2).

One process, one pass over the source. Memory: the corpus's tokens twice over, as the windows and as the
packed sequences with their segment ids: 6 bytes a token for vocabularies up to 65,536, else 10.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging

from hiermem_jax.data.packed import Manifest, PackedDataset, write_packed
from hiermem_jax.data.packing import num_sequences, pack
from hiermem_jax.data.tokenizer import Tokenizer
from hiermem_jax.data.windows import windows_of
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.corpus import Retriever

_BATCH = 512  # documents tokenized and routed at once


@runtime_checkable
class RecordSource(Protocol):
  """Anything with records; its `repr` must say what it reads, for the manifest."""

  def records(self) -> Iterator[dict[str, Any]]:
    """Yields documents: dicts with the field `text`."""


def prepare(
  *,
  source: RecordSource,
  tokenizer: Tokenizer,
  retriever: Retriever,
  directory: str,
  length: int = 2048,
  window_tokens: int = 2048,
  seed: int = 0,
  num_shards: int = 8,
  shuffle_leaves: bool = False,
) -> PackedDataset:
  """Writes the packed dataset of a source, or opens it if `directory` already holds it.

  Args:
    source: documents.
    tokenizer: of the language model.
    retriever: gives each window's leaf.
    directory: where to write; new, empty, or holding the result of the same inputs.
    length: positions of a sequence.
    window_tokens: greatest size of a window.
    seed: of the order of a leaf's windows and of the sequences.
    num_shards: files to write.
    shuffle_leaves: for the trap control only. The leaves are dealt out to the windows at random: leaf sizes
      stay, but a leaf no longer says anything about its text. What fetched memories still gain on such a
      dataset does not come from retrieval.

  Raises:
    InputError: no documents, a bad record, or a directory that holds something else.
  """
  if length < 1 or num_shards < 1:
    raise InputError(f"length {length} and num_shards {num_shards} must be at least 1: correct the binding")
  inputs = {
    "source": _describe(source),
    "tokenizer": tokenizer.fingerprint,
    "tree": retriever.tree.fingerprint,
    "length": length,
    "window_tokens": window_tokens,
    "seed": seed,
    "num_shards": num_shards,
    "shuffle_leaves": shuffle_leaves,
  }
  if (pathlib.Path(directory) / "manifest.json").exists():
    return _reuse(directory, inputs)
  corpus = _read(source, tokenizer, retriever, window_tokens)
  rng = np.random.default_rng(seed)
  if shuffle_leaves:
    corpus = dataclasses.replace(corpus, leaves=rng.permutation(corpus.leaves))
  leaves, targets, segments = _pack_all(corpus, rng, length=length, eot_id=tokenizer.eot_id)
  order = rng.permutation(len(leaves))
  logging.info("writing %d sequences to %s", len(leaves), directory)
  dataset = write_packed(
    directory,
    ((int(leaves[i]), targets[i], segments[i]) for i in order),
    Manifest(
      length=length,
      vocab_size=tokenizer.vocab_size,
      eot_id=tokenizer.eot_id,
      bos_id=tokenizer.bos_id,
      num_leaves=retriever.tree.num_leaves,
      tokenizer_fingerprint=tokenizer.fingerprint,
      tree_fingerprint=retriever.tree.fingerprint,
      num_documents=corpus.num_documents,
      num_windows=len(corpus.leaves),
      num_characters=corpus.num_characters,
      inputs=inputs,
    ),
    num_shards=num_shards,
  )
  manifest = dataset.manifest
  logging.info(
    "%s: %d sequences of %d leaves, %d tokens, %.1f%% padding",
    directory,
    manifest.num_sequences,
    len(manifest.sequences_per_leaf),
    manifest.num_tokens,
    100 - 100 * manifest.num_tokens / (manifest.num_sequences * length),
  )
  return dataset


def sample_windows(
  source: RecordSource, tokenizer: Tokenizer, *, window_tokens: int = 2048, max_windows: int, seed: int = 0
) -> list[str]:
  """Texts of a uniform sample of a source's windows, to build a cluster tree on (reservoir sampling).

  Args:
    source: documents.
    tokenizer: as for `prepare`, so that windows are the same.
    window_tokens: as for `prepare`.
    max_windows: size of the sample; all windows, in order, where there are no more.
    seed: of the sample.

  Raises:
    InputError: no documents or a bad record.
  """
  rng = np.random.default_rng(seed)
  sample = []
  documents = (d for texts in _batches(source) for d in windows_of(texts, tokenizer, window_tokens))
  for seen, window in enumerate(itertools.chain.from_iterable(documents)):
    if seen < max_windows:
      sample.append(window.text)
    elif (place := int(rng.integers(seen + 1))) < max_windows:
      sample[place] = window.text
  if not sample:
    raise InputError(f"{_describe(source)} has no text: give a source with documents")
  return sample


@dataclasses.dataclass(frozen=True)
class _Corpus:
  """Windows of a corpus; window i is `tokens[starts[i]:starts[i + 1]]`."""

  tokens: np.ndarray  # uint16 or int32 [tokens]
  starts: np.ndarray  # int64 [windows + 1]
  ends: np.ndarray  # bool [windows]: last of its document
  leaves: np.ndarray  # int32 [windows]
  num_documents: int
  num_characters: int


def _read(source: RecordSource, tokenizer: Tokenizer, retriever: Retriever, window_tokens: int) -> _Corpus:
  dtype = _token_dtype(tokenizer.vocab_size)
  tokens, sizes, ends, leaves = [], [], [], []
  seen = num_documents = num_characters = num_tokens = 0
  for texts in _batches(source):
    documents = list(windows_of(texts, tokenizer, window_tokens))
    windows = list(itertools.chain.from_iterable(documents))
    seen += len(texts)
    if not windows:
      continue
    leaf = np.asarray(retriever.route([w.text for w in windows]))
    if leaf.shape != (len(windows),) or leaf.min() < 0 or leaf.max() >= retriever.tree.num_leaves:
      raise ValueError(f"route: {leaf.shape} leaves for {len(windows)} windows, or leaves outside the tree")
    leaves.append(leaf.astype(np.int32))
    tokens.append(np.concatenate([w.ids for w in windows]).astype(dtype))
    sizes.extend(len(w.ids) for w in windows)
    ends.extend(w.ends_document for w in windows)
    num_documents += sum(bool(d) for d in documents)
    num_characters += sum(len(text) for text, d in zip(texts, documents) if d)
    num_tokens += len(tokens[-1])
    logging.log_every_n_seconds(
      logging.INFO, "read %d documents, %d windows, %d tokens", 10, seen, len(sizes), num_tokens
    )
  if not sizes:
    raise InputError(f"{_describe(source)} has no text: give a source with documents")
  logging.info("read %d documents, %d windows, %d tokens", seen, len(sizes), num_tokens)
  return _Corpus(
    tokens=np.concatenate(tokens),
    starts=np.concatenate([[0], np.cumsum(sizes)]),
    ends=np.array(ends),
    leaves=np.concatenate(leaves),
    num_documents=num_documents,
    num_characters=num_characters,
  )


def _pack_all(
  corpus: _Corpus, rng: np.random.Generator, *, length: int, eot_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Packs leaf by leaf: leaves int32 [n], targets and segments unsigned or int32 [n, length]."""
  shuffled = rng.permutation(len(corpus.leaves))
  by_leaf = shuffled[np.argsort(corpus.leaves[shuffled], kind="stable")]
  borders = np.flatnonzero(np.diff(corpus.leaves[by_leaf])) + 1
  groups = np.split(by_leaf, borders)
  sizes = np.diff(corpus.starts) + corpus.ends
  counts = [num_sequences(int(sizes[group].sum()), length) for group in groups]
  stops = np.cumsum(counts)
  targets = np.empty((stops[-1], length), corpus.tokens.dtype)
  segments = np.empty((stops[-1], length), _token_dtype(length + 1))
  for group, count, stop in zip(groups, counts, stops):
    windows = [corpus.tokens[corpus.starts[i] : corpus.starts[i + 1]] for i in group]
    rows = slice(stop - count, stop)
    targets[rows], segments[rows] = pack(windows, corpus.ends[group], length=length, eot_id=eot_id)
  leaves = np.repeat([corpus.leaves[group[0]] for group in groups], counts)
  return leaves, targets, segments


def _reuse(directory: str, inputs: dict[str, Any]) -> PackedDataset:
  dataset = PackedDataset(directory)
  held = dataset.manifest.inputs
  for name in sorted(held.keys() | inputs.keys()):
    if held.get(name) != inputs.get(name):
      raise InputError(
        f"{directory} holds a packed dataset of {name} {held.get(name)!r}, asked for is {inputs.get(name)!r}:"
        " give another directory or delete this one"
      )
  logging.info("%s holds this packed dataset already (%d sequences): reusing it", directory, len(dataset))
  return dataset


def _batches(source: RecordSource) -> Iterator[Sequence[str]]:
  """Texts of the records, in lists of at most `_BATCH`."""
  texts = _texts(source)
  while batch := list(itertools.islice(texts, _BATCH)):
    yield batch


def _texts(source: RecordSource) -> Iterator[str]:
  for number, record in enumerate(source.records()):
    text = record.get("text")
    if not isinstance(text, str):
      raise InputError(f"record {number} of {_describe(source)} has no string field 'text': add it")
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise InputError(f"record {number} of {_describe(source)} has a lone surrogate: mend the text") from error
    yield text


def _describe(source: RecordSource) -> str:
  if hasattr(source, "data_dir"):  # where TFDS keeps its files; it does not change what is read
    source = dataclasses.replace(source, data_dir=None)
  description = repr(source)
  if re.search(r" at 0x[0-9a-f]+>", description):
    raise TypeError(f"{type(source).__name__} needs a __repr__ that says what it reads, for the manifest")
  return description


def _token_dtype(num_values: int) -> type[np.integer]:
  return np.uint16 if num_values <= 2**16 else np.int32
