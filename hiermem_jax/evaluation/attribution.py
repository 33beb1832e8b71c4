"""Which level's block holds a fact: how much less likely the answer is without it, and how the gradient sees it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hiermem_jax.evaluation.modes import MemoryModes, Mode
from hiermem_jax.evaluation.probes import Probe, bucket_numbers
from hiermem_jax.evaluation.scoring import prompt_batch
from hiermem_jax.models.bank import NO_MEMORY, gather_rows, row_indices, rows_to_block, table_name
from hiermem_jax.models.losses import apply_anchor, token_losses
from hiermem_jax.models.model import Model


def report(
  modes: MemoryModes, probes: Sequence[Probe], buckets: Sequence[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """What the answers of probes lose without each level's block.

  Args:
    modes: a model with a bank.
    probes: the questions.
    buckets: see `probes.bucket_numbers`.

  Returns:
    For the report: `levels`, and `lost_without_level`, per bucket the mean loss without each level, nats (NaN where the
    bucket is empty). And for each probe a line with its record, `leaf`, `log_likelihood` and `lost_without_level`.
  """
  levels = modes.model.config.required_memory.levels
  leaf = modes.leaves(Mode.parse("fetched"), [probe.text for probe in probes])
  likelihoods, lost = ablations(modes, probes, leaf)
  bucket = bucket_numbers(probes, buckets)
  means = [
    lost[bucket == index].mean(axis=0).tolist() if (bucket == index).any() else [float("nan")] * len(levels)
    for index in range(len(buckets))
  ]
  lines = [
    {name: probe.record[name] for name in ("prompt", "answer", "count")}
    | {"leaf": number, "log_likelihood": likelihood, "lost_without_level": dict(zip(levels, losses))}
    for probe, number, likelihood, losses in zip(probes, leaf.tolist(), likelihoods.tolist(), lost.tolist())
  ]
  return {"levels": list(levels), "lost_without_level": means}, lines


def ablations(modes: MemoryModes, probes: Sequence[Probe], leaf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Log-likelihood of each answer with the whole path, and by how much it falls without each level's block.

  Args:
    modes: a model with a bank.
    probes: n questions.
    leaf: int32 [n] leaf ids.

  Returns:
    float32 [n] nats, and float32 [n, K'] nats for the K' levels that have a table, `model.memory.levels`.
  """
  prompts, answers = [p.prompt for p in probes], [p.answer for p in probes]
  every = modes.model.config.required_memory.levels

  def score(levels):
    if not levels:
      scorer, chosen = modes.scorer(Mode.parse("fetched")), np.full_like(leaf, NO_MEMORY)
    else:
      scorer, chosen = modes.scorer(Mode.parse("levels " + " ".join(map(str, levels)))), leaf
    return scorer.score_continuations(prompts, answers, chosen)[0]

  whole = score(every)
  lost = [whole - score([level for level in every if level != left_out]) for left_out in every]
  return whole, np.stack(lost, axis=1)


def gradients(model: Model, probe: Probe, leaf: int, bos_id: int) -> dict[int, np.ndarray]:
  """Gradient times value of one question's fetched parameters: the first-order share of each unit in its answer.

  Runs on one device, for looking closely at one question.

  Args:
    model: one with a bank.
    probe: the question.
    leaf: its leaf id.
    bos_id: the input at the beginning of a document.

  Returns:
    For each level with a table, float32 [L, R_k] nats: what log-likelihood the unit adds, to first order. Where the
    memory's effect is small, their sum approximates what all of the memory adds.
  """
  memory = model.config.required_memory
  length = len(probe.prompt) + len(probe.answer)
  batch = jax.tree.map(
    jnp.asarray, prompt_batch([(probe.prompt, probe.answer)], np.array([leaf], np.int32), length, bos_id)
  )
  indices = row_indices(batch["memory_leaf"], memory)
  rows = {name: gather_rows(model.params["bank"][name], indices[name]).astype(jnp.float32) for name in indices}

  def log_likelihood(rows):
    logits = apply_anchor(model.anchor, model.params["anchor"], batch, rows_to_block(rows, model.config))
    losses, _ = token_losses(logits, batch)
    return -(losses * batch["decoder_loss_weights"]).sum()

  grads = jax.jit(jax.grad(log_likelihood))(rows)
  layers = len(model.config.memory_layers)

  def share(name):
    return (grads[name] * rows[name]).reshape(-1, layers, model.config.unit_params).sum(axis=-1).T

  return {level: np.asarray(share(table_name(level))) for level in memory.levels}
