"""One part of a source as batches of windows, and the count of what was in it.

Both verbs read in this way: `cluster` embeds the windows of a sample of the documents, `prepare` routes and keeps all.
"""

import collections
import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from hiermem_jax.data.corpus.keys import below, mix, window_keys
from hiermem_jax.data.sources import BadRecord, Source
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.data.text.windows import windows_of
from hiermem_jax.errors import InputError

_BATCH = 1024  # documents tokenised at once
_PLACES = 5  # bad records named per kind
_SAMPLE_SEED = 1  # the sample is drawn by another hash than the order of a node's examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowBatch:
  """Windows of some documents, in order; window i has the next `sizes[i]` of `tokens`.

  Attributes:
    texts: of the windows.
    tokens: int32 [sum of sizes], without end-of-text tokens.
    sizes: int32 [n].
    ends: bool [n]; last of its document, so an end-of-text token follows it.
    keys: uint64 [n], see keys.py.
  """

  texts: list[str]
  tokens: np.ndarray
  sizes: np.ndarray
  ends: np.ndarray
  keys: np.ndarray


@dataclasses.dataclass(kw_only=True)
class Counts:
  """What was read.

  Attributes:
    documents: with at least one token.
    empty_documents: good records whose text has no tokens.
    characters: of the documents.
    windows: of the documents.
    tokens: of the windows, end-of-text tokens included.
    bad_records: kind -> {"count": how many, "places": where the first ones are}.
  """

  documents: int = 0
  empty_documents: int = 0
  characters: int = 0
  windows: int = 0
  tokens: int = 0
  bad_records: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

  def add_bad(self, kind: str, count: int, places: Iterable[str]) -> None:
    """Counts bad records; the first few places of a kind are kept."""
    entry = self.bad_records.setdefault(kind, {"count": 0, "places": []})
    entry["count"] += count
    entry["places"] = [*entry["places"], *places][:_PLACES]

  @classmethod
  def total(cls, parts: Iterable[Mapping[str, Any]]) -> "Counts":
    """Sum of counts that were written as dicts."""
    total = cls()
    for part in parts:
      for name in ("documents", "empty_documents", "characters", "windows", "tokens"):
        setattr(total, name, getattr(total, name) + part[name])
      for kind, entry in part["bad_records"].items():
        total.add_bad(kind, entry["count"], entry["places"])
    return total

  def check(self, source: Source, max_bad_share: float) -> None:
    """Raises InputError when more than `max_bad_share` of the records are bad, or none has text."""
    kinds = collections.Counter({kind: entry["count"] for kind, entry in self.bad_records.items()})
    bad = kinds.total()
    records = bad + self.documents + self.empty_documents
    if bad > max_bad_share * records:
      listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
      place = self.bad_records[kinds.most_common(1)[0][0]]["places"][0]
      raise InputError(
        f"{bad} of {records} records are malformed ({listed}), e.g. {place}: mend them, raise max_bad_share"
        f" ({max_bad_share:g}) or pass --skip_bad_records"
      )
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
  """Yields the windows of one part of a source and counts into `counts` what goes by.

  Args:
    source: documents.
    number: of the part among `source.parts()`; decides the keys.
    part: its name.
    tokenizer: of the language model; windows are measured in its tokens.
    counts: filled in; complete when the iterator is exhausted.
    window_tokens: greatest size of a window.
    sample: share of the documents to take, chosen by a hash of their place; the others are not tokenised.

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
  """Number and text of each good record."""
  for number, record in enumerate(source.read(part)):
    if not isinstance(record, BadRecord):
      text = record.get("text")
      if isinstance(text, str) and text.strip():
        yield number, text
        continue
      kind = "field 'text' " + ("missing" if text is None else "empty" if isinstance(text, str) else "not a string")
      record = BadRecord(kind, f"{part}: record {number}")
    counts.add_bad(record.kind, 1, [record.place])


def _sampled(documents: Iterator[tuple[int, str]], part: int, sample: float) -> Iterator[tuple[int, str]]:
  if sample >= 1:
    yield from documents
    return
  while batch := list(itertools.islice(documents, _BATCH)):
    hashes = mix(window_keys(part, np.array([number for number, _ in batch])), _SAMPLE_SEED)
    yield from itertools.compress(batch, below(sample, hashes))


def sample_texts(
  source: Source, tokenizer: Tokenizer, *, window_tokens: int, sample: float = 1.0, max_windows: int = 200_000
) -> Iterator[str]:
  """Yields texts of at most `max_windows` windows, those of smallest hash, to fit an encoder on.

  Nothing is read before the first text is asked for: an encoder with weights of its own does not ask. Bad records are
  passed over here; whoever reads the corpus in earnest counts them.
  """
  windows = (
    (int(key), text)
    for number, part in enumerate(source.parts())
    for batch in read_part(source, number, part, tokenizer, Counts(), window_tokens=window_tokens, sample=sample)
    for key, text in zip(mix(batch.keys, _SAMPLE_SEED), batch.texts)
  )
  yield from (text for _, text in heapq.nsmallest(max_windows, windows))


def good_texts(source: Source, *parts: str) -> Iterator[str]:
  """Yields the texts of the good records of some parts, or of all, in order.

  Raises:
    InputError: there are none in the whole source.
  """
  empty = True
  for part in parts or source.parts():
    for _, text in _good_records(source, part, Counts()):
      empty = False
      yield text
  if empty and not parts:
    raise InputError(f"empty corpus: {source} has no text; check the pattern and the files")
