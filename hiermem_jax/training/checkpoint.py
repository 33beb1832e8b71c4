"""Checkpoints of a run, through orbax: asynchronous, atomic, written by all processes or by none.

A checkpoint that could not be written leaves the ones before it, and the run goes on. checkpoint_reader.py reads them.
"""

import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging

from hiermem_jax import files
from hiermem_jax.parallel import agreement, distributed
from hiermem_jax.training.checkpoint_reader import (
  DIRECTORY,
  CheckpointReader,
  DamagedCheckpointError,
  UnreadableCheckpointError,
  describe,
  load_model,
  sha256,
  shapes,
)
from hiermem_jax.training.digest import array_digests, combined
from hiermem_jax.training.state import TrainState

__all__ = [
  "DIRECTORY",
  "CheckpointReader",
  "CheckpointStore",
  "DamagedCheckpointError",
  "UnreadableCheckpointError",
  "load_model",
]

T = TypeVar("T")

DAMAGED = "damaged"
SAVE_SECONDS = 1200  # that writing may take
_PATIENCE = 10.0  # seconds for a save that has failed elsewhere to end here
_ITEMS = ("anchor", "bank", "optimizer", "metadata")
_managers = itertools.count()


class CheckpointStore(CheckpointReader):
  """The checkpoints of one run directory, for the run that writes them.

  All processes call its methods together. A save that fails in one of them fails in all, and all go on: at once, or,
  where it hangs, after 20 minutes. A process writes one checkpoint at a time, whatever store that belongs to.

  Attributes:
    failed: saves that did not succeed, the same number in all processes.
  """

  _writing: ClassVar["CheckpointStore | None"] = None  # the store whose save may not be finished

  def __init__(self, run_dir: str, keep: int = 2, keep_every: int | None = None):
    """Touches nothing yet.

    Args:
      run_dir: where `checkpoints/` is, or will be.
      keep: how many of the newest are kept.
      keep_every: steps; checkpoints at multiples of it are kept for good.

    Raises:
      InputError: the path has characters that orbax takes for a pattern.
    """
    super().__init__(run_dir)
    files.refuse_pattern(run_dir)
    self.failed = 0
    self._keep, self._keep_every = keep, keep_every
    self._manager: ocp.CheckpointManager | None = None
    self._meeting: agreement.Meeting | None = None
    self._saving: int | None = None  # step of the save that may not be finished
    self._shapes: dict[str, list[Any]] | None = None  # of the first save, until its index has been read back
    self._readable = False

  def save(self, state: TrainState, metadata: Mapping[str, Any]) -> None:
    """Starts saving; training may go on while the arrays are written. A failure is logged and counted, not raised.

    The first save is waited for, and its index read back.

    Raises:
      DamagedCheckpointError: that is not possible.
    """
    metadata = {**metadata, "step": int(state.step), "skipped": int(state.skipped)}
    self._save(state.params | {"optimizer": state.opt_state}, metadata)

  def save_model(self, step: int, params: dict[str, Any], metadata: Mapping[str, Any]) -> None:
    """Starts saving parameters alone, which `load_model` reads and no training resumes from; see `save`."""
    self._save(params, {**metadata, "step": step})

  def _save(self, items: dict[str, Any], metadata: dict[str, Any]) -> None:
    if CheckpointStore._writing is not None:
      CheckpointStore._writing.wait()
    step, sums = metadata["step"], {name: array_digests(tree) for name, tree in items.items()}
    metadata = metadata | {"digests": {name: combined(x.values()) for name, x in sums.items()}, "array_digests": sums}
    arguments: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    arguments["metadata"] = ocp.args.JsonSave(metadata | {"sha256": sha256(metadata)})
    manager = self._manager or self._tried(step, self._open())

    def begin(manager: ocp.CheckpointManager) -> ocp.CheckpointManager:
      manager.save(step, args=ocp.args.Composite(**arguments), force=True)
      return manager

    if manager is None or not (manager := self._tried(step, lambda: begin(manager))):
      return
    self._manager, self._saving, CheckpointStore._writing = manager, step, self
    if not self._readable:
      self._shapes = {name: shapes(tree) for name, tree in items.items()}
      self.wait()

  def set_aside(self) -> str:
    """Moves the newest checkpoint to `damaged/`, so that the one before it becomes the newest; returns the new path."""
    step = self.latest_step
    target = os.path.join(self._run_dir, DAMAGED, str(step))

    def move() -> None:
      if distributed.is_first():
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(self._path(step), target)

    self._agreed(self._path(step), move)
    return target

  def wait(self) -> None:
    """Blocks until the save that was started is committed, or has failed, which is logged and counted.

    Raises:
      DamagedCheckpointError: it was the first, and its index cannot be read back.
    """
    if self._saving is None or self._manager is None:
      return
    step, manager, self._saving = self._saving, self._manager, None

    def end() -> bool:
      manager.wait_until_finished()
      return True

    if self._tried(step, end) and not self._readable:
      self._check_readable(step)

  def close(self) -> None:
    """Waits for the save and releases the manager."""
    self.wait()
    if self._manager is not None:
      self._manager.close()
      self._manager = None

  def _tried(self, step: int, function: Callable[[], T]) -> T | None:
    """Does a part of a save; where it fails, in any process, logs and counts that, and forgets what is half-written."""
    outcome = agreement.attempt(function, SAVE_SECONDS + 60, describe=describe, patience=_PATIENCE)
    if not outcome.failures:
      return outcome.value
    self.failed += 1
    logging.warning(
      "%s: step %d could not be saved (%s); training goes on, and the last good checkpoint stays",
      self._directory,
      step,
      "; ".join(map(str, outcome.failures)),
    )
    if self._meeting is not None:
      self._meeting.call_off()
    self._manager = self._meeting = None  # the next one removes what is half-written
    return None

  def _open(self) -> Callable[[], ocp.CheckpointManager]:
    """Makes a manager whose barriers no other has: orbax counts how often each process came to each.

    A manager that has failed is followed by another for that reason.
    """
    options: dict[str, Any] = {"max_to_keep": self._keep, "keep_period": self._keep_every}
    asynchronous: dict[str, Any] = {"timeout_secs": SAVE_SECONDS, "create_directories_asynchronously": False}
    if jax.distributed.is_initialized():
      name = f"save-{next(_managers)}"
      self._meeting = asynchronous["barrier_sync_fn"] = agreement.Meeting(name)
      options["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
        active_processes=set(range(jax.process_count())), barrier_sync_key_prefix=name
      )

    def open_manager() -> ocp.CheckpointManager:
      os.makedirs(self._directory, exist_ok=True)
      made = ocp.CheckpointManagerOptions(
        create=False, cleanup_tmp_directories=True, async_options=ocp.AsyncOptions(**asynchronous), **options
      )
      return ocp.CheckpointManager(self._directory, options=made, item_names=_ITEMS)

    return open_manager

  def _check_readable(self, step: int) -> None:
    """Reads the index of the first save back: its metadata, and the shapes and types of its arrays.

    Raises:
      DamagedCheckpointError: that is not possible, so that no checkpoint of this run could be restored.
    """

    def read() -> None:
      if distributed.is_first():
        for item in self._read_metadata(step)["digests"]:
          if self._read_shapes(step, item) != (self._shapes or {})[item]:
            raise DamagedCheckpointError(f"item {item} has other arrays")

    try:
      self._agreed(self._path(step), read)
    except UnreadableCheckpointError as error:
      logging.warning("%s; the next one will be read back", error)
      return
    except DamagedCheckpointError as error:
      reason = str(error).split("; resume", 1)[0]
      raise DamagedCheckpointError(
        f"{reason} as soon as it has been saved, and so no checkpoint of this run could be restored; use another"
        " directory or file system"
      ) from error
    self._readable, self._shapes = True, None
