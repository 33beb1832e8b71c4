"""Held-out losses during training, in several modes of the memory, and the best model by one of them."""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hiermem_jax.models.bank import NO_MEMORY
from hiermem_jax.models.config import MemoryConfig, ModelConfig
from hiermem_jax.models.losses import anchor_losses
from hiermem_jax.parallel import batch_sharding, place_batch, with_fetched_block
from hiermem_jax.parallel.mesh import CONTEXT_AXIS, Rules
from hiermem_jax.training.checkpoint import CheckpointStore, DamagedCheckpointError

BEST, MAIN = "best", "main"
LOSS = "loss/validation"  # of what decides which model is the best
Mode = Literal["none", "generic", "fetched"]
Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]


class HeldOut(NamedTuple):
  """Held-out text that a run is measured on.

  Attributes:
    batches: of the main set; gives the same batches each time it is called; of each global batch, the sequences of this
      process.
    every: steps between measurements; the last step always has one.
    others: the same for further sets, by name.
    modes: memories that sequences are given: none, the generic one, or that of their own path. The last one decides, on
      the main set, which model is the best. A mode that the model has not the memory for is left out, see
      `measured_modes`.
  """

  batches: Batches
  every: int
  others: Mapping[str, Batches] = {}
  modes: Sequence[Mode] = ("fetched",)

  @property
  def sets(self) -> dict[str, Batches]:
    """All sets by name, the main one first."""
    return {MAIN: self.batches, **self.others}


def measured_modes(modes: Sequence[Mode], memory: MemoryConfig | None) -> tuple[Mode, ...]:
  """Those of some modes that a model has the memory for: without a bank none, and of a generic part no path.

  Each is there once, so that the last one stays the last.
  """
  if memory is None:
    return ("none",)
  if memory.part == "generic":
    modes = ["generic" if mode == "fetched" else mode for mode in modes]
  return tuple(reversed(dict.fromkeys(reversed(modes))))


def make_validation_losses(
  held_out: HeldOut, model: ModelConfig, mesh: Mesh, rules: Rules
) -> Callable[[dict[str, Any]], dict[str, float]]:
  """From parameters to mean cross-entropies (nats per token), in one pass over the held-out text.

  Returns:
    losses(params) -> by name of the scalar: `loss/validation/SET/MODE` of every set in every mode, and
    `loss/validation`, that of the main set in the last mode.
  """
  modes = measured_modes(held_out.modes, model.memory)

  def local(params, block, batch):
    losses, _ = anchor_losses(model.anchor, params, batch, block)
    weights = batch["decoder_loss_weights"]
    return jax.lax.psum(((losses * weights).sum(axis=-1), weights.sum(axis=-1)), CONTEXT_AXIS)

  def leaf(own: np.ndarray, mode: Mode) -> np.ndarray:
    """The leaf ids that sequences have in a mode, int32 [b]."""
    if model.memory is None or mode == "fetched":
      return own
    return np.full_like(own, NO_MEMORY if mode == "none" else model.memory.num_leaves)

  by_sequence = with_fetched_block(local, model, mesh, rules, out_specs=batch_sharding(mesh).spec, split_positions=True)

  @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
  def sums(params, leaf, batch):
    return jnp.stack([x.sum() for x in by_sequence(params, leaf, batch)])

  def losses(params) -> dict[str, float]:
    result: dict[str, float] = {}
    for name, batches in held_out.sets.items():
      totals = np.zeros((len(modes), 2))
      for batch in batches():
        placed = place_batch(batch, mesh)
        leaves = place_batch({mode: leaf(batch["memory_leaf"], mode) for mode in modes}, mesh)
        # Each is waited for: of several in flight, processes with CPU devices may run theirs in different orders.
        totals += [np.asarray(sums(params, leaves[mode], placed), np.float64) for mode in modes]
      result |= {f"{LOSS}/{name}/{mode}": float(loss / tokens) for mode, (loss, tokens) in zip(modes, totals)}
    return {LOSS: result[f"{LOSS}/{MAIN}/{modes[-1]}"]} | result

  return losses


class BestModel:
  """The model with the lowest held-out loss so far, in `RUN_DIR/best`; `load_model` reads it like any run."""

  def __init__(self, run_dir: str, metadata: Mapping[str, Any], mode: Mode = "fetched"):
    """Reads the loss of the best model so far, if the run is resumed; one that is damaged is set aside.

    Args:
      run_dir: of the training.
      metadata: kept with the model.
      mode: in which the main set's loss decides. A best model so far that another one decided counts for nothing.
    """
    self._metadata = dict(metadata) | {"validation_set": MAIN, "validation_mode": mode}
    self._store = CheckpointStore(os.path.join(run_dir, BEST), keep=1)
    self.loss = float("inf")
    while self._store.latest_step is not None:
      try:
        held = self._store.metadata()
        if held.get("validation_mode", mode) == mode:
          self.loss = held["validation_loss"]
        break
      except DamagedCheckpointError as error:
        logging.warning("%s; set aside as %s", str(error).split("; resume", 1)[0], self._store.set_aside())

  def offer(self, step: int, params: Any, loss: float) -> None:
    """Keeps the parameters if none before had a lower loss."""
    if loss >= self.loss:
      return
    self.loss = loss
    what = self._metadata["validation_set"], self._metadata["validation_mode"]
    logging.info("step %d: best held-out loss so far, %.4f (set %s, memory %s)", step, loss, *what)
    self._store.save_model(step, params, self._metadata | {"validation_loss": loss})

  def close(self) -> None:
    """Waits until it is written."""
    self._store.close()
