"""Cuts documents into windows: consecutive runs of at most `window_tokens` tokens.

A window is the unit of clustering and of packing: it has one embedding and one leaf (paper, Appendix C).
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from hiermem_jax.data.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"  # decoders write it for bytes that are no character
LONGEST_CHARACTER = 4  # bytes in UTF-8
_CONTEXT = 8  # tokens on each side of a cut that are decoded to check it


@dataclasses.dataclass(frozen=True)
class Window:
  """One window of a document.

  Attributes:
    text: of the window. It is `decode(ids)`, or the document itself if that has only one window.
    ids: int32 [n], 1 <= n <= window_tokens, without the end-of-text token.
    ends_document: whether this is the last window of its document.
  """

  text: str
  ids: np.ndarray
  ends_document: bool


def windows_of(texts: Sequence[str], tokenizer: Tokenizer, window_tokens: int = 2048) -> Iterator[list[Window]]:
  """Yields the windows of each text; an empty list for a text without tokens.

  The concatenated ids of the windows are the ids of the text. A character may consist of several byte
  tokens; a boundary within it is moved back by up to three tokens. So the concatenated texts of the
  windows are the text, if the tokenizer's `decode` is the inverse of its `encode`.

  Raises:
    ValueError: `window_tokens` is less than the number of bytes of a character.
  """
  if window_tokens < LONGEST_CHARACTER:
    raise ValueError(f"window_tokens is {window_tokens}; it must be at least {LONGEST_CHARACTER}")
  for text, encoded in zip(texts, tokenizer.encode_batch(texts), strict=True):
    ids = np.asarray(encoded, np.int32)
    if len(ids) <= window_tokens:
      yield [Window(text, ids, True)] if len(ids) else []
      continue
    windows = []
    start = 0
    while start < len(ids):
      stop, part = _cut(ids, start, window_tokens, tokenizer)
      windows.append(Window(part, ids[start:stop], stop == len(ids)))
      start = stop
    yield windows


def _cut(ids: np.ndarray, start: int, window_tokens: int, tokenizer: Tokenizer) -> tuple[int, str]:
  """The end of the window that begins at `start`, and the window's text."""
  full = min(start + window_tokens, len(ids))
  full_text = tokenizer.decode(ids[start:full])
  if full == len(ids) or not _splits_character(ids, full, full_text, tokenizer):
    return full, full_text
  for stop in range(full - 1, full - LONGEST_CHARACTER, -1):
    text = tokenizer.decode(ids[start:stop])
    if not _splits_character(ids, stop, text, tokenizer):
      return stop, text
  return full, full_text  # the tokens are no valid UTF-8 with any cut


def _splits_character(ids: np.ndarray, stop: int, text: str, tokenizer: Tokenizer) -> bool:
  """Whether a cut at `stop` is within a character; `text` is the text before the cut."""
  if not text.endswith(_REPLACEMENT):
    return False
  # The replacement character may be part of the document. Then both sides decode to the same as they do together.
  left, right = ids[max(stop - _CONTEXT, 0) : stop], ids[stop : stop + _CONTEXT]
  return tokenizer.decode(left) + tokenizer.decode(right) != tokenizer.decode(np.concatenate([left, right]))
