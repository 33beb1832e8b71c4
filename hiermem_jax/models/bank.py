"""The memory bank: one table of rows per tree level.

Table k has shape [C_k + 1, R_k * L * U]. A row is the whole block of one cluster: its R_k units (of an FFN memory:
extra neurons) one after the other, and of a unit, for every layer, its U parameters (of a neuron: its rows of the
SwiGLU matrices M1, M2, M3). So a row is r_k times the paper's c0 = L * U, with U = 3 * D for FFN memories, and
a contiguous part of it can be whole units, which is what a model-parallel device needs. Memory in n of the L layers has
R_k * L / n units with n layers each.
The row is what moves between devices and what the optimizer updates. The last row of every table belongs to the
*generic* memory, the context-independent control of the paper's Section 4; it is addressed by the leaf id that follows
the last leaf. Where the configuration has a part of the tree only, C_k counts the clusters of that part.

What ids do: sequences that share a row read the same numbers and their gradients add up; the generic id reads and
updates the last row; a negative id, or one whose row is in another part, reads zeros and updates nothing; rows that
no id names have no gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hiermem_jax.models.config import AnchorConfig, MemoryConfig
from hiermem_jax.models.memory import KINDS, Block

NO_MEMORY = -1  # any negative leaf id: the fetched block is zeros and nothing is updated
GENERIC_SLOTS = 1  # rows that every table has beyond its clusters

Bank = dict[str, jax.Array]  # table name -> [C_k + 1, R_k * L * U]
Rows = dict[str, jax.Array]  # table name -> [B, R_k * L * U]


class RowGradient(NamedTuple):
  """Gradient, or update, of some rows of a table, each row named at most once."""

  slot: jax.Array  # int32 [U] rows; an entry past the table's end means nothing, and its value is zero
  value: jax.Array  # float32 [U, R_k * L * U]


def table_name(level: int) -> str:
  """Name of the table of 1-based `level`."""
  return f"level_{level}"


def table_shapes(memory: MemoryConfig, anchor: AnchorConfig) -> dict[str, tuple[int, int]]:
  """Shape (C_k + 1, R_k * L * U) of every table; levels with zero rows have none."""
  return {
    table_name(level): (memory.clusters(level) + GENERIC_SLOTS, memory.block_params(anchor, level))
    for level in memory.levels
  }


def init_bank(key: jax.Array, memory: MemoryConfig, anchor: AnchorConfig) -> Bank:
  """Fresh tables of `memory.dtype`, each vector as its kind says (Appendix I).

  Every kind adds exactly nothing to the logits at first. A row depends on the key, its level and its number in the
  tree alone, so that the parts of a bank start as they would in the whole.
  """
  memory.layer_numbers(anchor)  # raises where they cannot be
  vectors = KINDS[memory.kind].vectors(anchor).values()

  def scales(init):  # of a unit's parameters; zero where they start in another way
    return np.repeat([v.scale if v.init == init else 0.0 for v in vectors], [v.width for v in vectors])

  bank = {}
  for level, (name, (rows, size)) in zip(memory.levels, table_shapes(memory, anchor).items()):
    numbers = memory.first_cluster(level) + jnp.arange(rows)
    numbers = numbers.at[-1].set(memory.branching**level)  # the generic row's
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, level), numbers)
    # Drawn in the row's own shape, so that every device draws its own part.
    draws = {
      "normal": lambda key, size=size: jax.random.truncated_normal(key, -3, 3, (size,)),
      "uniform": lambda key, size=size: jax.random.uniform(key, (size,), minval=-1, maxval=1),
    }
    table = jnp.zeros((rows, size), jnp.float32)
    for init in {vector.init for vector in vectors} & draws.keys():
      scale = jnp.asarray(scales(init), jnp.float32)[jnp.arange(size) % memory.unit_params(anchor)]
      table = jnp.where(scale > 0, jax.vmap(draws[init])(keys) * scale, table)
    bank[name] = table.astype(memory.dtype)
  return bank


def slots(leaf: jax.Array, memory: MemoryConfig) -> dict[str, jax.Array]:
  """Row of every table that a leaf id addresses.

  Args:
    leaf: int32 [...] leaf ids: 0 .. num_leaves-1 a path of the tree, num_leaves the generic memory, negative no memory.
    memory: the tree's shape.

  Returns:
    int32 [...] per table: leaf // branching**(K-k), less the first cluster there is, for a path, C_k for the generic
    memory, and C_k + 1 (one past the end, which a gather fills with zeros and a scatter drops) for no memory and for a
    path whose row is in another part.
  """
  result = {}
  for level in memory.levels:
    clusters = memory.clusters(level)
    slot = leaf // memory.branching ** (memory.depth - level) - memory.first_cluster(level)
    slot = jnp.where((slot < 0) | (slot >= clusters), clusters + GENERIC_SLOTS, slot)  # negative ids, too
    result[table_name(level)] = jnp.where(leaf >= memory.num_leaves, clusters, slot)
  return result


def gather_rows(table: jax.Array, slot: jax.Array) -> jax.Array:
  """Rows [B, row] of a table [C + 1, row]; a slot past the end gives zeros."""
  return table.at[slot].get(mode="fill", fill_value=0)


def sum_rows(slot: jax.Array, rows: jax.Array, table_rows: int) -> RowGradient:
  """Adds up rows that share a slot, in float32.

  Args:
    slot: int32 [N]; past the end (no memory) is left out.
    rows: [N, row] of any float type.
    table_rows: C_k + 1.

  Returns:
    The sums of min(N, table_rows) slots or fewer; where there are fewer, the rest of the slots lie past the end.
  """
  if len(slot) >= table_rows:
    distinct, index, count = jnp.arange(table_rows), slot, table_rows
    named = jnp.zeros(table_rows, bool).at[slot].set(True, mode="drop")
  else:
    count = len(slot)
    distinct, index = jnp.unique(slot, size=count, fill_value=table_rows, return_inverse=True)
    index = jnp.where(slot < table_rows, index, count)
    named = distinct < table_rows
  value = jnp.zeros((count, rows.shape[1]), jnp.float32).at[index].add(rows.astype(jnp.float32), mode="drop")
  # Every unused entry has a number of its own, so that all of them are distinct.
  return RowGradient(jnp.where(named, distinct, table_rows + jnp.arange(count)).astype(jnp.int32), value)


def rows_to_block(rows: Rows, memory: MemoryConfig, anchor: AnchorConfig) -> Block:
  """Lays fetched rows out as the block that the anchor takes, levels concatenated on the R axis.

  Rows may be the same contiguous fraction of every row, as a model-parallel device holds them; R is then that fraction.
  """
  layers = memory.layer_numbers(anchor)
  vectors = KINDS[memory.kind].vectors(anchor)
  parts = [rows[table_name(k)] for k in memory.levels]
  parts = [part.reshape(part.shape[0], -1, len(layers), memory.unit_params(anchor)) for part in parts]
  units = jnp.concatenate(parts, axis=1).transpose(0, 2, 1, 3)  # [B, L, R, U]
  ends = np.cumsum([vector.width for vector in vectors.values()])
  split = jnp.split(units, ends[:-1], axis=3)
  return Block(dict(zip(vectors, split)), KINDS[memory.kind], None if memory.layers is None else layers)


def block_to_rows(block: Block, memory: MemoryConfig, anchor: AnchorConfig) -> Rows:
  """The inverse of `rows_to_block`."""
  units = jnp.concatenate([block.vectors[name] for name in KINDS[memory.kind].vectors(anchor)], axis=3)
  units = units.transpose(0, 2, 1, 3)  # [B, R, L, U]
  rows, start = {}, 0
  for level in memory.levels:
    count = memory.rows[level - 1] * units.shape[1] // memory.total_rows
    rows[table_name(level)] = units[:, start : start + count].reshape(len(units), -1)
    start += count
  return rows
