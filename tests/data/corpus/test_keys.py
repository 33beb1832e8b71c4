"""Keys of windows and the orders that hashing them gives."""

import numpy as np
import pytest

from hiermem_jax.data.corpus.config import PackConfig
from hiermem_jax.data.corpus.keys import in_sample, mix, partition, window_keys
from hiermem_jax.data.corpus.pack import PackJob


def test_mix_is_splitmix64():
  # First outputs of the reference implementation (Vigna, splitmix64.c) for state 0: the state grows by a constant.
  states = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
  assert [hex(x) for x in mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_keys_differ_and_look_random():
  parts = [window_keys(part, np.repeat(np.arange(500), 3), np.tile(np.arange(3), 500)) for part in range(4)]
  keys = np.concatenate(parts)
  assert len(np.unique(keys)) == len(keys) == 6000
  for hashes in (keys, mix(keys, 7)):
    assert abs(np.mean(hashes / 2**64) - 0.5) < 0.02  # standard error 0.0037
    assert np.all(np.abs(np.bincount(partition(hashes, 10), minlength=10) - 600) < 120)  # standard deviation 23
  assert np.corrcoef(keys, mix(keys, 7))[0, 1] < 0.05


def test_one_window_has_one_key_wherever_it_is_read():
  assert window_keys(3, np.array([5, 6]), np.array([1, 0]))[1] == window_keys(3, np.array([6]))[0]


@pytest.mark.parametrize("place", [(2**20, [0], 0), (0, [2**30], 0), (0, [0], 2**14)])
def test_places_out_of_range_are_refused(place):
  part, documents, windows = place
  with pytest.raises(ValueError, match="out of range"):
    window_keys(part, np.array(documents), windows)


def test_a_smaller_sample_is_a_subset():
  hashes = mix(np.arange(10_000))
  third, half = in_sample(hashes, 1 / 3), in_sample(hashes, 0.5)
  assert abs(third.mean() - 1 / 3) < 0.02 and np.all(half[third])
  assert in_sample(hashes, 1.0).all() and not in_sample(hashes, 0.0).any()


def test_partitions_are_ascending_ranges():
  hashes = np.sort(mix(np.arange(1000)))
  parts = partition(hashes, 7)
  assert np.all(np.diff(parts) >= 0) and parts.min() == 0 and parts.max() == 6
  assert partition(np.array([2**64 - 1], np.uint64), 2**20)[0] == 2**20 - 1
  assert partition(hashes, 1).max() == 0


def test_sequences_of_all_groups_have_hashes_of_their_own():
  """Also where the sum of a group's hash and a sequence's number is beyond 64 bits."""
  job = PackJob(
    work="",
    directories={},
    config=PackConfig(seed=3),
    eot_id=0,
    dtype="uint16",
    branching=2,
    pieces={},
    random_leaves=None,
  )
  bases = [int(base) for base in job.mix(np.arange(100), 3)] + [2**64 - 1]
  hashes = {job.sequence_hash(base, number) for base in bases for number in range(100)}
  assert len(hashes) == 101 * 100
  assert all(0 <= value < 2**64 for value in hashes)
