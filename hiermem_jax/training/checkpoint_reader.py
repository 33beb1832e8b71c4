"""Reads the checkpoints of a run, checks them, and says apart a damaged one from a place that cannot be read now.

Every process reads its own part and waits for nobody while it reads; then all agree. A digest of every item, computed
on the devices when it was saved and again when it is restored, finds what decoding does not.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from hiermem_jax import files
from hiermem_jax.errors import InputError
from hiermem_jax.models.config import ModelConfig
from hiermem_jax.models.model import Model, init_params
from hiermem_jax.parallel import agreement, distributed
from hiermem_jax.parallel.layout import abstract_arrays, bytes_per_device, check_mesh
from hiermem_jax.parallel.mesh import DEFAULT_RULES, Rules
from hiermem_jax.training.digest import array_digests, combined
from hiermem_jax.training.state import TrainState

T = TypeVar("T")

DIRECTORY = "checkpoints"
READ_SECONDS = 600.0  # that reading may take, and more for what is large:
_SLOWEST = 20e6  # bytes per second of a host
_DAMAGE, _OUTSIDE = "damage", "outside"
# What tensorstore's messages begin with when the bytes are not what it wrote, or are not there.
_DECODING = ("DATA_LOSS", "NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE")
_STATUS = re.compile(r"([A-Z]+(?:_[A-Z]+)*): ")


class DamagedCheckpointError(InputError):
  """A checkpoint holds something else than was saved, or a part of it is missing."""


class UnreadableCheckpointError(InputError):
  """A checkpoint could not be read for a reason that is not in it: the file system, the network, memory, time."""


class CheckpointReader:
  """The checkpoints of one run directory, which a run may be writing.

  A checkpoint is four items: `anchor` and `bank` (parameters), `optimizer` (its state), `metadata` (JSON: both
  configurations, the step, the fingerprints of tree and tokenizer, the digests). Evaluation and later phases leave the
  optimizer.

  All processes call its methods together, and all get the same exception. None waits for another longer than ten
  minutes, and the time that its part takes at 20 MB/s.
  """

  def __init__(self, run_dir: str):
    """Reads nothing yet; `checkpoints/` of `run_dir` need not be there."""
    self._run_dir, self._directory = run_dir, os.path.abspath(os.path.join(run_dir, DIRECTORY))

  @property
  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint, as the first process sees it; every process must ask."""

    def newest() -> int:
      return max(ocp.utils.checkpoint_steps(self._directory), default=-1) if distributed.is_first() else -1

    step = distributed.from_first(self._agreed(self._directory, newest))
    return None if step < 0 else step

  def require_step(self, setting: str) -> int:
    """Step of the newest complete checkpoint; `setting` is what to bind where this is the wrong directory.

    Raises:
      InputError: there is none. The message names the trainings in and beside the directory.
    """
    if (step := self.latest_step) is not None:
      return step
    complete = "complete " if os.path.isdir(self._directory) else ""
    trained = files.beside(self._run_dir, DIRECTORY)
    raise InputError(f"{self._run_dir}: no {complete}checkpoint there{trained}; train it first or bind {setting}")

  def metadata(self) -> dict[str, Any]:
    """The metadata of the newest checkpoint.

    Raises:
      DamagedCheckpointError: they are not what was saved.
      UnreadableCheckpointError: a process cannot read them.
    """
    return self._metadata(self.latest_step)

  def restore(self, state: TrainState) -> TrainState:
    """Restores the newest checkpoint onto the layout of `state`, whose arrays may be abstract.

    The checkpoint may have been saved from another mesh.

    Raises:
      DamagedCheckpointError: it is not what was saved.
      UnreadableCheckpointError: a process cannot read its part.
      InputError: it holds no optimizer state.
    """
    step = self.latest_step
    metadata = self._metadata(step)
    items = state.params | {"optimizer": state.opt_state}
    if "optimizer" not in metadata["digests"]:
      raise InputError(
        f"{self._path(step)}: parameters alone, which cannot be resumed; use another directory, with train.init_from"
        " and train.init_bank_from naming this one"
      )
    restored = self._restore_arrays(step, items, metadata)
    scalars = [
      jax.jit(lambda value=value: jnp.int32(value), out_shardings=state.step.sharding)()
      for value in (metadata["step"], metadata["skipped"])
    ]
    params = {name: restored[name] for name in state.params}
    return TrainState(step=scalars[0], skipped=scalars[1], params=params, opt_state=restored["optimizer"])

  def load_model(self, mesh: Mesh, rules: Rules = DEFAULT_RULES, *, bank: bool = True) -> Model:
    """Restores the parameters of the newest checkpoint onto `mesh`, with the bank or the anchor alone.

    Raises:
      DamagedCheckpointError: it is not what was saved.
      UnreadableCheckpointError: a process cannot read its part.
    """
    step = self.latest_step
    metadata = self._metadata(step)
    config = ModelConfig.from_json(metadata if bank else metadata | {"memory": None})
    check_mesh(mesh, config)
    abstract = abstract_arrays(lambda: init_params(jax.random.key(0), config), mesh, rules)
    return Model(config, self._restore_arrays(step, abstract, metadata), metadata)

  def _metadata(self, step: int | None) -> dict[str, Any]:
    return self._agreed(self._path(step), lambda: self._read_metadata(step))

  def _read_metadata(self, step: int | None) -> dict[str, Any]:
    """In this process."""
    metadata = dict(self._read(step, "metadata", ocp.args.JsonRestore()) or {})
    if metadata.pop("sha256", None) != sha256(metadata):
      raise DamagedCheckpointError("item metadata is not what was saved")
    return metadata

  def _restore_arrays(self, step: int | None, abstract: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    def read() -> dict[str, Any]:
      return {name: self._read(step, name, ocp.args.StandardRestore(tree)) for name, tree in abstract.items()}

    restored = self._agreed(self._path(step), read, self._seconds(abstract))
    for name in abstract:  # all processes have all of it, and compute the same
      self._require_digest(step, name, array_digests(restored[name]), metadata)
    return restored

  def _seconds(self, abstract: Any) -> float:
    """How long reading these arrays may take."""
    return READ_SECONDS + bytes_per_device(abstract) * jax.local_device_count() / _SLOWEST

  def _require_digest(self, step: int | None, item: str, found: dict[str, str], metadata: dict[str, Any]) -> None:
    """Raises DamagedCheckpointError where an item's digest, of its arrays', is another than when it was saved."""
    if combined(found.values()) != metadata["digests"][item]:
      saved = metadata.get("array_digests", {}).get(item, {})
      wrong = [array for array, value in found.items() if value != saved.get(array, value)]
      reason = f"item {item}{f', array {wrong[0]},' if wrong else ''} is not what was saved"
      raise DamagedCheckpointError(_damaged(self._path(step), reason))

  def _read(self, step: int | None, item: str, how: ocp.args.CheckpointArgs) -> Any:
    """One item, in this process, whatever the others do."""
    path = self._path(step)
    if not os.path.isdir(path):
      raise OSError(f"{path} is not there; all hosts must share the run directory")
    with _of_item(item), _alone(ocp.CompositeCheckpointHandler()) as checkpointer:
      return checkpointer.restore(path, args=ocp.args.Composite(**{item: how}))[item]

  def _read_shapes(self, step: int, item: str) -> list[Any]:
    """Shapes and types of an item's arrays, as `shapes` orders them, in this process."""
    handler = ocp.CompositeCheckpointHandler(**{item: ocp.StandardCheckpointHandler()})
    with _of_item(item), _alone(handler) as checkpointer:
      return shapes(checkpointer.metadata(self._path(step)).item_metadata[item].tree)

  def _agreed(self, place: str, read: Callable[[], T], seconds: float = READ_SECONDS) -> T:
    """What `read` gives, once it has succeeded in all processes; tries again what may pass.

    Raises:
      DamagedCheckpointError: a process found damage.
      UnreadableCheckpointError: a process failed for another reason, and would fail again.
    """
    outcome = agreement.attempt(
      lambda: files.patiently(read, lambda error: _kind(error) == _OUTSIDE), seconds, describe=describe
    )
    if not outcome.failures:
      return outcome.value  # type: ignore[return-value]  # T may have None among its values
    reasons = "; ".join(map(str, outcome.failures))
    if any(failure.kind == _DAMAGE for failure in outcome.failures):
      raise DamagedCheckpointError(_damaged(place, reasons)) from outcome.error
    raise UnreadableCheckpointError(
      f"{place} could not be read ({reasons}); that says nothing against the checkpoint: make the place reachable and"
      " run the same command again"
    ) from outcome.error

  def _path(self, step: int | None) -> str:
    return os.path.join(self._directory, str(step))


def _alone(handler: Any) -> ocp.Checkpointer:
  """Reads as if there was no other process: no barrier, in which one that has failed would leave the rest."""
  own = jax.process_index()
  options = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
  return ocp.Checkpointer(handler, multiprocessing_options=options)


@contextlib.contextmanager
def _of_item(item: str) -> Iterator[None]:
  """Notes the item in whatever is raised."""
  try:
    yield
  except Exception as error:
    error.add_note(f"item {item}")
    raise


def shapes(tree: Any) -> list[Any]:
  """Shapes and types of the arrays of a tree, in an order that does not depend on the tree."""
  return sorted((tuple(x.shape), str(x.dtype)) for x in jax.tree.leaves(tree) if hasattr(x, "shape"))


def describe(error: BaseException) -> tuple[str, str]:
  """Whether an error is damage or comes from outside the checkpoint, and its first line, with item and file."""
  chain = agreement.causes(error)
  told = next((each for each in chain[::-1] if str(each)), error)
  text = (str(told).strip().splitlines() or [""])[0].partition(" [tensorstore_spec")[0]
  if len(text) > 300:  # the file and the cause are last
    text = f"{text[:40]} ... {text[-240:]}"
  if not isinstance(told, DamagedCheckpointError):
    text = f"{type(told).__name__}: {text}"
  notes = dict.fromkeys(note for each in chain for note in getattr(each, "__notes__", ()))
  return _kind(error), ", ".join([*notes, text])


def _kind(error: BaseException) -> str:
  """Damage is what shows that bytes are wrong or missing; all else says nothing of the checkpoint."""
  kinds = [_kind_of_one(each) for each in agreement.causes(error)]
  return _DAMAGE if _DAMAGE in kinds and _OUTSIDE not in kinds else _OUTSIDE


def _kind_of_one(error: BaseException) -> str | None:
  missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
  if isinstance(error, (DamagedCheckpointError, *missing)):
    return _DAMAGE
  if isinstance(error, (OSError, MemoryError)):
    return _OUTSIDE
  if status := _STATUS.match(str(error)):
    return _DAMAGE if status[1] in _DECODING else _OUTSIDE
  decoding = (ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError)
  return _DAMAGE if isinstance(error, decoding) else None


def _damaged(path: str, reason: str) -> str:
  return (
    f"{path} is damaged ({reason}); resume the training with --skip_damaged_checkpoints, which sets it aside and takes"
    " the one before"
  )


def sha256(metadata: dict[str, Any]) -> str:
  """Checksum of metadata, which are kept with it."""
  return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def load_model(
  run_dir: str, mesh: Mesh, rules: Rules = DEFAULT_RULES, *, bank: bool = True, setting: str = "another directory"
) -> Model:
  """The newest checkpoint of a finished or running training in `run_dir`; see `CheckpointReader.load_model`.

  `setting` is what to bind where `run_dir` is the wrong one.

  Raises:
    InputError: there is no checkpoint there, or it is damaged. The message names the trainings in and beside it.
  """
  reader = CheckpointReader(run_dir)
  reader.require_step(setting)
  return reader.load_model(mesh, rules, bank=bank)
