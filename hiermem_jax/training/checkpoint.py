"""Checkpoints of a run, through orbax: asynchronous, atomic, restored onto whatever mesh is given."""

import dataclasses
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, MemoryConfig
from hiermem_jax.parallel import distributed
from hiermem_jax.parallel.mesh import DEFAULT_RULES, Rules
from hiermem_jax.training.state import TrainState, abstract_arrays, check_mesh, init_params


class Model(NamedTuple):
  """A trained model as evaluation and later phases need it."""

  anchor: AnchorConfig
  memory: MemoryConfig | None
  params: dict[str, Any]  # "anchor", and "bank" when there is a memory
  metadata: dict[str, Any]  # as saved: step, tree and tokenizer fingerprints


class CheckpointStore:
  """The checkpoints of one run directory.

  A checkpoint is four items: `anchor` and `bank` (parameters), `optimizer` (its state), `metadata` (JSON: both
  configurations, the step, the fingerprints of tree and tokenizer). Evaluation and later phases leave the optimizer.
  """

  def __init__(self, run_dir: str, keep: int = 2):
    self._manager = ocp.CheckpointManager(
      os.path.abspath(os.path.join(run_dir, "checkpoints")),
      options=ocp.CheckpointManagerOptions(max_to_keep=keep),
      item_names=("anchor", "bank", "optimizer", "metadata"),
    )

  @property
  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint, as the first process sees it; every process must ask."""
    step = self._manager.latest_step()
    step = distributed.from_first(-1 if step is None else step)
    return None if step < 0 else step

  def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
    """Starts saving; training may go on while the arrays are written."""
    step = int(state.step)
    items = {name: ocp.args.StandardSave(tree) for name, tree in state.params.items()}
    items["optimizer"] = ocp.args.StandardSave(state.opt_state)
    items["metadata"] = ocp.args.JsonSave(metadata | {"step": step})
    self._manager.save(step, args=ocp.args.Composite(**items))

  def metadata(self) -> dict[str, Any]:
    """The metadata of the newest checkpoint."""
    arguments = ocp.args.Composite(metadata=ocp.args.JsonRestore())
    return self._manager.restore(self.latest_step, args=arguments)["metadata"]

  def restore(self, state: TrainState) -> TrainState:
    """The newest checkpoint, laid out like `state`, whose leaves may be abstract; the saver's mesh may be another."""
    step = self.latest_step
    items = {name: ocp.args.StandardRestore(tree) for name, tree in state.params.items()}
    items["optimizer"] = ocp.args.StandardRestore(state.opt_state)
    restored = self._manager.restore(step, args=ocp.args.Composite(**items))
    params = {name: restored[name] for name in state.params}
    step_array = jax.jit(lambda: jnp.int32(step), out_shardings=state.step.sharding)()
    return TrainState(step=step_array, params=params, opt_state=restored["optimizer"])

  def load_model(self, mesh: Mesh, rules: Rules = DEFAULT_RULES, *, bank: bool = True) -> Model:
    """Parameters of the newest checkpoint, on `mesh`; without the bank's where `bank` is False."""
    metadata = self.metadata()
    anchor = AnchorConfig(**metadata["anchor"])
    memory = None
    if metadata["memory"] and bank:
      memory = MemoryConfig(**metadata["memory"] | {"rows": tuple(metadata["memory"]["rows"])})
    check_mesh(mesh, anchor, memory)
    abstract = abstract_arrays(lambda: init_params(jax.random.key(0), anchor, memory), mesh, rules)
    items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    restored = self._manager.restore(self.latest_step, args=ocp.args.Composite(**items))
    return Model(anchor, memory, {name: restored[name] for name in abstract}, metadata)

  def wait(self) -> None:
    """Blocks until every save has been committed."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves and releases the manager."""
    self._manager.close()


def load_model(run_dir: str, mesh: Mesh, rules: Rules = DEFAULT_RULES, *, bank: bool = True) -> Model:
  """The newest checkpoint of a finished or running training in `run_dir`; see `CheckpointStore.load_model`.

  Raises:
    InputError: there is no checkpoint there.
  """
  if not os.path.isdir(os.path.join(run_dir, "checkpoints")):
    raise InputError(f"{run_dir}: no checkpoint there; train it first or bind another directory")
  store = CheckpointStore(run_dir)
  try:
    if store.latest_step is None:
      raise InputError(f"{run_dir}: no complete checkpoint there; train it first or bind another directory")
    return store.load_model(mesh, rules, bank=bank)
  finally:
    store.close()


def describe_model(anchor: AnchorConfig, memory: MemoryConfig | None) -> dict[str, Any]:
  """The configurations as the JSON that a checkpoint's metadata holds."""
  return {
    "anchor": dataclasses.asdict(anchor),
    "memory": None if memory is None else dataclasses.asdict(memory),
  }
