"""The memory bank: one table of rows per tree level.

Table k has shape [C_k + 1, R_k * L * 3 * D]. A row is the whole block of one cluster: its R_k extra neurons one after
the other, and of a neuron, for every layer, its rows of the SwiGLU matrices M1, M2, M3. So a row is r_k times the
paper's c0 = 3 * L * D, and a contiguous part of it can be whole neurons, which is what a model-parallel device needs.
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

from hiermem_jax.models.config import AnchorConfig, MemoryConfig

NO_MEMORY = -1  # any negative leaf id: the fetched block is zeros and nothing is updated
GENERIC_SLOTS = 1  # rows that every table has beyond its clusters

Bank = dict[str, jax.Array]  # table name -> [C_k + 1, R_k * L * 3 * D]
Rows = dict[str, jax.Array]  # table name -> [B, R_k * L * 3 * D]


class Block(NamedTuple):
  """Fetched memory of a batch, all levels side by side on the R axis; each leaf is [B, L, R, D]."""

  m1: jax.Array  # gated (silu) input projection
  m2: jax.Array  # linear input projection
  m3: jax.Array  # output projection, stored transposed


class RowGradient(NamedTuple):
  """Gradient, or update, of some rows of a table, each row named at most once."""

  slot: jax.Array  # int32 [U] rows; an entry past the table's end means nothing, and its value is zero
  value: jax.Array  # float32 [U, R_k * L * 3 * D]


def table_name(level: int) -> str:
  """Name of the table of 1-based `level`."""
  return f"level_{level}"


def table_shapes(memory: MemoryConfig, anchor: AnchorConfig) -> dict[str, tuple[int, int]]:
  """Shape (C_k + 1, R_k * L * 3 * D) of every table; levels with zero rows have none."""
  return {
    table_name(level): (memory.clusters(level) + GENERIC_SLOTS, memory.block_params(anchor, level))
    for level in memory.levels
  }


def init_bank(key: jax.Array, memory: MemoryConfig, anchor: AnchorConfig) -> Bank:
  """Fresh tables of `memory.dtype`: M1, M2 truncated normal (sigma = 1/sqrt(D), cut at 3 sigma), M3 zero (Appendix I).

  With M3 zero the memory adds exactly nothing to the logits. A row depends on the key, its level and its number in the
  tree alone, so that the parts of a bank start as they would in the whole.
  """
  bank = {}
  for level, (name, (rows, size)) in zip(memory.levels, table_shapes(memory, anchor).items()):
    numbers = memory.first_cluster(level) + jnp.arange(rows)
    numbers = numbers.at[-1].set(memory.branching**level)  # the generic row's
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, level), numbers)
    # Drawn in the row's own shape, so that every device draws its own part.
    normal = jax.vmap(lambda key, size=size: jax.random.truncated_normal(key, -3, 3, (size,)))(keys)
    matrix = jnp.arange(size) // anchor.width % 3
    bank[name] = jnp.where(matrix == 2, 0.0, normal * anchor.width**-0.5).astype(memory.dtype)
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
  parts = [rows[table_name(k)] for k in memory.levels]
  parts = [part.reshape(part.shape[0], -1, anchor.num_layers, 3, anchor.width) for part in parts]
  block = jnp.concatenate(parts, axis=1).transpose(0, 2, 3, 1, 4)  # [B, L, 3, R, D]
  return Block(m1=block[:, :, 0], m2=block[:, :, 1], m3=block[:, :, 2])


def block_to_rows(block: Block, memory: MemoryConfig) -> Rows:
  """The inverse of `rows_to_block`."""
  stacked = jnp.stack(block, axis=2).transpose(0, 3, 1, 2, 4)  # [B, R, L, 3, D]
  fraction = memory.total_rows // stacked.shape[1]
  rows, start = {}, 0
  for level in memory.levels:
    neurons = memory.rows[level - 1] // fraction
    rows[table_name(level)] = stacked[:, start : start + neurons].reshape(len(stacked), -1)
    start += neurons
  return rows
