"""The model's losses: next-token cross-entropy of a batch, with as many logits at a time as memory allows."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from hiermem_jax.errors import InputError
from hiermem_jax.models import context
from hiermem_jax.models.anchor import Anchor
from hiermem_jax.models.anchor_config import AnchorConfig
from hiermem_jax.models.memory import Block

Batch = dict[str, jax.Array]


def token_losses(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
  """Next-token cross-entropy and log-partition, both float32 [B, S], from logits [B, S, V]."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["decoder_target_tokens"])
  return losses, jax.nn.logsumexp(logits, axis=-1)


def apply_anchor(anchor: AnchorConfig, params, batch: Batch, block: Block | None) -> jax.Array:
  """Logits float32 [B, S, V] of a batch under the anchor and a fetched block."""
  logits: Any = Anchor(anchor).apply({"params": params}, *_inputs(batch), block)
  return logits


def anchor_hidden(anchor: AnchorConfig, params, batch: Batch, block: Block | None) -> tuple[jax.Array, jax.Array]:
  """Factors of the same logits, hidden states [B, S, D] and the output head [D, V]."""
  factors: Any = Anchor(anchor).apply({"params": params}, *_inputs(batch), block, method="hidden")
  return factors


def anchor_losses(anchor: AnchorConfig, params, batch: Batch, block: Block | None) -> tuple[jax.Array, jax.Array]:
  """`token_losses` of a batch; only `anchor.logits_chunk` positions of the logits exist at a time."""
  hidden, head = anchor_hidden(anchor, params, batch, block)
  targets = batch["decoder_target_tokens"]

  def losses(head, hidden, targets):
    return token_losses((hidden @ head).astype(jnp.float32), {"decoder_target_tokens": targets})

  length = targets.shape[1]
  chunk = anchor.logits_chunk or length
  if chunk >= length:
    return losses(head, hidden, targets)
  if length % chunk:
    held = "sequences" if context.axis() is None else "a device's parts of sequences"
    raise InputError(f"AnchorConfig.logits_chunk = {chunk}: does not divide {held} of {length}; bind a divisor")

  def split(x):
    return jnp.moveaxis(x.reshape(x.shape[0], length // chunk, chunk, *x.shape[2:]), 1, 0)

  # The logits are computed again in the backward pass; the head is an argument, so that it is gathered once.
  chunks = jax.lax.map(lambda x: jax.checkpoint(losses)(head, *x), (split(hidden), split(targets)))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(targets.shape), chunks)


def _inputs(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
  return batch["decoder_input_tokens"], batch["decoder_segment_ids"], batch["decoder_positions"]
