"""Modes of the memory: which blocks a measurement gives to the model.

none         no memory
generic      the context-independent memory
fetched      the blocks on the retrieved path
wrong        the blocks at the same place in a random other level-1 subtree, so that no level is the retrieved one
levels 1 2   of the retrieved path, these levels alone; any levels, e.g. "levels 3"
"""

import dataclasses
import re

import numpy as np

from hiermem_jax.errors import InputError
from hiermem_jax.models.bank import NO_MEMORY, table_name
from hiermem_jax.models.config import MemoryConfig
from hiermem_jax.models.model import Model

MODES = ("none", "generic", "fetched", "wrong")
_LEVELS = re.compile(r"levels( [1-9])+")


def check_mode(mode: str, memory: MemoryConfig | None, name: str = "mode") -> None:
  """Raises InputError when there is no such mode, or the model has no memory for it."""
  if mode not in MODES and not _LEVELS.fullmatch(mode):
    raise InputError(f"{name} = {mode!r}: choose from {', '.join(MODES)}, or 'levels 1 2' with the levels to keep")
  if memory is None and mode != "none":
    raise InputError(f"{name} = {mode!r}: the checkpoint has no bank; choose 'none', or a model that has one")
  if mode not in MODES and (missing := sorted(set(mode_levels(mode)) - set(memory.levels))):
    raise InputError(f"{name} = {mode!r}: rows {memory.rows} has none on levels {missing}; leave them out")


def mode_levels(mode: str) -> tuple[int, ...] | None:
  """The levels that a mode keeps; None: all."""
  return tuple(int(level) for level in mode.split()[1:]) if mode.startswith("levels") else None


def mode_leaves(mode: str, leaf: np.ndarray, memory: MemoryConfig, seed: int = 0) -> np.ndarray:
  """Leaf ids int32 [n] to use in a mode, given the retrieved ones."""
  if mode == "none":
    return np.full_like(leaf, NO_MEMORY)
  if mode == "generic":
    return np.full_like(leaf, memory.num_leaves)
  if mode == "wrong":
    subtree = memory.num_leaves // memory.branching
    subtrees = np.random.default_rng(seed).integers(1, memory.branching, size=leaf.shape)
    return ((leaf + subtrees * subtree) % memory.num_leaves).astype(leaf.dtype)
  if mode == "fetched" or mode.startswith("levels"):
    return leaf
  raise ValueError(f"unknown memory mode {mode!r}; one of {MODES}")


def keep_levels(model: Model, levels: tuple[int, ...] | None) -> Model:
  """The model with the tables of some levels alone; None: of all."""
  if levels is None:
    return model
  rows = tuple(rows if level in levels else 0 for level, rows in enumerate(model.memory.rows, start=1))
  bank = {table_name(level): model.params["bank"][table_name(level)] for level in levels}
  config = dataclasses.replace(model.config, memory=dataclasses.replace(model.memory, rows=rows))
  return dataclasses.replace(model, config=config, params=model.params | {"bank": bank})
