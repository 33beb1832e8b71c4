"""Packs the windows of one leaf into fixed-length sequences (paper, Appendix A.2).

The windows of a leaf are concatenated, with the end-of-text token after the last window of each document, and cut every
`length` tokens. So a sequence holds text of one leaf only, no token is lost, and only the last sequence of a leaf is
padded. A window that is cut becomes two segments, the second at the beginning of the next sequence: its positions
restart, and it does not attend to the first.

Example: length 6, end-of-text token 2, three windows. The second is not the last of its document, so no end-of-text
token follows it.

  windows   [5, 6, 7]  [8, 9, 10]  [11]        ends  [True, False, True]

  targets   [[5, 6, 7, 2, 8, 9],               segments  [[1, 1, 1, 1, 2, 2],
             [10, 11, 2, 0, 0, 0]]                        [1, 2, 2, 0, 0, 0]]

Segment ids are 1, 2, ... within a sequence; 0 is padding, whose targets are 0.

The tail of a leaf is its last sequence if that is incomplete. It may be kept, be left out, or be packed again together
with the tails of the leaf's siblings in the tree (`pack_tails`).
"""

from collections.abc import Sequence

import numpy as np


def pack(
  windows: Sequence[np.ndarray], ends: Sequence[bool] | np.ndarray, *, length: int, eot_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Packs the windows of one leaf, in the given order.

  Args:
    windows: token ids of each window, integer [at least 1].
    ends: whether each window is the last of its document, so that `eot_id` follows it.
    length: positions of a sequence, S.
    eot_id: the end-of-text token.

  Returns:
    targets and segments, both int32 [num_sequences(tokens, S), S].
  """
  sizes = np.fromiter((len(w) for w in windows), np.int64, len(windows)) + np.asarray(ends, bool)
  count = num_sequences(int(sizes.sum()), length)
  targets = np.zeros(count * length, np.int32)
  # The window that each position belongs to, by its number from 1; 0 is padding.
  owners = np.zeros(count * length, np.int32)
  owners[: sizes.sum()] = np.repeat(np.arange(1, len(windows) + 1, dtype=np.int32), sizes)
  stops = np.cumsum(sizes)
  for window, size, stop, end in zip(windows, sizes, stops, ends, strict=True):
    start = stop - size
    targets[start : start + len(window)] = window
    if end:
      targets[stop - 1] = eot_id
  return targets.reshape(count, length), _segments(owners.reshape(count, length))


def num_sequences(num_tokens: int, length: int) -> int:
  """Number of sequences that `pack` makes of `num_tokens` tokens of one leaf, end-of-text tokens included."""
  return -(-num_tokens // length)


def pack_tails(
  tails: Sequence[tuple[int, np.ndarray, np.ndarray]], *, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Concatenates the tails of sibling leaves, in the given order, and cuts them every `length` tokens.

  Args:
    tails: for each tail its leaf, its targets int [n] and its segments int [n], n < length, without padding.
    length: positions of a sequence, S.

  Returns:
    leaves int32 [m], targets and segments int32 [m, S]. The leaf of a sequence is the one that most of its tokens come
    from, the smallest on a tie. Only the last sequence may be padded. Different segments of the tails stay different
    segments.
  """
  count = num_sequences(sum(len(targets) for _, targets, _ in tails), length)
  # Target, segment (numbered from 1 over all tails) and leaf of each position.
  joined, owners, leaf_of = (np.zeros(count * length, np.int32) for _ in range(3))
  start = segment = 0
  for leaf, targets, segments in tails:
    part = slice(start, start + len(targets))
    joined[part], owners[part], leaf_of[part] = targets, segments + segment, leaf
    start, segment = part.stop, segment + int(segments.max())
  by_sequence = owners.reshape(count, length)
  leaves = [_most_frequent(leaf[owner > 0]) for leaf, owner in zip(leaf_of.reshape(count, length), by_sequence)]
  return np.array(leaves, np.int32), joined.reshape(count, length), _segments(by_sequence)


def _segments(owners: np.ndarray) -> np.ndarray:
  """Segment ids within each sequence: int32 [m, S].

  Args:
    owners: int32 [m, S], numbers of the pieces of text that positions belong to, ascending by one along the sequences;
      0 is padding.
  """
  return np.where(owners > 0, owners - owners[:, :1] + 1, 0).astype(np.int32)


def _most_frequent(values: np.ndarray) -> int:
  """The most frequent value, the smallest on a tie."""
  unique, counts = np.unique(values, return_counts=True)
  return int(unique[np.argmax(counts)])
