"""Which level's block holds a fact: how much less likely the answer is without it, and how the gradient sees it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hiermem_jax.evaluation.measure import Probe
from hiermem_jax.evaluation.modes import keep_levels
from hiermem_jax.evaluation.scoring import Scorer, prompt_batch
from hiermem_jax.models.bank import gather_rows, row_indices, rows_to_block, table_name
from hiermem_jax.models.losses import apply_anchor, token_losses
from hiermem_jax.models.model import Model


def ablations(
  model: Model, mesh: Mesh, probes: Sequence[Probe], *, batch_size: int, bos_id: int, max_length: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
  """Log-likelihood of each answer with the whole path, and what is lost without each level's block.

  Returns:
    float32 [n] nats, and float32 [n, K'] nats for the K' levels that have rows, `model.memory.levels`.
  """
  prompts, answers = [p.prompt for p in probes], [p.answer for p in probes]
  leaf = np.array([p.leaf for p in probes], np.int32)

  def score(levels):
    kept = Scorer(keep_levels(model, levels), mesh, batch_size, bos_id=bos_id, max_length=max_length)
    return kept.score_continuations(prompts, answers, leaf if levels else np.full_like(leaf, -1))[0]

  every = model.memory.levels
  whole = score(every)
  lost = [whole - score(tuple(level for level in every if level != left_out) or None) for left_out in every]
  return whole, np.stack(lost, axis=1)


def gradients(model: Model, probe: Probe, bos_id: int) -> dict[int, np.ndarray]:
  """Gradient times value of one question's fetched parameters: the first-order share of each unit in its answer.

  On one device, for looking closely at one question.

  Returns:
    For each level with rows, float32 [L, R_k] nats: what log-likelihood the unit adds, to first order. Their sum
    approximates what all of the memory adds where its effect is small.
  """
  length = len(probe.prompt) + len(probe.answer)
  batch = jax.tree.map(
    jnp.asarray, prompt_batch([(probe.prompt, probe.answer)], np.array([probe.leaf], np.int32), length, bos_id)
  )
  indices = row_indices(batch["memory_leaf"], model.memory)
  rows = {name: gather_rows(model.params["bank"][name], indices[name]).astype(jnp.float32) for name in indices}

  def log_likelihood(rows):
    logits = apply_anchor(model.anchor, model.params["anchor"], batch, rows_to_block(rows, model.config))
    losses, _ = token_losses(logits, batch)
    return -(losses * batch["decoder_loss_weights"]).sum()

  grads = jax.jit(jax.grad(log_likelihood))(rows)
  layers = len(model.config.memory_layers)

  def share(name):
    return (grads[name] * rows[name]).reshape(-1, layers, model.config.unit_params).sum(axis=-1).T

  return {level: np.asarray(share(table_name(level))) for level in model.memory.levels}
