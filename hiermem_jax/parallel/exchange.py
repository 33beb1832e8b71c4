"""The exchange: moving memory rows between tables that are split along the row and batches that are split by sequence.

Every device holds the same slice of every row. A fetch gathers that slice of all rows the global batch wants (local
work), then one all-to-all per table hands each device the whole rows of its own sequences. A push is the mirror image
for gradients. Each device does the same work whatever the mix of topics.
"""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hiermem_jax.models import bank as bank_lib
from hiermem_jax.models.config import MemoryConfig
from hiermem_jax.parallel.mesh import DATA_AXIS

_BY_ROW_SLICE = PartitionSpec(None, DATA_AXIS)
_BY_SEQUENCE = PartitionSpec(DATA_AXIS, None)


def _place(tree, mesh: Mesh, spec: PartitionSpec):
  return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))


def fetch(bank: bank_lib.Bank, leaf: jax.Array, memory: MemoryConfig, mesh: Mesh) -> bank_lib.Rows:
  """Rows that the leaf ids address, for use inside `jax.jit`.

  Args:
    bank: tables [C_k + 1, L * 3 * R_k * D], split along the row.
    leaf: int32 [B] leaf ids, split by sequence. Negative ids give zeros.
    memory: shape of the tree.
    mesh: the mesh; its data axis must divide B and every row.

  Returns:
    Per table the rows [B, L * 3 * R_k * D], split by sequence.
  """
  slot = _place(bank_lib.slots(leaf, memory), mesh, PartitionSpec())
  sliced = _place(bank_lib.gather_rows(bank, slot), mesh, _BY_ROW_SLICE)
  return _place(sliced, mesh, _BY_SEQUENCE)


def push(
  rows: bank_lib.Rows, leaf: jax.Array, bank: bank_lib.Bank, memory: MemoryConfig, mesh: Mesh
) -> bank_lib.Bank:
  """Row gradients [B, L * 3 * R_k * D] back to arrays of the tables' shapes; duplicates add up, others are zero."""
  slot = _place(bank_lib.slots(leaf, memory), mesh, PartitionSpec())
  # Without the first constraint the second reaches back into the backward pass, which cannot be split along the row.
  sliced = _place(_place(rows, mesh, _BY_SEQUENCE), mesh, _BY_ROW_SLICE)
  return _place(bank_lib.scatter_rows(sliced, slot, bank), mesh, _BY_ROW_SLICE)
