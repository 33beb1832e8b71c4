"""The memory bank: one table per tree level, one table row per cluster.

The table of level k has shape [C_k + 1, R_k * L * P]. P is the number of parameters of one memory unit in one layer:
3 * D for an FFN memory, whose unit is one extra SwiGLU neuron. A row holds the whole block of one cluster. It lists the
block's R_k units one after the other, and of each unit its P parameters for layer 0, layer 1 and so on. So a contiguous
part of a row can be whole units, which is what a device of the model axis holds. A row has r_k times the paper's
c0 = L * P parameters. A memory that is placed in n of the L layers has R_k * L / n units, with n layers each.

The row is what devices exchange and what the optimizer updates. The last row of every table belongs to the *generic*
memory, the context-independent control of the paper's Section 4. Where the configuration has one part of the tree
only, C_k counts the clusters of that part.

A leaf id addresses one row of every table:

  0 .. num_leaves - 1   the rows on the path from the root to that leaf
  num_leaves            the last row of every table, the generic memory
  negative              no row: the fetched block is zeros, and nothing is updated

A leaf whose row belongs to another part of the tree has no row either. Sequences that address the same row read the
same numbers, and their gradients add up. A row that no sequence addresses has no gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hiermem_jax.models.config import MemoryConfig, ModelConfig
from hiermem_jax.models.memory import Block, memory_kind

NO_MEMORY = -1  # any negative leaf id: the fetched block is zeros and nothing is updated
GENERIC_ROWS = 1  # rows that every table has beyond its clusters

Bank = dict[str, jax.Array]  # table name -> [C_k + 1, R_k * L * P]
Rows = dict[str, jax.Array]  # table name -> [B, R_k * L * P], the row of each sequence


class RowGradient(NamedTuple):
  """Gradient, or update, of n rows of a table, each row named at most once.

  Attributes:
    indices: int32 [n], numbers of the rows. An index past the table's end names no row, and its value is zero.
    value: float32 [n, R_k * L * P].
  """

  indices: jax.Array
  value: jax.Array


def table_name(level: int) -> str:
  """Name of the table of 1-based `level`."""
  return f"level_{level}"


def num_table_rows(memory: MemoryConfig, level: int) -> int:
  """Rows of the table of 1-based `level`: C_k + 1."""
  return memory.clusters(level) + GENERIC_ROWS


def table_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
  """Shape (C_k + 1, R_k * L * P) of every table. A level with zero units has no table."""
  memory = model.required_memory
  return {table_name(level): (num_table_rows(memory, level), model.block_params(level)) for level in memory.levels}


def init_bank(key: jax.Array, model: ModelConfig) -> Bank:
  """Fresh tables of `memory.dtype`; each vector is drawn as its memory kind says (Appendix I).

  Every kind adds exactly nothing to the logits at first. A row depends on the key, its level and its number in the
  whole tree, and on nothing else. So the parts of a bank start as they would in the whole bank.
  """
  memory = model.required_memory
  vectors = memory_kind(memory.kind).vectors(model.anchor).values()

  def scales(init):  # [P], of the parameters that start in this way; zero for the others
    return np.repeat([v.scale if v.init == init else 0.0 for v in vectors], [v.width for v in vectors])

  bank = {}
  for level, (name, (rows, size)) in zip(memory.levels, table_shapes(model).items()):
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
      scale = jnp.asarray(scales(init), jnp.float32)[jnp.arange(size) % model.unit_params]
      table = jnp.where(scale > 0, jax.vmap(draws[init])(keys) * scale, table)
    bank[name] = table.astype(memory.dtype)
  return bank


def row_indices(leaf: jax.Array, memory: MemoryConfig) -> dict[str, jax.Array]:
  """The row of every table that each leaf id addresses.

  Args:
    leaf: int32 [...] leaf ids, as in the module's table.
    memory: the tree's shape.

  Returns:
    Per table int32 [...]. A path gives leaf // branching**(K - k), less the number of the first cluster that the table
    has. The generic memory gives C_k. No memory, and a path whose row is in another part, give C_k + 1: that is one
    past the table's end, where a gather reads zeros and a scatter writes nothing.
  """
  result = {}
  for level in memory.levels:
    clusters = memory.clusters(level)
    index = leaf // memory.branching ** (memory.depth - level) - memory.first_cluster(level)
    index = jnp.where((index < 0) | (index >= clusters), num_table_rows(memory, level), index)  # negative ids, too
    result[table_name(level)] = jnp.where(leaf >= memory.num_leaves, clusters, index)
  return result


def gather_rows(table: jax.Array, index: jax.Array) -> jax.Array:
  """Rows [n, row] of a table [C_k + 1, row]; an index past the table's end gives zeros."""
  return table.at[index].get(mode="fill", fill_value=0)


def sum_rows(index: jax.Array, values: jax.Array, table_rows: int) -> RowGradient:
  """Adds up, in float32, the values that have the same row index.

  Args:
    index: int32 [N] row indices. Values whose index is past the table's end (no memory) are left out.
    values: [N, row] of any float type.
    table_rows: C_k + 1.

  Returns:
    The sums of n = min(N, table_rows) rows. Where fewer rows are named, the other indices lie past the table's end.
  """
  if len(index) >= table_rows:
    distinct, place, count = jnp.arange(table_rows), index, table_rows
    named = jnp.zeros(table_rows, bool).at[index].set(True, mode="drop")
  else:
    count = len(index)
    distinct, place = jnp.unique(index, size=count, fill_value=table_rows, return_inverse=True)
    place = jnp.where(index < table_rows, place, count)
    named = distinct < table_rows
  sums = jnp.zeros((count, values.shape[1]), jnp.float32).at[place].add(values.astype(jnp.float32), mode="drop")
  # Every unused entry has a number of its own, so that all of them are distinct.
  return RowGradient(jnp.where(named, distinct, table_rows + jnp.arange(count)).astype(jnp.int32), sums)


def rows_to_block(rows: Rows, model: ModelConfig) -> Block:
  """Lays the rows of all levels out as the block that the anchor takes, levels side by side on the R axis.

  A device of the model axis may give the same contiguous fraction of every row; R is then that fraction.
  """
  memory, layers = model.required_memory, model.memory_layers
  vectors = memory_kind(memory.kind).vectors(model.anchor)
  parts = [rows[table_name(level)] for level in memory.levels]
  parts = [part.reshape(part.shape[0], -1, len(layers), model.unit_params) for part in parts]
  units = jnp.concatenate(parts, axis=1).transpose(0, 2, 1, 3)  # [B, R, L, P] -> [B, L, R, P]
  ends = np.cumsum([vector.width for vector in vectors.values()])
  split = jnp.split(units, ends[:-1], axis=3)
  return Block(dict(zip(vectors, split)), memory_kind(memory.kind), None if memory.layers is None else layers)


def block_to_rows(block: Block, model: ModelConfig) -> Rows:
  """The inverse of `rows_to_block`."""
  memory = model.required_memory
  units = jnp.concatenate([block.vectors[name] for name in memory_kind(memory.kind).vectors(model.anchor)], axis=3)
  units = units.transpose(0, 2, 1, 3)  # [B, L, R, P] -> [B, R, L, P]
  rows, start = {}, 0
  for level in memory.levels:
    count = memory.rows[level - 1] * units.shape[1] // memory.total_units
    rows[table_name(level)] = units[:, start : start + count].reshape(len(units), -1)
    start += count
  return rows
