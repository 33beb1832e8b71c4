"""Held-out loss during training, and the best model by it."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hiermem_jax.models.config import ModelConfig
from hiermem_jax.models.losses import anchor_losses
from hiermem_jax.parallel import batch_sharding, place_batch, with_fetched_block
from hiermem_jax.parallel.mesh import CONTEXT_AXIS, Rules
from hiermem_jax.training.checkpoint import CheckpointStore, DamagedCheckpointError

BEST = "best"


class HeldOut(NamedTuple):
  """Held-out text that a run is measured on.

  Attributes:
    batches: gives the same batches each time it is called; of each global batch, the sequences of this process.
    every: steps between measurements; the last step always has one.
  """

  batches: Callable[[], Iterable[Mapping[str, np.ndarray]]]
  every: int


def make_validation_loss(
  held_out: HeldOut, model: ModelConfig, mesh: Mesh, rules: Rules
) -> Callable[[dict[str, Any]], float]:
  """From parameters to the mean cross-entropy (nats per token) of the held-out text, each sequence with its memory."""

  def local(params, block, batch):
    losses, _ = anchor_losses(model.anchor, params, batch, block)
    weights = batch["decoder_loss_weights"]
    return jax.lax.psum(((losses * weights).sum(axis=-1), weights.sum(axis=-1)), CONTEXT_AXIS)

  by_sequence = with_fetched_block(local, model, mesh, rules, out_specs=batch_sharding(mesh).spec, split_positions=True)

  @jax.jit
  def sums(params, batch):
    totals = jnp.stack([x.sum() for x in by_sequence(params, batch["memory_leaf"], batch)])
    return jax.lax.with_sharding_constraint(totals, NamedSharding(mesh, PartitionSpec()))

  def loss(params) -> float:
    totals = np.zeros(2)
    for batch in held_out.batches():
      totals += np.asarray(sums(params, place_batch(batch, mesh)), np.float64)
    return float(totals[0] / totals[1])

  return loss


class BestModel:
  """The model with the lowest held-out loss so far, in `RUN_DIR/best`; `load_model` reads it like any run."""

  def __init__(self, run_dir: str, metadata: Mapping[str, Any]):
    """Reads the loss of the best model so far, if the run is resumed; one that is damaged is set aside."""
    self._metadata = dict(metadata)
    self._store = CheckpointStore(os.path.join(run_dir, BEST), keep=1)
    self.loss = float("inf")
    while self._store.latest_step is not None:
      try:
        self.loss = self._store.metadata()["validation_loss"]
        break
      except DamagedCheckpointError as error:
        logging.warning("%s; set aside as %s", str(error).split("; resume", 1)[0], self._store.set_aside())

  def offer(self, step: int, params: Any, loss: float) -> None:
    """Keeps the parameters if none before had a lower loss."""
    if loss >= self.loss:
      return
    self.loss = loss
    logging.info("step %d: best held-out loss so far, %.4f", step, loss)
    self._store.save_model(step, params, self._metadata | {"validation_loss": loss})

  def close(self) -> None:
    """Waits until it is written."""
    self._store.close()
