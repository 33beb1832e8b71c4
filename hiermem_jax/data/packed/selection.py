"""Parts of a packed dataset: the sequences of one cluster, and held-out batches for validation."""

from collections.abc import Iterator

import numpy as np

from hiermem_jax.data.packed.batches import to_batch
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.errors import InputError


def below_cluster(dataset: PackedDataset, cluster: int, branching: int) -> np.ndarray:
  """Numbers of the sequences whose leaves lie below a cluster of level 1: int64 [n].

  Args:
    dataset: the dataset.
    cluster: number of the cluster.
    branching: of the tree.
  """
  return np.flatnonzero(dataset.leaves() // (dataset.manifest.num_leaves // branching) == cluster)


class HeldOutBatches:
  """Some sequences of a dataset in batches, the same ones each time.

  The last batch is filled up with sequences whose tokens have a loss weight of 0.
  """

  def __init__(
    self,
    dataset: PackedDataset,
    *,
    sequences: np.ndarray,
    batch_size: int,
    positions: np.ndarray,
  ):
    """Sets up the batches; nothing is read yet.

    Args:
      dataset: where sequences are read from.
      sequences: integer [n], numbers of the sequences.
      batch_size: number of sequences in a global batch.
      positions: integer [b], the positions in a global batch that this process reads.

    Raises:
      InputError: there are no sequences.
    """
    if not len(sequences):
      raise InputError(f"{dataset.directory}: has no such sequences to validate on; prepare a larger one")
    self._dataset, self._sequences = dataset, sequences
    self._batch_size, self._positions = batch_size, positions

  def __call__(self) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's parts of the batches, in order (see batches.py)."""
    for start in range(0, len(self._sequences), self._batch_size):
      numbers = np.resize(self._sequences[start : start + self._batch_size], self._batch_size)[self._positions]
      batch = to_batch(*self._dataset.read(numbers), bos_id=self._dataset.manifest.bos_id)
      batch["decoder_loss_weights"] *= (start + self._positions < len(self._sequences))[:, None]
      yield batch
