"""One training step: a pure function of (state, batch, key)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from hiermem_jax.models.anchor import Anchor
from hiermem_jax.models.bank import Block, rows_to_block
from hiermem_jax.models.config import AnchorConfig, MemoryConfig
from hiermem_jax.parallel import fetch, push
from hiermem_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def token_losses(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
  """Next-token cross-entropy and log-partition, both float32 [B, S], from logits [B, S, V]."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["decoder_target_tokens"])
  return losses, jax.nn.logsumexp(logits, axis=-1)


def apply_anchor(anchor: AnchorConfig, params, batch: Batch, block: Block | None) -> jax.Array:
  """Logits float32 [B, S, V] of a batch under the anchor and a fetched block."""
  return Anchor(anchor).apply(
    {"params": params},
    batch["decoder_input_tokens"],
    batch["decoder_segment_ids"],
    batch["decoder_positions"],
    block,
  )


def choose_generic(key: jax.Array, leaf: jax.Array, memory: MemoryConfig, probability: float) -> jax.Array:
  """Replaces each leaf id [B] by the generic one with the given probability, all levels together (Section 4)."""
  generic = jax.random.bernoulli(key, probability, leaf.shape)
  return jnp.where(generic, memory.num_leaves, leaf)


def make_train_step(
  *,
  anchor: AnchorConfig,
  memory: MemoryConfig | None,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  generic_probability: float,
  z_loss: float,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
  """Builds the step (not yet jitted).

  The loss is the mean next-token cross-entropy over the global batch's non-padding tokens (equation 2.1), plus
  z_loss * (mean log-partition)**2. It is differentiated with respect to the anchor and the *fetched rows*, never the
  tables; row gradients are then summed over duplicates into the tables' shapes for the dense optimizer.

  Returns:
    step(state, batch, key) -> (state, metrics). The key is the run's; the step number is folded in. Metrics are float32
    scalars: loss (cross-entropy alone), tokens, grad_norm (before clipping).
  """

  def loss_fn(anchor_params, rows, batch):
    block = None if memory is None else rows_to_block(rows, memory, anchor)
    losses, log_z = token_losses(apply_anchor(anchor, anchor_params, batch, block), batch)
    weights = batch["decoder_loss_weights"]
    tokens = weights.sum()
    loss = (losses * weights).sum() / tokens
    penalty = z_loss * jnp.square((log_z * weights).sum() / tokens)
    return loss + penalty, (loss, tokens)

  def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    params = state.params
    rows = {}
    if memory is not None:
      key = jax.random.fold_in(key, state.step)
      leaf = choose_generic(key, batch["memory_leaf"], memory, generic_probability)
      rows = fetch(params["bank"], leaf, memory, mesh)
    grad_fn = jax.grad(loss_fn, argnums=(0, 1), has_aux=True)
    (anchor_grads, row_grads), (loss, tokens) = grad_fn(params["anchor"], rows, batch)
    grads = {"anchor": anchor_grads}
    if memory is not None:
      grads["bank"] = push(row_grads, leaf, params["bank"], memory, mesh)
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    metrics = {"loss": loss, "tokens": tokens, "grad_norm": optax.global_norm(grads)}
    new_state = state.replace(step=state.step + 1, params=optax.apply_updates(params, updates), opt_state=opt_state)
    return new_state, metrics

  return step
