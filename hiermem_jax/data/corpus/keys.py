"""64-bit keys of windows: who they are, and every random order that the pipelines need.

A pipeline must not depend on how many workers it has, so nothing is drawn from a generator: a window's key is a
bijection of its place in the source, and an order is what sorting by a hash of the key gives.
"""

import numpy as np

# Bits of a window's place in the source: part, document of the part, window of the document.
_DOCUMENT_BITS, _WINDOW_BITS = 30, 14
_PART_BITS = 64 - _DOCUMENT_BITS - _WINDOW_BITS
_LARGEST = 2**64 - 1


def mix(values: np.ndarray | int, seed: int = 0) -> np.ndarray:
  """A bijection of 64-bit numbers per seed that looks random (the finaliser of splitmix64): uint64 [...]."""
  x = np.asarray(values, np.uint64)
  with np.errstate(over="ignore"):
    x = x + np.uint64(0x9E3779B97F4A7C15) * np.uint64(2 * seed + 1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def window_keys(part: int, documents: np.ndarray, windows: np.ndarray | int = 0) -> np.ndarray:
  """Keys of windows, all different: uint64 [n].

  Args:
    part: number of the part of the source, below 2^20.
    documents: integer [n], numbers of the documents within the part, below 2^30.
    windows: integer [n], numbers of the windows within their documents, below 2^14.
  """
  documents, windows = np.asarray(documents, np.uint64), np.asarray(windows, np.uint64)
  if part >> _PART_BITS or np.any(documents >> np.uint64(_DOCUMENT_BITS)) or np.any(windows >> np.uint64(_WINDOW_BITS)):
    raise ValueError(
      f"part {part}, document or window out of range: at most 2^{_PART_BITS} parts, 2^{_DOCUMENT_BITS} documents in"
      f" a part, 2^{_WINDOW_BITS} windows in a document"
    )
  place = np.uint64(part << (_DOCUMENT_BITS + _WINDOW_BITS)) | (documents << np.uint64(_WINDOW_BITS)) | windows
  return mix(place)


def below(share: float, hashes: np.ndarray) -> np.ndarray:
  """Whether each hash falls in the first `share` of all: bool [...]."""
  if share >= 1:
    return np.ones(np.shape(hashes), bool)
  return np.asarray(hashes, np.uint64) < np.uint64(int(share * _LARGEST))


def slot(hashes: np.ndarray, num_slots: int) -> np.ndarray:
  """The equal range of the hashes, of `num_slots`, that each falls in, in ascending order: int64 [...]."""
  # 32 bits are plenty, and keep the product within 64.
  return ((np.asarray(hashes, np.uint64) >> np.uint64(32)) * np.uint64(num_slots) >> np.uint64(32)).astype(np.int64)
