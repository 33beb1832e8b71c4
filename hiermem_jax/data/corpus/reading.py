"""Reads one part of a source as batches of windows, and counts documents, tokens and malformed records.

`cluster` reads a sample of the documents in this way, `prepare` all of them.
"""

import collections
import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from hiermem_jax.data.corpus.keys import in_sample, mix, window_keys
from hiermem_jax.data.sources import BadRecord, Source
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.data.text.windows import windows_of
from hiermem_jax.errors import InputError, listed

_BATCH = 1024  # documents tokenised at once
_PLACES = 5  # malformed records of a kind whose positions are kept
_SAMPLE_SEED = 1  # of the hash that chooses documents; other choices use other hashes


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowBatch:
  """Windows of several documents, in order.

  Attributes:
    texts: of the windows.
    tokens: int32 [sum of sizes], the tokens of all windows one after the other, without end-of-text tokens.
    sizes: int32 [n], number of tokens of each window.
    ends: bool [n], whether the window is the last of its document, so that an end-of-text token follows it.
    keys: uint64 [n], see keys.py.
  """

  texts: list[str]
  tokens: np.ndarray
  sizes: np.ndarray
  ends: np.ndarray
  keys: np.ndarray


@dataclasses.dataclass(kw_only=True)
class Counts:
  """Number of things read so far.

  Attributes:
    documents: documents with at least one token.
    empty_documents: well-formed records whose text has no tokens.
    characters: in the texts of the documents.
    windows: of the documents.
    tokens: of the windows, end-of-text tokens included.
    bad_records: kind of defect -> {"count": number of malformed records, "places": the first ones, with what is wrong}.
  """

  documents: int = 0
  empty_documents: int = 0
  characters: int = 0
  windows: int = 0
  tokens: int = 0
  bad_records: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

  def add_bad(self, kind: str, count: int, places: Iterable[str]) -> None:
    """Counts malformed records of one kind; the first few places are kept."""
    entry = self.bad_records.setdefault(kind, {"count": 0, "places": []})
    entry["count"] += count
    entry["places"] = [*entry["places"], *places][:_PLACES]

  @classmethod
  def total(cls, parts: Iterable[Mapping[str, Any]]) -> "Counts":
    """The sum of counts given as dictionaries, as they are stored in JSON files."""
    total = cls()
    for part in parts:
      for name in ("documents", "empty_documents", "characters", "windows", "tokens"):
        setattr(total, name, getattr(total, name) + part[name])
      for kind, entry in part["bad_records"].items():
        total.add_bad(kind, entry["count"], entry["places"])
    return total

  def check(self, source: Source, max_bad_share: float) -> None:
    """Raises InputError when more than `max_bad_share` of the records are malformed, or when no record has text."""
    kinds = collections.Counter({kind: entry["count"] for kind, entry in self.bad_records.items()})
    bad = kinds.total()
    records = bad + self.documents + self.empty_documents
    if bad > max_bad_share * records:
      kinds_found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
      place = self.bad_records[kinds.most_common(1)[0][0]]["places"][0]
      lenient = f", raise ReadConfig.max_bad_share ({max_bad_share:g}) or pass --skip_bad_records"
      remedy = f"mend them{lenient if bad < records else ', or check the settings of the source'}"
      raise InputError(f"{bad} of {records} records are malformed ({kinds_found}), e.g. {place}: {remedy}")
    if not self.documents:
      raise InputError(f"empty corpus: {source} has no text; check the pattern and the files")


def read_part(
  source: Source,
  number: int,
  part: str,
  tokenizer: Tokenizer,
  counts: Counts,
  *,
  window_tokens: int,
  sample: float = 1.0,
) -> Iterator[WindowBatch]:
  """Yields the windows of one part of a source in batches.

  Args:
    source: the documents.
    number: of the part among `source.parts()`. The windows' keys depend on it.
    part: name of the part.
    tokenizer: of the language model; its tokens are the unit of `window_tokens`.
    counts: everything that is read is added to it. It is complete when the iterator is exhausted.
    window_tokens: largest number of tokens in a window.
    sample: share of the documents to read, chosen by a hash of their position. The others are not tokenised.

  Raises:
    InputError: the part cannot be read.
  """
  documents = _sampled(_good_records(source, part, counts), number, sample)
  while batch := list(itertools.islice(documents, _BATCH)):
    numbers, texts = zip(*batch)
    windows, keys = [], []
    for document, text, found in zip(numbers, texts, windows_of(texts, tokenizer, window_tokens)):
      counts.documents += bool(found)
      counts.empty_documents += not found
      counts.characters += len(text) if found else 0
      windows += found
      keys.append(window_keys(number, np.full(len(found), document), np.arange(len(found))))
    if not windows:
      continue
    sizes = np.array([len(w.ids) for w in windows], np.int32)
    ends = np.array([w.ends_document for w in windows])
    counts.windows += len(windows)
    counts.tokens += int(sizes.sum() + ends.sum())
    yield WindowBatch(
      texts=[w.text for w in windows],
      tokens=np.concatenate([w.ids for w in windows]),
      sizes=sizes,
      ends=ends,
      keys=np.concatenate(keys),
    )


def _good_records(source: Source, part: str, counts: Counts) -> Iterator[tuple[int, str]]:
  """Number and text of each well-formed record; malformed ones are counted."""
  for number, record in enumerate(source.read(part)):
    if not isinstance(record, BadRecord):
      text = record.get("text")
      if isinstance(text, str) and text.strip():
        yield number, text
        continue
      kind = "field 'text' " + ("missing" if text is None else "empty" if isinstance(text, str) else "not a string")
      has = f"the record has {listed(record)}" if text is None else ""
      record = BadRecord(kind, f"{part}: record {number}", has)
    counts.add_bad(record.kind, 1, [f"{record.place}{record.detail and f' ({record.detail})'}"])


def _sampled(documents: Iterator[tuple[int, str]], part: int, sample: float) -> Iterator[tuple[int, str]]:
  if sample >= 1:
    yield from documents
    return
  while batch := list(itertools.islice(documents, _BATCH)):
    hashes = mix(window_keys(part, np.array([number for number, _ in batch])), _SAMPLE_SEED)
    yield from itertools.compress(batch, in_sample(hashes, sample))


def sample_texts(
  source: Source, tokenizer: Tokenizer, *, window_tokens: int, sample: float = 1.0, max_windows: int = 200_000
) -> Iterator[str]:
  """Yields the texts of at most `max_windows` windows, chosen at random by a hash, to fit an encoder to.

  Nothing is read until the first text is asked for, so a pretrained encoder, which asks for none, costs nothing.
  Malformed records are skipped and not counted: the pipelines that read the whole corpus count them.
  """
  windows = (
    (int(key), text)
    for number, part in enumerate(source.parts())
    for batch in read_part(source, number, part, tokenizer, Counts(), window_tokens=window_tokens, sample=sample)
    for key, text in zip(mix(batch.keys, _SAMPLE_SEED), batch.texts)
  )
  yield from (text for _, text in heapq.nsmallest(max_windows, windows))


def good_texts(source: Source, *parts: str) -> Iterator[str]:
  """Yields the texts of the well-formed records, in order; malformed records are skipped.

  Args:
    source: the documents.
    *parts: names of the parts to read; all parts by default.

  Raises:
    InputError: all parts are read and there is no text.
  """
  empty, counts = True, Counts()
  for part in parts or source.parts():
    for _, text in _good_records(source, part, counts):
      empty = False
      yield text
  if empty and not parts:
    counts.check(source, 0.0)  # raises: every record is malformed, or there are none
