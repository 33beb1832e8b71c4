"""Documents cut into windows: non-overlapping runs of at most `window_tokens` tokens.

A window is what gets one embedding and one leaf (paper, Appendix C), and what is packed.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from hiermem_jax.data.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"  # what decoders put where bytes do not make a character
LONGEST_CHARACTER = 4  # bytes in UTF-8
_CONTEXT = 8  # tokens looked at on each side of a cut


@dataclasses.dataclass(frozen=True)
class Window:
  """One window of a document.

  Attributes:
    text: its text; `decode(ids)`, and for a document of one window the document itself.
    ids: int32 [n], 1 <= n <= window_tokens, without the end-of-text token.
    ends_document: whether it is the last window of its document.
  """

  text: str
  ids: np.ndarray
  ends_document: bool


def windows_of(texts: Sequence[str], tokenizer: Tokenizer, window_tokens: int = 2048) -> Iterator[list[Window]]:
  """Yields the windows of each text; an empty list for a text without tokens.

  The windows' ids, joined, are the text's ids. A boundary that would cut a character made of
  several byte tokens moves back by up to three tokens, so with a tokenizer that decodes exactly the
  windows' texts, joined, are the text.
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
  """End of the window that begins at `start`, and its text."""
  full = min(start + window_tokens, len(ids))
  full_text = tokenizer.decode(ids[start:full])
  if full == len(ids) or not _splits_character(ids, full, full_text, tokenizer):
    return full, full_text
  for stop in range(full - 1, full - LONGEST_CHARACTER, -1):
    text = tokenizer.decode(ids[start:stop])
    if not _splits_character(ids, stop, text, tokenizer):
      return stop, text
  return full, full_text  # the tokens are no valid UTF-8 in the first place


def _splits_character(ids: np.ndarray, stop: int, text: str, tokenizer: Tokenizer) -> bool:
  """Whether a cut at `stop`, after `text`, falls inside a character."""
  if not text.endswith(_REPLACEMENT):
    return False
  # The replacement character may be the document's own: then both sides of the cut decode as they do together.
  left, right = ids[max(stop - _CONTEXT, 0) : stop], ids[stop : stop + _CONTEXT]
  return tokenizer.decode(left) + tokenizer.decode(right) != tokenizer.decode(np.concatenate([left, right]))
