"""The first state of a run: its own newest checkpoint, or parameters of other runs."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from hiermem_jax import run_identity
from hiermem_jax.errors import InputError
from hiermem_jax.models.bank import table_name
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.parallel.mesh import Rules
from hiermem_jax.training.checkpoint import CheckpointStore, DamagedCheckpointError
from hiermem_jax.training.state import TrainState
from hiermem_jax.training.stored_model import StoredModel

DATASETS = ("dataset_fingerprint", "validation_fingerprint")  # in the metadata of checkpoints
_TYPES = ("dtype", "gradient_dtype")  # fields of AnchorConfig


def resume(
  store: CheckpointStore, run_dir: str, metadata: Mapping[str, Any], abstract: TrainState, skip_damaged: bool
) -> TrainState:
  """The state of the newest checkpoint.

  Raises:
    InputError: it is of another model, tree or tokenizer, or damaged; with `skip_damaged`, all of them are.
  """
  while True:
    try:
      _check_resumable(run_dir, store.metadata(), metadata)
      return store.restore(abstract)
    except DamagedCheckpointError as error:
      if not skip_damaged:
        raise
      where = store.set_aside()
      logging.warning("%s; set aside as %s", str(error).split("; resume", 1)[0], where)
      if store.latest_step is None:
        raise InputError(
          f"{run_dir}: every checkpoint is damaged; restore one, or delete {where.rsplit('/', 1)[0]} and start again"
        ) from error


class Start:
  """Parameters that a run takes from the newest checkpoints of other runs. Those may have had another mesh."""

  def __init__(
    self,
    init_from: str | None,
    init_bank_from: str | None,
    *,
    model: ModelConfig,
    metadata: Mapping[str, Any],
    mesh: Mesh,
    rules: Rules,
  ):
    """Checks that they fit; no array is read yet.

    Args:
      init_from: run directory whose anchor to take, or None.
      init_bank_from: run directory whose bank to take, or None. Levels that it has no table for keep this run's own
        first values, so that a trained bank can be given another level.
      model: this run's anchor and memory.
      metadata: of this run's checkpoints; the tree's fingerprint must be the bank's.
      mesh: where to put the parameters.
      rules: how to lay them out.

    Raises:
      InputError: there is no checkpoint, or it does not fit; both sides are named.
    """
    self._anchor: StoredModel | None = None
    self._bank: StoredModel | None = None
    if init_from is not None:
      self._anchor = StoredModel(init_from, mesh, rules, bank=False, setting="train.init_from")
      held = self._anchor.config.anchor
      if not _same_parameters(held, model.anchor):
        raise InputError(f"{init_from}: its anchor is {held}, this run's is {model.anchor}; bind the same values")
    if init_bank_from is not None:
      self._bank = StoredModel(init_bank_from, mesh, rules, setting="train.init_bank_from")
      _check_bank(init_bank_from, self._bank.config, model)
      tree, wanted = self._bank.facts.get("tree_fingerprint"), metadata.get("tree_fingerprint")
      if tree != wanted:
        raise InputError(
          f"{init_bank_from}: its bank is of the tree {tree}, this run's dataset of {wanted}; use the ones of one tree"
        )

  def take(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """Puts what is taken in the place of a run's own first parameters.

    Each array is deleted before the one that takes its place is read, so that there is never more than one of them.

    Args:
      params: {"anchor": ..., "bank": {table name: ...}}, which must not be used afterwards.

    Raises:
      InputError: a checkpoint is damaged or cannot be read.
    """
    result = dict(params)
    if self._anchor is not None:
      jax.tree.map(lambda array: array.delete(), result["anchor"])
      result["anchor"] = self._anchor.anchor()
    if self._bank is not None:
      result["bank"] = dict(result["bank"])
      for name in self._bank.tables:
        result["bank"][name].delete()
        result["bank"][name] = self._bank.table(name)
      self._bank.check()
    return result


def _check_bank(source: str, held_model: ModelConfig, model: ModelConfig) -> None:
  """Raises InputError when tables of one model cannot be those of the other."""
  held, memory = held_model.memory, model.memory
  if held is None or memory is None:
    raise InputError(f"train.init_bank_from = {source}: its bank is {held}, this run's {memory}; both must have one")
  anchors = held_model.anchor, model.anchor
  sizes = {name: tuple(getattr(anchor, name) for anchor in anchors) for name in ("width", "num_layers")}
  sizes |= {"branching": (held.branching, memory.branching), "part": (held.part, memory.part)}
  sizes["depth"] = (held.depth, memory.depth)
  sizes |= {name: (getattr(held, name), getattr(memory, name)) for name in ("dtype", "kind", "layers")}
  for level in held.levels:
    rows = memory.rows[level - 1] if level <= memory.depth else 0
    sizes[f"rows of {table_name(level)}"] = (held.rows[level - 1], rows)
  for name, (theirs, ours) in sizes.items():
    if theirs != ours:
      raise InputError(
        f"train.init_bank_from = {source}: its bank has {name} {theirs} (rows {held.rows}), this run's has {ours}"
        f" (rows {memory.rows}); bind the same, or rows on levels that it has none on"
      )


def _same_parameters(config: AnchorConfig, other: AnchorConfig) -> bool:
  """Whether two configurations have the same parameters and the same function.

  What says how the function and its gradient are computed may differ, their types too.
  """
  types = {name: getattr(other, name) for name in _TYPES}
  return run_identity.same(dataclasses.replace(config, **types), other)


def _check_resumable(run_dir: str, stored: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
  """Raises InputError when the checkpoints of `run_dir` are not of the run that `metadata` describes."""
  for name, value in metadata.items():
    held: Any = stored.get(name)
    if name in DATASETS and None in (held, value):  # an older version kept none, or nothing was measured
      continue
    if name == "anchor":
      same = _same_parameters(AnchorConfig.from_json(held), AnchorConfig.from_json(value))
    elif name == "memory":
      same = _memory(held) == _memory(value)
    else:
      same = json.dumps(held) == json.dumps(value)
    if not same:
      raise InputError(
        f"{run_dir}: its checkpoints have {name} {held}, this run has {value}; bind the same or use another directory"
      )


def _memory(stored: Mapping[str, Any] | None) -> Any:
  """What checkpoint metadata say of the memory, with the defaults of fields that they lack."""
  return None if stored is None else MemoryConfig.from_json(stored)
