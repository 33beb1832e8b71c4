"""Parts of a packed dataset: the sequences below one cluster, and the first sequences as held-out batches."""

from collections.abc import Iterator

import numpy as np

from hiermem_jax.data.packed.batches import to_batch
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.errors import InputError


def below_cluster(dataset: PackedDataset, cluster: int, branching: int) -> np.ndarray:
  """Numbers of the sequences whose leaf lies below a level-1 cluster of a tree with that branching, int64 [n]."""
  return np.flatnonzero(dataset.leaves() // (dataset.manifest.num_leaves // branching) == cluster)


class HeldOutBatches:
  """The first sequences of a dataset in batches, the same each time they are asked for.

  The last batch is filled up with sequences whose tokens have no weight.
  """

  def __init__(
    self,
    dataset: PackedDataset,
    *,
    sequences: np.ndarray,
    batch_size: int,
    positions: np.ndarray,
    leaf: int | None = None,
  ):
    """Chooses the sequences.

    Args:
      dataset: the dataset.
      sequences: integer [n], numbers of its sequences.
      batch_size: sequences of a global batch.
      positions: integer [b], the positions in a global batch that this process reads.
      leaf: leaf id that all sequences get; None leaves them their own.

    Raises:
      InputError: there are no sequences.
    """
    if not len(sequences):
      raise InputError(f"{dataset.directory}: has no such sequences to validate on; prepare a larger one")
    self._dataset, self._sequences, self._leaf = dataset, sequences, leaf
    self._batch_size, self._positions = batch_size, positions

  def __call__(self) -> Iterator[dict[str, np.ndarray]]:
    """Gives the batches in their order; see `packed.batches` for what a batch holds."""
    for start in range(0, len(self._sequences), self._batch_size):
      numbers = np.resize(self._sequences[start : start + self._batch_size], self._batch_size)[self._positions]
      batch = to_batch(*self._dataset.read(numbers), bos_id=self._dataset.manifest.bos_id)
      batch["decoder_loss_weights"] *= (start + self._positions < len(self._sequences))[:, None]
      if self._leaf is not None:
        batch["memory_leaf"] = np.full_like(batch["memory_leaf"], self._leaf)
      yield batch
