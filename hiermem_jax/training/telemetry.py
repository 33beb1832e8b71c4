"""What a training step says about itself, computed on the devices beside the step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hiermem_jax.models.bank import RowGradient, table_name
from hiermem_jax.models.config import MemoryConfig


class Losses(NamedTuple):
  """Cross-entropy of a batch, float32."""

  mean: jax.Array  # [], over all tokens of the global batch
  tokens: jax.Array  # [], their number
  of_sequence: jax.Array  # [B], sum over the tokens of each sequence
  tokens_of_sequence: jax.Array  # [B]


def describe_step(
  memory: MemoryConfig | None, leaf: jax.Array, losses: Losses, grads: dict[str, Any], updates: dict[str, Any]
) -> dict[str, jax.Array]:
  """Scalars of a step with memory; none without.

  Args:
    memory: shape of the tree.
    leaf: int32 [B], the memory each sequence trained.
    losses: of the batch.
    grads: of `make_gradients`, before clipping.
    updates: what was added to the parameters.

  Returns:
    float32 []: `loss/generic` and `loss/fetched`, `loss/cluster_07` for every level-1 cluster (of its fetched
    sequences), NaN where the batch has no such sequence; `grad_norm/...` and `update_norm/...` of the anchor, unless it
    is frozen, and of each table; `touched/level_2`, the share of the table's clusters that the batch updates.
  """
  if memory is None:
    return {}
  generic = leaf >= memory.num_leaves
  cluster = jnp.where(generic, memory.branching, leaf // memory.branching ** (memory.depth - 1))
  # One row more for the generic sequences; those without memory, -1, are dropped.
  sums, tokens = (
    jnp.zeros(memory.branching + 1).at[jnp.where(leaf < 0, memory.branching + 1, cluster)].add(x, mode="drop")
    for x in (losses.of_sequence, losses.tokens_of_sequence)
  )
  scalars = {"loss/generic": sums[-1] / tokens[-1], "loss/fetched": sums[:-1].sum() / tokens[:-1].sum()}
  for number in range(memory.branching):
    scalars[f"loss/cluster_{number:02d}"] = sums[number] / tokens[number]
  for kind, trees in (("grad_norm", grads), ("update_norm", updates)):
    if jax.tree.leaves(trees["anchor"]):
      scalars[f"{kind}/anchor"] = optax.global_norm(trees["anchor"])
    for name, table in trees["bank"].items():
      scalars[f"{kind}/{name}"] = optax.global_norm(table.value if isinstance(table, RowGradient) else table)
  for level in memory.levels:
    slot, clusters = grads["bank"][table_name(level)].slot, memory.clusters(level)
    scalars[f"touched/{table_name(level)}"] = jnp.count_nonzero(slot < clusters) / max(clusters, 1)
  return scalars
