"""The exchange: moving memory rows between tables that are split along the row and batches that are split by sequence.

Every device of a slice holds the same part of every row. A fetch has two steps per table. Each device gathers its part
of all rows that the slice's sequences address, which is local work. One all-to-all then hands each device the whole
rows of its own sequences. A push sends gradients back the same way. Each device does the same work whatever the mix of
topics.

Rows travel in the type that the anchor computes in, bfloat16 as a rule; tables and sums are float32. A device may have
more sequences than a shallow level's table has rows. It then receives each of that table's rows once, and sends one sum
for each. So M_k = min(sequences per device, C_k + 1) rows of level k travel per device and direction.

Slices hold copies of the tables. A fetch never leaves its slice; of a push, the sums of each slice cross to the others.
The devices of the context axis hold copies, too, and have the same sequences: each fetches for itself.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from hiermem_jax.models.bank import (
  Bank,
  Block,
  RowGradient,
  block_to_rows,
  gather_rows,
  num_table_rows,
  row_indices,
  rows_to_block,
  sum_rows,
  table_name,
)
from hiermem_jax.models.config import MemoryConfig, ModelConfig
from hiermem_jax.parallel.layout import anchor_specs
from hiermem_jax.parallel.mesh import (
  BATCH_AXES,
  CONTEXT_AXIS,
  DATA_AXIS,
  MODEL_AXIS,
  REPLICA_AXIS,
  ROW_AXES,
  Rules,
  batch_parallel,
)

_LEAF = PartitionSpec(BATCH_AXES)
_TABLE = PartitionSpec(None, ROW_AXES)
_BLOCK = PartitionSpec(BATCH_AXES, None, MODEL_AXIS, None)


def fetch(bank: Bank, leaf: jax.Array, model: ModelConfig, mesh: Mesh) -> Block:
  """The block that each sequence's leaf id addresses, for use inside `jax.jit`.

  On each device, with b of the B sequences, for the table of level k whose row has W = R_k * L * P parameters:

    1. row indices of the slice's sequences        int32 [data * M_k]
    2. gather this device's part of these rows     [data * M_k, W / (data * model)]
    3. all-to-all over the data axis               [M_k, W / model], whole rows along data
    4. one row per sequence, where M_k < b         [b, W / model]
    5. levels side by side, cut into vectors       [b, L, R / model, width] each

  Args:
    bank: tables [C_k + 1, R_k * L * P], split along the row.
    leaf: int32 [B] leaf ids, split by sequence; `models.bank` says what an id addresses.
    model: shapes of the anchor and of the tree, and the type to fetch in.
    mesh: the mesh. replica x data must divide B, model must divide every R_k, and data the rest of a row.

  Returns:
    The block in `anchor.dtype`, vectors [B, L, R, width], split by sequence and, over the model axis, by unit. The
    order of the units on the R axis depends on the mesh; their values do not.
  """

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=(_TABLE, _LEAF), out_specs=_BLOCK, check_vma=False)
  def local(bank, leaf):
    own, exchanged = _exchanged_rows(leaf, model.required_memory)
    rows = {}
    for name, table in bank.items():
      with jax.named_scope(name):
        part = gather_rows(table, exchanged[name]).astype(model.anchor.dtype)
        whole = _all_to_all(part, split=0, join=1)
        rows[name] = whole if len(leaf) <= len(table) else gather_rows(whole, own[name])
    return rows_to_block(rows, model)

  with jax.named_scope("fetch"):
    return local(bank, leaf)


def push(block: Block, leaf: jax.Array, model: ModelConfig, mesh: Mesh) -> dict[str, RowGradient]:
  """Gradient of the fetched rows from the gradient of the block, which has `fetch`'s shape and layout.

  On each device, for the table of level k, with the letters of `fetch`:

    1. the block's gradient as rows                     [b, W / model]
    2. sums of the sequences that share a row,
       where the device has more sequences than rows    [M_k, W / model]
    3. all-to-all over the data axis                    [data * M_k, W / (data * model)]
    4. sums of equal row indices                        n rows, float32
    5. with several slices: all-gather of the slices'
       sums over the replica axis, and their sums       n' rows, float32

  Returns:
    Per table the gradient, summed over all sequences of the batch that share a row. The values are float32 and split
    along the row; the indices are replicated.
  """
  memory = model.required_memory
  out_specs = {table_name(level): RowGradient._make((PartitionSpec(), _TABLE)) for level in memory.levels}

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=(_BLOCK, _LEAF), out_specs=out_specs, check_vma=False)
  def local(block, leaf):
    own, exchanged = _exchanged_rows(leaf, memory)
    result = {}
    for level, (name, rows) in zip(memory.levels, block_to_rows(block, model).items()):
      table_rows, wire = num_table_rows(memory, level), rows.dtype
      with jax.named_scope(name):
        if len(leaf) > table_rows:
          sums = jnp.zeros((table_rows, rows.shape[1]), jnp.float32)
          rows = sums.at[own[name]].add(rows.astype(jnp.float32), mode="drop").astype(wire)
        part = _all_to_all(rows, split=1, join=0)
        gradient = sum_rows(exchanged[name], part, table_rows)
        if mesh.shape[REPLICA_AXIS] > 1:
          sent = gradient._replace(value=gradient.value.astype(wire))
          index, value = jax.lax.all_gather(sent, REPLICA_AXIS, tiled=True)
          gradient = sum_rows(index, value, table_rows)
        result[name] = gradient
    return result

  with jax.named_scope("push"):
    return local(block, leaf)


def with_fetched_block(
  function: Callable,
  model: ModelConfig,
  mesh: Mesh,
  rules: Rules,
  *,
  out_specs: Any,
  more_specs: tuple = (),
  split_positions: bool = False,
) -> Callable:
  """`function` on the devices' own sequences, each with the block that its leaf id addresses; for use inside `jax.jit`.

  Args:
    function: function(anchor parameters, block or None, batch, *more), of what one device holds; see `batch_parallel`.
    model: shapes of the anchor and of the memory. Without memory the block is None.
    mesh: the mesh.
    rules: of the layout.
    out_specs: how the results are split over replica, data and context.
    more_specs: the same for the further arguments.
    split_positions: whether arrays [B, S] of the batch are split over the context axis, too; see `batch_parallel`.

  Returns:
    run(params, leaf int32 [B], batch, *more) -> results. `params` has "anchor" and, with memory, "bank"; every array of
    `batch` has a leading axis of B sequences.
  """
  weights, axes = anchor_specs(model.anchor, rules), (BATCH_AXES, CONTEXT_AXIS if split_positions else None)

  def run(params, leaf, batch, *more):
    block = None if model.memory is None else fetch(params["bank"], leaf, model, mesh)
    specs = (weights, _LEAF, jax.tree.map(lambda x: PartitionSpec(*axes[: x.ndim]), batch), *more_specs)
    local = batch_parallel(function, mesh, rules, specs, out_specs, split_positions=split_positions)
    return local(params["anchor"], block, batch, *more)

  return run


def _all_to_all(rows: jax.Array, *, split: int, join: int) -> jax.Array:
  """Device i of the data axis gets the i-th part along axis `split` from all, joined in their order along `join`."""
  if jax.lax.axis_size(DATA_AXIS) == 1:  # one device would still pay for a copy
    return rows
  return jax.lax.all_to_all(rows, DATA_AXIS, split_axis=split, concat_axis=join, tiled=True)


def _exchanged_rows(leaf: jax.Array, memory: MemoryConfig) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Row indices per table: of this device's leaf ids [b], and of the rows that the slice exchanges [data * M_k]."""
  everyone = jax.lax.all_gather(leaf, DATA_AXIS, tiled=True)
  own, exchanged = row_indices(leaf, memory), row_indices(everyone, memory)
  for level in memory.levels:
    name, table_rows = table_name(level), num_table_rows(memory, level)
    if len(leaf) > table_rows:
      named = jnp.zeros(table_rows, bool).at[exchanged[name]].set(True, mode="drop")
      rows = jnp.where(named, jnp.arange(table_rows), table_rows)  # a row that no sequence names stays unnamed
      exchanged[name] = jnp.tile(rows, len(everyone) // len(leaf))
  return own, exchanged
