"""Windows of one leaf packed into fixed-length sequences (paper, section A.2).

The windows of a leaf are laid end to end, each document's last window followed by the end-of-text token, and
cut every `length` tokens. A sequence therefore holds text of one leaf only, no token is lost, and only the last
sequence of a leaf is padded. A window that does not fit in what is left of a sequence goes on in the next one
as a segment of its own: it does not attend to its first part, and its positions restart.

Example: length 6, end-of-text token 2, three windows of which the second continues in another window
elsewhere (so it gets no end-of-text token):

  windows   [5, 6, 7]  [8, 9, 10]  [11]        ends  [True, False, True]

  targets   [[5, 6, 7, 2, 8, 9],               segments  [[1, 1, 1, 1, 2, 2],
             [10, 11, 2, 0, 0, 0]]                        [1, 2, 2, 0, 0, 0]]

Segment ids count 1, 2, ... within a sequence; 0 is padding, with target 0.

A leaf's last, incomplete sequence, its tail, may stay as it is, be left out, or be packed once more together with the
tails of its siblings in the tree (`pack_tails`).
"""

from collections.abc import Sequence

import numpy as np


def pack(
  windows: Sequence[np.ndarray], ends: Sequence[bool], *, length: int, eot_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Packs the windows of one leaf, in the given order.

  Args:
    windows: integer [n_i] token ids, n_i >= 1.
    ends: whether window i ends its document and is followed by `eot_id`.
    length: S, tokens per sequence.
    eot_id: the end-of-text token.

  Returns:
    targets and segments, both int32 [num_sequences(tokens, S), S].
  """
  ends = np.asarray(ends, bool)
  sizes = np.fromiter((len(w) for w in windows), np.int64, len(windows)) + ends
  count = num_sequences(int(sizes.sum()), length)
  targets = np.zeros(count * length, np.int32)
  # Number of the window that a position belongs to, counted from 1; 0 is padding.
  owners = np.zeros(count * length, np.int32)
  owners[: sizes.sum()] = np.repeat(np.arange(1, len(windows) + 1, dtype=np.int32), sizes)
  stops = np.cumsum(sizes)
  for window, size, stop, end in zip(windows, sizes, stops, ends, strict=True):
    start = stop - size
    targets[start : start + len(window)] = window
    if end:
      targets[stop - 1] = eot_id
  owners = owners.reshape(count, length)
  # Windows are consecutive, so their numbers become segment ids by counting from the sequence's first one.
  segments = np.where(owners > 0, owners - owners[:, :1] + 1, 0)
  return targets.reshape(count, length), segments.astype(np.int32)


def num_sequences(num_tokens: int, length: int) -> int:
  """Sequences that `pack` makes of one leaf's `num_tokens` tokens, end-of-text tokens included."""
  return -(-num_tokens // length)


def pack_tails(
  tails: Sequence[tuple[int, np.ndarray, np.ndarray]], *, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Packs the tails of sibling leaves together, in the given order, as `pack` does windows.

  Args:
    tails: of each leaf its number, and targets and segments [n], n < length, without padding.
    length: S, tokens per sequence.

  Returns:
    leaves int32 [m], targets and segments int32 [m, S]. A sequence has the leaf that most of its tokens are of (the
    smallest number on a tie); the last one may be padded. Segments stay apart, whatever leaf they are of.
  """
  count = num_sequences(sum(len(targets) for _, targets, _ in tails), length)
  joined, owners, leaf_of = (np.zeros(count * length, np.int32) for _ in range(3))
  start = segment = 0
  for leaf, targets, segments in tails:
    part = slice(start, start + len(targets))
    joined[part], owners[part], leaf_of[part] = targets, segments + segment, leaf
    start, segment = part.stop, segment + int(segments.max())
  owners, leaf_of = owners.reshape(count, length), leaf_of.reshape(count, length)
  leaves = [_most_frequent(row[owner > 0]) for row, owner in zip(leaf_of, owners)]
  segments = np.where(owners > 0, owners - owners[:, :1] + 1, 0)
  return np.array(leaves, np.int32), joined.reshape(count, length), segments.astype(np.int32)


def _most_frequent(values: np.ndarray) -> int:
  unique, counts = np.unique(values, return_counts=True)
  return int(unique[np.argmax(counts)])
