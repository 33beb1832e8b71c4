"""Sequences, the same for every test of this folder, and packed datasets of them."""

import numpy as np
import pytest

S = 16


@pytest.fixture(scope="session")
def make_sequences():
  """A function from a number of sequences to leaves [n], targets [n, 16] and segments [n, 16]."""

  def make(count):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, S + 1, count)
    segments = (np.arange(S) < sizes[:, None]).astype(np.int32)
    targets = rng.integers(1, 100, (count, S), dtype=np.int32) * segments
    return rng.choice([3, 9, 69_999], count), targets, segments

  return make


@pytest.fixture
def write(write_packed, make_sequences):
  """Writes the first of the sequences."""
  return lambda directory, count=11, **fields: write_packed(
    str(directory), zip(*make_sequences(count)), num_leaves=70_000, **fields
  )
