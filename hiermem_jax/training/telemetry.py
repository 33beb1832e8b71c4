"""What a training step says about itself, computed on the devices beside the step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hiermem_jax.models.bank import RowGradient, gather_rows, table_name
from hiermem_jax.models.config import MemoryConfig


class Losses(NamedTuple):
  """Cross-entropy of a batch, float32."""

  mean: jax.Array  # [], over all tokens of the global batch
  tokens: jax.Array  # [], their number
  of_sequence: jax.Array  # [B], sum over the tokens of each sequence
  tokens_of_sequence: jax.Array  # [B]


def step_scalars(
  memory: MemoryConfig | None, leaf: jax.Array, losses: Losses, grads: dict[str, Any], updates: dict[str, Any]
) -> dict[str, jax.Array]:
  """Scalars of a step with memory; none without.

  Args:
    memory: shape of the tree.
    leaf: int32 [B], leaf id of the memory that each sequence trained.
    losses: of the batch.
    grads: of `make_gradients`, before clipping.
    updates: of `make_update`, what was added to the parameters.

  Returns:
    float32 [] each:

      loss/generic, loss/fetched   mean of the sequences that trained the generic memory, or their own path
      loss/cluster_07              mean of the sequences that fetched from level-1 cluster 7; one for every cluster
      grad_norm/anchor, update_norm/anchor     unless the anchor is frozen
      grad_norm/level_2, update_norm/level_2   of the rows that the batch has fetched; one for every table. A dense
                                               update moves the other rows as well, which is not counted.
      touched/level_2              share of the table's clusters that the batch has fetched

    A loss is NaN where the batch has no such sequence.
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
  if jax.tree.leaves(grads["anchor"]):
    scalars["grad_norm/anchor"] = optax.global_norm(grads["anchor"])
    scalars["update_norm/anchor"] = optax.global_norm(updates["anchor"])
  for level in memory.levels:
    name, clusters = table_name(level), memory.clusters(level)
    (index, gradient), update = grads["bank"][name], updates["bank"][name]
    rows = update.value if isinstance(update, RowGradient) else gather_rows(update, index)
    scalars[f"grad_norm/{name}"] = optax.global_norm(gradient)  # a term of the global norm, which is not added up again
    scalars[f"update_norm/{name}"] = optax.global_norm(rows)
    scalars[f"touched/{name}"] = jnp.count_nonzero(index < clusters) / max(clusters, 1)
  return scalars
