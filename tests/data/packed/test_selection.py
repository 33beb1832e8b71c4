"""Sequences of one cluster, and held-out batches: every sequence once, whatever the batch size and the processes."""

import numpy as np
import pytest

from hiermem_jax.data.packed.selection import HeldOutBatches, below_cluster
from hiermem_jax.errors import InputError

LEAVES = [0, 26, 9, 8, 17, 18, 9, 3]  # of a tree of 3 x 3 x 3 leaves


@pytest.fixture(scope="module")
def dataset(write_packed, tmp_path_factory):
  """Sequence i is [10 + i, 50] and padding."""
  sequences = [(leaf, np.array([10 + i, 50, 0]), np.array([1, 1, 0])) for i, leaf in enumerate(LEAVES)]
  return write_packed(str(tmp_path_factory.mktemp("packed") / "set"), sequences, num_leaves=27, num_shards=2)


@pytest.mark.parametrize("cluster", range(3))
def test_sequences_below_a_cluster(dataset, cluster):
  found = below_cluster(dataset, cluster, branching=3)
  assert found.tolist() == [i for i, leaf in enumerate(LEAVES) if 9 * cluster <= leaf < 9 * (cluster + 1)]


def held_out(dataset, batch_size, process=0, processes=1, **given):
  given = {"sequences": np.array([6, 1, 4, 2, 0])} | given
  positions = np.arange(batch_size)[process::processes]
  return HeldOutBatches(dataset, batch_size=batch_size, positions=positions, **given)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4, 6, 8])
def test_every_sequence_counts_once(dataset, batch_size, processes):
  for _ in range(2):  # the same each time
    seen = []
    for process in range(processes):
      batches = held_out(dataset, batch_size, process, processes)
      for batch in batches():
        assert batch["decoder_target_tokens"].shape == (batch_size // processes, 3)
        weighted = batch["decoder_loss_weights"].any(axis=1)
        seen += batch["decoder_target_tokens"][weighted, 0].tolist()
        assert batch["decoder_loss_weights"][weighted].tolist() == [[1, 1, 0]] * weighted.sum()
        assert batch["memory_leaf"].tolist() == [LEAVES[i - 10] for i in batch["decoder_target_tokens"][:, 0]]
    assert sorted(seen) == [10, 11, 12, 14, 16]


def test_no_sequences(dataset):
  with pytest.raises(InputError, match="has no such sequences to validate on; prepare a larger one"):
    held_out(dataset, 2, sequences=np.zeros(0, np.int64))
