"""Checkpoints of a run, through orbax: asynchronous, atomic, restored onto whatever mesh is given, checked.

A checkpoint that could not be written leaves the ones before it. One that was damaged afterwards is found: its metadata
hold a digest of every item, computed on the devices when it was saved and again when it is restored.
"""

import contextlib
import hashlib
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import Mesh

from hiermem_jax import files
from hiermem_jax.errors import InputError
from hiermem_jax.models.config import ModelConfig
from hiermem_jax.models.model import Model, init_params
from hiermem_jax.parallel import distributed
from hiermem_jax.parallel.layout import abstract_arrays, check_mesh
from hiermem_jax.parallel.mesh import DEFAULT_RULES, Rules
from hiermem_jax.training.digest import digest
from hiermem_jax.training.state import TrainState

DIRECTORY, DAMAGED = "checkpoints", "damaged"


class DamagedCheckpointError(InputError):
  """A checkpoint cannot be read, or holds something else than was saved."""


class CheckpointStore:
  """The checkpoints of one run directory.

  A checkpoint is four items: `anchor` and `bank` (parameters), `optimizer` (its state), `metadata` (JSON: both
  configurations, the step, the fingerprints of tree and tokenizer, the digests). Evaluation and later phases leave the
  optimizer.

  Attributes:
    failed: saves that did not succeed.
  """

  def __init__(self, run_dir: str, keep: int = 2, keep_every: int | None = None, *, read_only: bool = False):
    """Opens the checkpoints.

    Args:
      run_dir: where `checkpoints/` is, or will be.
      keep: how many of the newest are kept.
      keep_every: steps; checkpoints at multiples of it are kept for good.
      read_only: do not remove unfinished checkpoints. The run that writes them may be alive.
    """
    self.failed = 0
    self._run_dir, self._directory = run_dir, os.path.abspath(os.path.join(run_dir, DIRECTORY))
    self._options = ocp.CheckpointManagerOptions(create=False)
    if not read_only:
      self._options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, keep_period=keep_every, cleanup_tmp_directories=True
      )
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    items = ("anchor", "bank", "optimizer", "metadata")
    return ocp.CheckpointManager(self._directory, options=self._options, item_names=items)

  @property
  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint, as the first process sees it; every process must ask."""
    step = self._manager.latest_step()
    step = distributed.from_first(-1 if step is None else step)
    return None if step < 0 else step

  def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
    """Starts saving; training may go on while the arrays are written. A failure is logged and counted, not raised."""
    metadata = metadata | {"step": int(state.step), "skipped": int(state.skipped)}
    self._save(state.params | {"optimizer": state.opt_state}, metadata)

  def save_model(self, step: int, params: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Starts saving parameters alone, which `load_model` reads and no training resumes from."""
    self._save(params, metadata | {"step": step})

  def _save(self, items: dict[str, Any], metadata: dict[str, Any]) -> None:
    self.wait()
    digests = {name: digest(tree) for name, tree in items.items()}
    arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    metadata = metadata | {"digests": digests}
    arguments["metadata"] = ocp.args.JsonSave(metadata | {"sha256": _sha256(metadata)})
    with self._survive(f"step {metadata['step']}"):
      self._manager.save(metadata["step"], args=ocp.args.Composite(**arguments), force=True)

  def metadata(self) -> dict[str, Any]:
    """The metadata of the newest checkpoint.

    Raises:
      DamagedCheckpointError: they cannot be read.
    """
    metadata = dict(self._restore({"metadata": ocp.args.JsonRestore()})["metadata"] or {})
    if metadata.pop("sha256", None) != _sha256(metadata):
      raise DamagedCheckpointError(self._damaged("item metadata is not what was saved"))
    return metadata

  def restore(self, state: TrainState) -> TrainState:
    """Restores the newest checkpoint onto the layout of `state`, whose arrays may be abstract.

    The checkpoint may have been saved from another mesh.

    Raises:
      DamagedCheckpointError: it cannot be read or is not what was saved.
      InputError: it holds no optimizer state.
    """
    step, metadata = self.latest_step, self.metadata()
    items = state.params | {"optimizer": state.opt_state}
    if "optimizer" not in metadata["digests"]:
      raise InputError(
        f"{self._path(step)}: parameters alone, which cannot be resumed; use another directory, with train.init_from"
        " and train.init_bank_from naming this one"
      )
    restored = self._restore_arrays(items, metadata)
    scalars = [
      jax.jit(lambda value=value: jnp.int32(value), out_shardings=state.step.sharding)()
      for value in (metadata["step"], metadata["skipped"])
    ]
    params = {name: restored[name] for name in state.params}
    return TrainState(step=scalars[0], skipped=scalars[1], params=params, opt_state=restored["optimizer"])

  def load_model(self, mesh: Mesh, rules: Rules = DEFAULT_RULES, *, bank: bool = True) -> Model:
    """Restores the parameters of the newest checkpoint onto `mesh`, with the bank or the anchor alone.

    Raises:
      DamagedCheckpointError: it cannot be read or is not what was saved.
    """
    metadata = self.metadata()
    config = ModelConfig.from_json(metadata if bank else metadata | {"memory": None})
    check_mesh(mesh, config)
    abstract = abstract_arrays(lambda: init_params(jax.random.key(0), config), mesh, rules)
    return Model(config, self._restore_arrays(abstract, metadata), metadata)

  def set_aside(self) -> str:
    """Moves the newest checkpoint to `damaged/`, so that the one before it becomes the newest; returns the new path."""
    step = self.latest_step
    target = os.path.join(self._run_dir, DAMAGED, str(step))

    def move():
      os.makedirs(os.path.dirname(target), exist_ok=True)
      os.replace(self._path(step), target)

    distributed.on_first(move)
    self._manager.reload()
    return target

  def wait(self) -> None:
    """Blocks until the save that was started is committed, or has failed, which is logged and counted."""
    with self._survive("the checkpoint before"):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves and releases the manager."""
    self.wait()
    with contextlib.suppress(Exception):  # `wait` has logged it already
      self._manager.close()

  def _path(self, step: int | None) -> str:
    return os.path.join(self._directory, str(step))

  @contextlib.contextmanager
  def _survive(self, what: str):
    """Logs and counts a failure to write, forgets the unfinished checkpoint, and goes on."""
    try:
      yield
    except Exception as error:  # whatever the file system or the bucket came up with
      self.failed += 1
      logging.warning(
        "%s: %s could not be saved (%s); training goes on, and the last good checkpoint stays",
        self._directory,
        what,
        _first_line(error),
      )
      with contextlib.suppress(Exception):
        self._manager.close()
      self._manager = self._open()  # removes what is half-written

  def _restore_arrays(self, abstract: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    restored = self._restore({name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()})
    for name in abstract:
      if digest(restored[name]) != metadata["digests"][name]:
        raise DamagedCheckpointError(self._damaged(f"item {name} is not what was saved"))
    return {name: restored[name] for name in abstract}

  def _restore(self, arguments: dict[str, Any]) -> Any:
    try:
      return self._manager.restore(self.latest_step, args=ocp.args.Composite(**arguments))
    except Exception as error:  # orbax and tensorstore have no common one
      raise DamagedCheckpointError(self._damaged(_first_line(error))) from error

  def _damaged(self, reason: str) -> str:
    return (
      f"{self._path(self.latest_step)} is damaged ({reason}); resume the training with --skip_damaged_checkpoints,"
      " which sets it aside and takes the one before"
    )


def _sha256(metadata: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {lines[0][:200]}"


def load_model(
  run_dir: str, mesh: Mesh, rules: Rules = DEFAULT_RULES, *, bank: bool = True, setting: str = "another directory"
) -> Model:
  """The newest checkpoint of a finished or running training in `run_dir`; see `CheckpointStore.load_model`.

  `setting` is what to bind where `run_dir` is the wrong one.

  Raises:
    InputError: there is no checkpoint there, or it is damaged. The message names the trainings in and beside it.
  """
  trained = files.beside(run_dir, DIRECTORY)
  if not os.path.isdir(os.path.join(run_dir, DIRECTORY)):
    raise InputError(f"{run_dir}: no checkpoint there{trained}; train it first or bind {setting}")
  store = CheckpointStore(run_dir, read_only=True)
  try:
    if store.latest_step is None:
      raise InputError(f"{run_dir}: no complete checkpoint there{trained}; train it first or bind {setting}")
    return store.load_model(mesh, rules, bank=bank)
  finally:
    store.close()
