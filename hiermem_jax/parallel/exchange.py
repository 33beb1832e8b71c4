"""The exchange: moving memory rows between tables that are split along the row and batches that are split by sequence.

Every device of a slice holds the same part of every row. A fetch gathers that part of all rows that the slice's
sequences want (local work), then one all-to-all per table hands each device the rows of its own sequences. A push is
the mirror image for gradients. Each device does the same work whatever the mix of topics.

On the wire rows have the type that the anchor computes in (bfloat16 as a rule); tables and sums are float32. A device
that has more sequences than a table has rows (a shallow level) receives each of that table's rows once and sends one
sum for each, so U_k = min(sequences per device, C_k + 1) rows of level k travel per device and direction.

Slices hold copies of the tables, so a fetch never leaves its slice; of a push, the sums of each slice cross.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from hiermem_jax.models import bank as bank_lib
from hiermem_jax.models.bank import Bank, Block, RowGradient
from hiermem_jax.models.config import AnchorConfig, MemoryConfig
from hiermem_jax.parallel.mesh import BATCH_AXES, DATA_AXIS, MODEL_AXIS, REPLICA_AXIS, ROW_AXES

_LEAF = PartitionSpec(BATCH_AXES)
_TABLE = PartitionSpec(None, ROW_AXES)
_BLOCK = PartitionSpec(BATCH_AXES, None, MODEL_AXIS, None)


def fetch(bank: Bank, leaf: jax.Array, memory: MemoryConfig, anchor: AnchorConfig, mesh: Mesh) -> Block:
  """The block that each sequence's leaf id addresses, for use inside `jax.jit`.

  Args:
    bank: tables [C_k + 1, R_k * L * U], split along the row.
    leaf: int32 [B] leaf ids, split by sequence; the module `models.bank` says what ids do.
    memory: shape of the tree.
    anchor: depth, width and the type to fetch in.
    mesh: the mesh; replica x data must divide B, model every R_k, and data the rest of a row.

  Returns:
    The block in `anchor.dtype`, leaves [B, L, R, width], split by sequence and, over the model axis, by unit. The order
    of units on the R axis depends on the mesh, and nothing else does.
  """

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=(_TABLE, _LEAF), out_specs=_BLOCK, check_vma=False)
  def local(bank, leaf):  # parts of all rows; the leaves of this device's sequences [b]
    own, wanted = _slots(leaf, memory)
    rows = {}
    for name, table in bank.items():
      with jax.named_scope(name):
        part = bank_lib.gather_rows(table, wanted[name]).astype(anchor.dtype)
        whole = _all_to_all(part, split=0, join=1)
        rows[name] = whole if len(leaf) <= len(table) else bank_lib.gather_rows(whole, own[name])
    return bank_lib.rows_to_block(rows, memory, anchor)

  with jax.named_scope("fetch"):
    return local(bank, leaf)


def push(
  block: Block, leaf: jax.Array, memory: MemoryConfig, anchor: AnchorConfig, mesh: Mesh
) -> dict[str, RowGradient]:
  """Gradient of the fetched rows from the gradient of the block, which has `fetch`'s shape and layout.

  Returns:
    Per table the gradient summed over all sequences of the batch that share a row; values are float32, split along
    the row, the slots are replicated.
  """
  out_specs = {name: RowGradient(PartitionSpec(), _TABLE) for name in map(bank_lib.table_name, memory.levels)}

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=(_BLOCK, _LEAF), out_specs=out_specs, check_vma=False)
  def local(block, leaf):
    own, wanted = _slots(leaf, memory)
    result = {}
    for level, (name, rows) in zip(memory.levels, bank_lib.block_to_rows(block, memory, anchor).items()):
      table_rows, wire = memory.clusters(level) + bank_lib.GENERIC_SLOTS, rows.dtype
      with jax.named_scope(name):
        if len(leaf) > table_rows:
          sums = jnp.zeros((table_rows, rows.shape[1]), jnp.float32)
          rows = sums.at[own[name]].add(rows.astype(jnp.float32), mode="drop").astype(wire)
        part = _all_to_all(rows, split=1, join=0)
        gradient = bank_lib.sum_rows(wanted[name], part, table_rows)
        if mesh.shape[REPLICA_AXIS] > 1:
          sums = gradient._replace(value=gradient.value.astype(wire))
          slot, value = jax.lax.all_gather(sums, REPLICA_AXIS, tiled=True)
          gradient = bank_lib.sum_rows(slot, value, table_rows)
        result[name] = gradient
    return result

  with jax.named_scope("push"):
    return local(block, leaf)


def _all_to_all(rows: jax.Array, *, split: int, join: int) -> jax.Array:
  """Device i of the data axis gets the i-th part along axis `split` from all, joined in their order along `join`."""
  if jax.lax.axis_size(DATA_AXIS) == 1:  # one device would still pay for a copy
    return rows
  return jax.lax.all_to_all(rows, DATA_AXIS, split_axis=split, concat_axis=join, tiled=True)


def _slots(leaf: jax.Array, memory: MemoryConfig) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Per table, of this device's leaf ids [b]: its own slots [b], and the rows [data * U_k] that the slice exchanges."""
  everyone = jax.lax.all_gather(leaf, DATA_AXIS, tiled=True)
  own, wanted = bank_lib.slots(leaf, memory), bank_lib.slots(everyone, memory)
  for level in memory.levels:
    name, table_rows = bank_lib.table_name(level), memory.clusters(level) + bank_lib.GENERIC_SLOTS
    if len(leaf) > table_rows:
      named = jnp.zeros(table_rows, bool).at[wanted[name]].set(True, mode="drop")
      rows = jnp.where(named, jnp.arange(table_rows), table_rows)  # a row that no sequence names stays unnamed
      wanted[name] = jnp.tile(rows, len(everyone) // len(leaf))
  return own, wanted
