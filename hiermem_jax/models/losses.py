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
  length = targets.shape[1]
  chunk = anchor.logits_chunk or length
  if chunk >= length:
    return _head_losses(head, hidden, targets)
  if length % chunk:
    held = "sequences" if context.axis() is None else "a device's parts of sequences"
    raise InputError(f"AnchorConfig.logits_chunk = {chunk}: does not divide {held} of {length}; bind a divisor")

  def split(x):
    return jnp.moveaxis(x.reshape(x.shape[0], length // chunk, chunk, *x.shape[2:]), 1, 0)

  chunks = _chunked_losses(head, split(hidden), split(targets))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(targets.shape), chunks)


def _head_losses(head, hidden, targets):
  """`token_losses` from the factors of the logits."""
  return token_losses((hidden @ head).astype(jnp.float32), {"decoder_target_tokens": targets})


@jax.custom_vjp
def _chunked_losses(head: jax.Array, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`_head_losses` of one chunk after the other; the logits are computed again in the backward pass.

  The head's gradient is the sum over the chunks, in float32, rounded once to the head's type. In bfloat16 each of many
  additions would round.

  Args:
    head: [D, V]; an argument, so that it is gathered once.
    hidden: [chunks, B, C, D].
    targets: int32 [chunks, B, C].

  Returns:
    Losses and log-partitions, float32 [chunks, B, C] each.
  """
  return jax.lax.map(lambda chunk: _head_losses(head, *chunk), (hidden, targets))


def _chunked_forward(head, hidden, targets):
  return _chunked_losses(head, hidden, targets), (head, hidden, targets)


def _chunked_backward(saved, gradients):
  head, hidden, targets = saved

  def add(total, chunk):
    hidden, targets, gradient = chunk
    _, backward = jax.vjp(lambda head, hidden: _head_losses(head, hidden, targets), head, hidden)
    of_head, of_hidden = backward(gradient)
    return total + of_head.astype(jnp.float32), of_hidden

  total, of_hidden = jax.lax.scan(add, jnp.zeros(head.shape, jnp.float32), (hidden, targets, gradients))
  return total.astype(head.dtype), of_hidden, None


_chunked_losses.defvjp(_chunked_forward, _chunked_backward)


def _inputs(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
  return batch["decoder_input_tokens"], batch["decoder_segment_ids"], batch["decoder_positions"]
