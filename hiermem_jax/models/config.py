"""Configurations of the memory and of a whole model, and the arithmetic on them.

No device is touched, so `describe` and the validation of a configuration start at once.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from hiermem_jax.errors import InputError
from hiermem_jax.models.anchor_config import AnchorConfig
from hiermem_jax.models.memory import memory_kind

__all__ = ["AnchorConfig", "MemoryConfig", "ModelConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
  """Memory over a cluster tree (paper, Section 2.1 and Appendix I).

  Attributes:
    rows: r_1 .. r_K of the paper: how many memory units one cluster of level k owns in each transformer layer. A unit
      is an extra SwiGLU neuron, or what the `kind` has in its place. A level with zero units has no table.
    branching: children of every node of the tree.
    kind: what a unit is: ffn, lora_qk, lora_vo, lora_ffn or kv, see models/memory; or 'module:KIND', a `MemoryKind` of
      another package.
    layers: which layers have memory. None is all of them. Otherwise ascending numbers from 0, or 'first 10',
      'middle 10', 'last 10'. The n chosen layers share the units that all layers would have had: r_k * L / n units in
      each (Appendix F, Table 9). A block has the same number of parameters in either case.
    part: which part of the bank exists. "all" is the whole bank, a number is the clusters below that level-1 cluster
      (0 .. branching - 1), and "generic" is no cluster at all. Separate jobs train separate parts. Leaf ids mean the
      same in all parts; a leaf whose rows are in another part fetches nothing. Every part has the generic rows.
    dtype: type of the stored tables. bfloat16 tables are rounded stochastically when they are updated.
  """

  rows: tuple[int, ...]
  branching: int = 16
  kind: str = "ffn"
  layers: tuple[int, ...] | str | None = None
  part: Literal["all", "generic"] | int = "all"
  dtype: Literal["float32", "bfloat16"] = "float32"

  def __post_init__(self):
    """Rejects trees, rows, kinds and layers that cannot exist."""
    memory_kind(self.kind)  # raises
    if isinstance(self.layers, str) and not re.fullmatch(r"(first|middle|last) [1-9]\d*", self.layers):
      raise InputError(f"MemoryConfig.layers = {self.layers!r}: bind 'first 10', 'middle 10', 'last 10' or numbers")
    if isinstance(self.layers, tuple) and (not self.layers or list(self.layers) != sorted(set(self.layers))):
      raise InputError(f"MemoryConfig.layers = {self.layers}: bind ascending numbers of layers, at least one")
    if not self.rows or min(self.rows) < 0 or not any(self.rows):
      raise InputError(
        f"MemoryConfig.rows = {self.rows}: needs one non-negative number per tree level, at least one positive;"
        " to train without memory bind ModelConfig.memory = None"
      )
    if self.branching < 2:
      raise InputError(f"MemoryConfig.branching = {self.branching}: a tree needs at least 2; bind the tree's")
    if self.part not in ("all", "generic") and (isinstance(self.part, str) or not 0 <= self.part < self.branching):
      raise InputError(
        f"MemoryConfig.part = {self.part!r}: bind 'all', 'generic' or a level-1 cluster, 0 to {self.branching - 1}"
      )

  @classmethod
  def from_json(cls, stored: Mapping[str, Any]) -> "MemoryConfig":
    """The configuration whose fields JSON holds, tuples as lists. A field that `stored` lacks gets its default."""
    fields: dict[str, Any] = {
      name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
    }
    return cls(**fields)

  @property
  def depth(self) -> int:
    """K, the number of tree levels (those without units included)."""
    return len(self.rows)

  @property
  def num_leaves(self) -> int:
    """Leaves of the tree; the leaf id `num_leaves` is the generic memory."""
    return self.branching**self.depth

  @property
  def total_units(self) -> int:
    """R, the units that a sequence fetches per layer, over all levels."""
    return sum(self.rows)

  @property
  def levels(self) -> tuple[int, ...]:
    """The 1-based levels that have a table."""
    return tuple(level for level, rows in enumerate(self.rows, start=1) if rows)

  def clusters(self, level: int) -> int:
    """C_k, the clusters of 1-based `level` that the part has. The generic memory is not counted."""
    if self.part == "generic":
      return 0
    return self.branching ** (level if self.part == "all" else level - 1)

  def first_cluster(self, level: int) -> int:
    """The number, in the whole tree, of the first of the part's clusters of 1-based `level`."""
    return 0 if isinstance(self.part, str) else self.part * self.branching ** (level - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """An anchor and the memory bank beside it, with the arithmetic that needs both.

  Attributes:
    anchor: the anchor.
    memory: the memory; None is the anchor alone.
  """

  anchor: AnchorConfig
  memory: MemoryConfig | None = None

  def __post_init__(self):
    """Rejects a memory that this anchor's layers cannot hold."""
    if self.memory is not None:
      self.memory_layers  # noqa: B018 (raises)

  @property
  def required_memory(self) -> MemoryConfig:
    """The memory of a model that has one. Raises ValueError for an anchor alone."""
    if self.memory is None:
      raise ValueError("this model has no memory")
    return self.memory

  @property
  def memory_layers(self) -> tuple[int, ...]:
    """Numbers of the anchor's layers that have memory, ascending; empty without memory.

    Raises:
      InputError: the anchor has no such layers, or they cannot share the units evenly.
    """
    if self.memory is None:
      return ()
    total, chosen, rows = self.anchor.num_layers, self.memory.layers, self.memory.rows
    if chosen is None:
      return tuple(range(total))
    if isinstance(chosen, str):
      where, count = chosen.split()
      start = {"first": 0, "middle": (total - int(count)) // 2, "last": total - int(count)}[where]
      chosen = tuple(range(start, start + int(count)))
    if chosen[0] < 0 or chosen[-1] >= total:
      raise InputError(f"MemoryConfig.layers = {self.memory.layers}: the anchor has layers 0 to {total - 1}; bind some")
    for units in rows:
      if units * total % len(chosen):
        raise InputError(
          f"MemoryConfig.rows = {rows}: {units} rows in {total} layers cannot be shared by {len(chosen)} layers"
          " evenly; bind other rows or another number of layers"
        )
    return chosen

  def check_data(self, source: str, vocab_size: int | None, num_leaves: int | None) -> None:
    """Checks that the model can read a packed dataset.

    Args:
      source: names the dataset in messages.
      vocab_size: pieces of its tokenizer; None where that is not known.
      num_leaves: leaves of its tree, 0 without a tree; None where that is not known.

    Raises:
      InputError: the tokenizer has more pieces than the anchor, or the memory is over another tree.
    """
    if vocab_size is not None and vocab_size > self.anchor.vocab_size:
      raise InputError(
        f"{source}: its tokenizer has {vocab_size} pieces, AnchorConfig.vocab_size is {self.anchor.vocab_size}; bind at"
        " least as many"
      )
    if self.memory is None or num_leaves is None:
      return
    if not num_leaves:
      raise InputError(
        f"{source}: prepared without a cluster tree, which a memory bank needs; bind ModelConfig.memory = None, or"
        " prepare it with prepare.tree"
      )
    if self.memory.num_leaves != num_leaves:
      raise InputError(
        f"{source}: its tree has {num_leaves} leaves, MemoryConfig (branching {self.memory.branching}, rows"
        f" {self.memory.rows}) has {self.memory.num_leaves}; bind the tree's branching and one entry of rows per level"
      )

  def check_tree(self, source: str, shape: tuple[int, int] | None) -> None:
    """Checks that the memory is over a tree; trees of other shapes may have as many leaves.

    Args:
      source: names the tree or what was made with it in messages.
      shape: branching and depth of the tree; None where they are not known.

    Raises:
      InputError: the memory is over a tree of another shape.
    """
    if self.memory is None or shape is None or (self.memory.branching, self.memory.depth) == shape:
      return
    raise InputError(
      f"{source}: its tree has branching {shape[0]} and depth {shape[1]}, MemoryConfig has branching"
      f" {self.memory.branching} and {self.memory.depth} levels (rows {self.memory.rows}); bind the tree's branching"
      " and one entry of rows per level"
    )

  @property
  def unit_params(self) -> int:
    """Parameters of one memory unit in one layer; an FFN memory has 3 * D (paper, Appendix I)."""
    if self.memory is None:
      return 0
    return sum(vector.width for vector in memory_kind(self.memory.kind).vectors(self.anchor).values())

  def block_params(self, level: int) -> int:
    """Parameters of one block of 1-based `level`: r_k * L times `unit_params`."""
    return 0 if self.memory is None else self.memory.rows[level - 1] * self.anchor.num_layers * self.unit_params

  def level_params(self, level: int) -> int:
    """Parameters of all blocks of 1-based `level`, as published: the generic block is not counted."""
    return 0 if self.memory is None else self.memory.clusters(level) * self.block_params(level)

  @property
  def fetched_params(self) -> int:
    """Parameters that one sequence fetches: L * `unit_params` * (r_1 + ... + r_K); 0 without memory."""
    return sum(self.block_params(level) for level in self._levels)

  @property
  def bank_params(self) -> int:
    """Parameters of the whole bank, as published: the generic memory is not counted (paper, Table 8)."""
    return sum(self.level_params(level) for level in self._levels)

  @property
  def memory_flops_per_token(self) -> int:
    """Forward FLOPs per token that the fetched block adds to the anchor's: 2 per fetched parameter."""
    return 2 * self.fetched_params

  def flops_per_token(self, context_length: int) -> int:
    """Forward FLOPs per token of the anchor (see `AnchorConfig.flops_per_token`) with its memory."""
    return self.anchor.flops_per_token(context_length) + self.memory_flops_per_token

  def to_json(self) -> dict[str, Any]:
    """Both configurations as the JSON that a checkpoint's metadata hold: {"anchor": {...}, "memory": {...} or None}."""
    return {
      "anchor": dataclasses.asdict(self.anchor),
      "memory": None if self.memory is None else dataclasses.asdict(self.memory),
    }

  @classmethod
  def from_json(cls, stored: Mapping[str, Any]) -> "ModelConfig":
    """The configuration that `to_json` made `stored` of. A field that `stored` lacks gets its default."""
    memory = None if stored["memory"] is None else MemoryConfig.from_json(stored["memory"])
    return cls(anchor=AnchorConfig.from_json(stored["anchor"]), memory=memory)

  @property
  def _levels(self) -> tuple[int, ...]:
    return self.memory.levels if self.memory else ()
