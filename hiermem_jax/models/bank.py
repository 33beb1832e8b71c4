"""The memory bank: one table of rows per tree level.

Table k has shape [C_k + 1, L * 3 * R_k * D]. A row is the whole block of one cluster: for every layer the three
SwiGLU matrices M1, M2, M3 of its R_k extra neurons, each stored [R_k, D]. The row is what moves between devices and
what the optimizer updates. The last row of every table belongs to the *generic* memory, the context-independent
control of the paper's Section 4; it is addressed by the leaf id that follows the last leaf.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hiermem_jax.models.config import AnchorConfig, MemoryConfig

NO_MEMORY = -1  # any negative leaf id: the fetched block is zeros and nothing is updated
GENERIC_SLOTS = 1  # rows that every table has beyond its clusters

Bank = dict[str, jax.Array]  # table name -> [C_k + 1, L * 3 * R_k * D]
Rows = dict[str, jax.Array]  # table name -> [B, L * 3 * R_k * D]


class Block(NamedTuple):
  """Fetched memory of a batch, all levels side by side on the R axis; each leaf is [B, L, R, D]."""

  m1: jax.Array  # gated (silu) input projection
  m2: jax.Array  # linear input projection
  m3: jax.Array  # output projection, stored transposed


def table_name(level: int) -> str:
  """Name of the table of 1-based `level`."""
  return f"level_{level}"


def table_shapes(memory: MemoryConfig, anchor: AnchorConfig) -> dict[str, tuple[int, int]]:
  """Shape (C_k + 1, L * 3 * R_k * D) of every table; levels with zero rows have none."""
  return {
    table_name(level): (memory.clusters(level) + GENERIC_SLOTS, memory.block_params(anchor, level))
    for level in memory.levels
  }


def init_bank(key: jax.Array, memory: MemoryConfig, anchor: AnchorConfig) -> Bank:
  """Fresh float32 tables: M1, M2 truncated normal (sigma = 1/sqrt(D), cut at 3 sigma), M3 zero (Appendix I).

  With M3 zero the memory adds exactly nothing to the logits.
  """
  bank = {}
  for level in memory.levels:
    rows = memory.rows[level - 1]
    shape = (memory.clusters(level) + GENERIC_SLOTS, anchor.num_layers, 2, rows, anchor.width)
    m12 = jax.random.truncated_normal(jax.random.fold_in(key, level), -3, 3, shape) * anchor.width**-0.5
    m3 = jnp.zeros((*shape[:2], 1, *shape[3:]))
    table = jnp.concatenate([m12, m3], axis=2)
    bank[table_name(level)] = table.reshape(shape[0], -1)
  return bank


def slots(leaf: jax.Array, memory: MemoryConfig) -> dict[str, jax.Array]:
  """Row of every table that a leaf id addresses.

  Args:
    leaf: int32 [B] leaf ids: 0 .. num_leaves-1 a path of the tree, num_leaves the generic memory, negative no memory.
    memory: the tree's shape.

  Returns:
    int32 [B] per table: leaf // branching**(K-k) for a path, C_k for the generic memory, and C_k + 1 (one past the
    end, which a gather fills with zeros and a scatter drops) for no memory.
  """
  result = {}
  for level in memory.levels:
    clusters = memory.clusters(level)
    slot = leaf // memory.branching ** (memory.depth - level)
    slot = jnp.where(leaf >= memory.num_leaves, clusters, slot)
    result[table_name(level)] = jnp.where(leaf < 0, clusters + GENERIC_SLOTS, slot)
  return result


def gather_rows(bank: Bank, slot: dict[str, jax.Array]) -> Rows:
  """Rows [B, L * 3 * R_k * D] of every table; a slot past the end gives zeros."""
  return {name: table.at[slot[name]].get(mode="fill", fill_value=0) for name, table in bank.items()}


def scatter_rows(rows: Rows, slot: dict[str, jax.Array], bank: Bank) -> Bank:
  """Sums row gradients into arrays of the tables' shapes.

  Rows that share a slot add up; a slot past the end (no memory) updates nothing; rows that no sequence fetched are
  exactly zero.
  """
  return {name: jnp.zeros_like(table).at[slot[name]].add(rows[name], mode="drop") for name, table in bank.items()}


def rows_to_block(rows: Rows, memory: MemoryConfig, anchor: AnchorConfig) -> Block:
  """Reshapes fetched rows to the block that the anchor takes, levels concatenated on the R axis."""
  parts = [
    rows[table_name(level)].reshape(-1, anchor.num_layers, 3, memory.rows[level - 1], anchor.width)
    for level in memory.levels
  ]
  block = jnp.concatenate(parts, axis=3)
  return Block(m1=block[:, :, 0], m2=block[:, :, 1], m3=block[:, :, 2])
