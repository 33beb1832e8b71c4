"""64-bit keys of windows. All random orders and choices of the pipelines follow from them.

What a pipeline writes must not depend on the number of its workers, so no random generator is used. Instead each window
has a key, a hash of its position in the source. To put windows in a random order, a pipeline sorts them by another hash
of their keys; to choose some of them at random, it takes those whose hash is below a threshold.
"""

import numpy as np

# Bits of a window's position in the source: part, document of the part, window of the document.
_DOCUMENT_BITS, _WINDOW_BITS = 30, 14
_PART_BITS = 64 - _DOCUMENT_BITS - _WINDOW_BITS
_LARGEST = 2**64 - 1


def mix(values: np.ndarray | int, seed: int = 0) -> np.ndarray:
  """Hashes 64-bit numbers with the finaliser of splitmix64: uint64 [...].

  Different numbers have different hashes. Each seed (non-negative) gives another hash function.
  """
  x = np.asarray(values, np.uint64)
  with np.errstate(over="ignore"):
    x = x + np.uint64(0x9E3779B97F4A7C15) * np.uint64(2 * seed + 1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def window_keys(part: int, documents: np.ndarray, windows: np.ndarray | int = 0) -> np.ndarray:
  """Keys of windows, different for different windows: uint64 [n].

  Args:
    part: number of the part of the source, below 2^20.
    documents: integer [n], numbers of the documents within the part, below 2^30.
    windows: integer [n], numbers of the windows within their documents, below 2^14.

  Raises:
    ValueError: a number is out of range.
  """
  documents, windows = np.asarray(documents, np.uint64), np.asarray(windows, np.uint64)
  if part >> _PART_BITS or np.any(documents >> np.uint64(_DOCUMENT_BITS)) or np.any(windows >> np.uint64(_WINDOW_BITS)):
    raise ValueError(
      f"part {part}, document or window out of range: at most 2^{_PART_BITS} parts, 2^{_DOCUMENT_BITS} documents in"
      f" a part, 2^{_WINDOW_BITS} windows in a document"
    )
  place = np.uint64(part << (_DOCUMENT_BITS + _WINDOW_BITS)) | (documents << np.uint64(_WINDOW_BITS)) | windows
  return mix(place)


def in_sample(hashes: np.ndarray, share: float) -> np.ndarray:
  """Chooses that share of the hashes: bool [...]. A smaller share is a subset of a larger one."""
  if share >= 1:
    return np.ones(np.shape(hashes), bool)
  return np.asarray(hashes, np.uint64) < np.uint64(int(share * _LARGEST))


def partition(hashes: np.ndarray | int, num_partitions: int | np.ndarray) -> np.ndarray:
  """Cuts the range of all hashes into equal parts and tells which part each hash falls in: int64 [...].

  Parts ascend: a larger hash never falls in a part of smaller number.
  """
  # The upper 32 bits are enough, and keep the product within 64 bits.
  upper = np.asarray(hashes, np.uint64) >> np.uint64(32)
  return (upper * np.asarray(num_partitions, np.uint64) >> np.uint64(32)).astype(np.int64)
