"""Packing against a token-by-token reference, and its promises one by one."""

import numpy as np
import pytest

from hiermem_jax.data.packed.packing import num_sequences, pack, pack_tails

EOT = 2


def reference(windows, ends, length):
  """Token by token: (target, segment) rows."""
  rows = [[]]
  for window, end in zip(windows, ends):
    segment = None
    for token in [*window, EOT] if end else list(window):
      if len(rows[-1]) == length:
        rows.append([])
        segment = None
      if segment is None:
        segment = max((s for _, s in rows[-1]), default=0) + 1
      rows[-1].append((token, segment))
  rows[-1] += [(0, 0)] * (length - len(rows[-1]))
  return np.moveaxis(np.array(rows), 2, 0)


def random_windows(seed, count, longest):
  rng = np.random.default_rng(seed)
  windows = [rng.integers(3, 99, rng.integers(1, longest + 1)) for _ in range(count)]
  return windows, rng.random(count) < 0.7


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_equals_reference(seed, length):
  windows, ends = random_windows(seed, count=25, longest=15)
  targets, segments = pack(windows, ends, length=length, eot_id=EOT)
  expected_targets, expected_segments = reference(windows, ends, length)
  np.testing.assert_array_equal(targets, expected_targets)
  np.testing.assert_array_equal(segments, expected_segments)
  assert targets.dtype == segments.dtype == np.int32


def test_properties():
  windows, ends = random_windows(9, count=40, longest=30)
  targets, segments = pack(windows, ends, length=32, eot_id=EOT)
  tokens = [t for w, end in zip(windows, ends) for t in [*w, *([EOT] if end else [])]]
  np.testing.assert_array_equal(targets[segments > 0], tokens)  # none lost, order kept
  assert len(targets) == num_sequences(len(tokens), 32)
  assert np.all(segments[:-1] > 0)  # padding in the last sequence only, at its end
  assert np.all(targets[segments == 0] == 0)
  assert np.all(segments[:, 0] == 1)
  assert set(np.diff(segments[:-1]).ravel()) <= {0, 1}
  assert np.count_nonzero(targets == EOT) == ends.sum()
  after_eot = np.pad(segments, ((0, 0), (0, 1)))[:, 1:]
  assert np.all(after_eot[targets == EOT] != segments[targets == EOT])  # end-of-text closes its segment


def test_docstring_example():
  windows = [np.array(w) for w in ([5, 6, 7], [8, 9, 10], [11])]
  targets, segments = pack(windows, [True, False, True], length=6, eot_id=2)
  assert targets.tolist() == [[5, 6, 7, 2, 8, 9], [10, 11, 2, 0, 0, 0]]
  assert segments.tolist() == [[1, 1, 1, 1, 2, 2], [1, 2, 2, 0, 0, 0]]


def test_token_types_and_no_windows():
  targets, _ = pack([np.array([65_535], np.uint16)], [True], length=4, eot_id=70_000)
  assert targets.tolist() == [[65_535, 70_000, 0, 0]]
  assert pack([], [], length=4, eot_id=2)[0].shape == (0, 4)


def random_tails(seed, count, length):
  """Tails of leaves in ascending order: what `pack` leaves in a leaf's last sequence."""
  rng = np.random.default_rng(seed)
  tails = []
  for leaf in np.sort(rng.choice(100, count, replace=False)):
    targets, segments = pack(*random_windows(rng.integers(1000), count=4, longest=length), length=length, eot_id=EOT)
    if segments[-1, -1] == 0:
      size = np.count_nonzero(segments[-1])
      tails.append((int(leaf), targets[-1, :size], segments[-1, :size]))
  return tails


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length", [2, 7, 64])
def test_tails_token_by_token(seed, length):
  """Against a stream of (token, leaf, segment of its tail), cut every `length` tokens."""
  tails = random_tails(seed, count=12, length=length)
  leaves, targets, segments = pack_tails(tails, length=length)
  stream = [(int(t), leaf, int(s)) for leaf, tokens, ids in tails for t, s in zip(tokens, ids)]
  assert len(leaves) == len(targets) == len(segments) == num_sequences(len(stream), length)
  assert targets.dtype == segments.dtype == leaves.dtype == np.int32
  for row, start in enumerate(range(0, len(stream), length)):
    part = stream[start : start + length]
    padding = [0] * (length - len(part))
    assert targets[row].tolist() == [token for token, _, _ in part] + padding
    documents = [(leaf, segment) for _, leaf, segment in part]
    ids = {document: number for number, document in enumerate(dict.fromkeys(documents), start=1)}
    assert segments[row].tolist() == [ids[document] for document in documents] + padding
    owners = [leaf for _, leaf, _ in part]
    assert owners.count(leaves[row]) == max(map(owners.count, owners))
    assert leaves[row] == min(leaf for leaf in owners if owners.count(leaf) == owners.count(leaves[row]))


def test_tails_docstring_promises():
  """Two short tails share a sequence; of equal shares the smaller leaf has it; what is over goes on in the next."""
  tails = [(3, np.array([5, 2]), np.array([1, 1])), (4, np.array([6, 2, 7]), np.array([1, 1, 2]))]
  leaves, targets, segments = pack_tails(tails, length=4)
  assert leaves.tolist() == [3, 4]
  assert targets.tolist() == [[5, 2, 6, 2], [7, 0, 0, 0]]
  assert segments.tolist() == [[1, 1, 2, 2], [1, 0, 0, 0]]
