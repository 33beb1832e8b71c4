"""One training step: a pure function of (state, batch, key)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.models.anchor import Anchor
from hiermem_jax.models.config import AnchorConfig, MemoryConfig
from hiermem_jax.models.memory import Block
from hiermem_jax.parallel import batch_parallel, fetch, push
from hiermem_jax.parallel.mesh import BATCH_AXES, DATA_AXIS, DEFAULT_RULES, REPLICA_AXIS, Rules
from hiermem_jax.training.optimizer import apply_updates, global_norm
from hiermem_jax.training.state import TrainState, anchor_specs
from hiermem_jax.training.telemetry import Losses, describe_step

Params = dict[str, Any]  # "anchor", and "bank" when there is a memory
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def token_losses(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
  """Next-token cross-entropy and log-partition, both float32 [B, S], from logits [B, S, V]."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["decoder_target_tokens"])
  return losses, jax.nn.logsumexp(logits, axis=-1)


def apply_anchor(anchor: AnchorConfig, params, batch: Batch, block: Block | None) -> jax.Array:
  """Logits float32 [B, S, V] of a batch under the anchor and a fetched block."""
  return Anchor(anchor).apply({"params": params}, *_inputs(batch), block)


def anchor_hidden(anchor: AnchorConfig, params, batch: Batch, block: Block | None) -> tuple[jax.Array, jax.Array]:
  """Factors of the same logits, hidden states [B, S, D] and the output head [D, V]."""
  return Anchor(anchor).apply({"params": params}, *_inputs(batch), block, method="hidden")


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
    raise InputError(f"AnchorConfig.logits_chunk = {chunk}: does not divide sequences of {length}; bind a divisor")

  def split(x):
    return jnp.moveaxis(x.reshape(x.shape[0], length // chunk, chunk, *x.shape[2:]), 1, 0)

  # The logits are computed again in the backward pass; the head is an argument, so that it is gathered once.
  chunks = jax.lax.map(lambda x: jax.checkpoint(losses)(head, *x), (split(hidden), split(targets)))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(targets.shape), chunks)


def _inputs(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
  return tuple(batch[f"decoder_{name}"] for name in ("input_tokens", "segment_ids", "positions"))


def choose_generic(key: jax.Array, leaf: jax.Array, memory: MemoryConfig, probability: float) -> jax.Array:
  """Replaces each leaf id [B] by the generic one with the given probability, all levels together (Section 4)."""
  generic = jax.random.bernoulli(key, probability, leaf.shape)
  return jnp.where(generic, memory.num_leaves, leaf)


def make_gradients(
  *,
  anchor: AnchorConfig,
  memory: MemoryConfig | None,
  mesh: Mesh,
  rules: Rules = DEFAULT_RULES,
  z_loss: float = 0.0,
  frozen_anchor: bool = False,
) -> Callable[[Params, jax.Array, Batch], tuple[Params, Losses]]:
  """Builds the gradient of the loss (not yet jitted).

  The loss is the mean next-token cross-entropy over the global batch's non-padding tokens (equation 2.1), plus
  z_loss * (mean log-partition)**2. It is differentiated with respect to the anchor and the *fetched rows*, never the
  tables.

  Returns:
    gradients(params, leaf int32 [B], batch) -> (grads, losses): the anchor's gradients ({} where it is frozen, which
    are then not computed) and per table a `RowGradient`, each summed over the batch; the cross-entropy alone.
  """
  specs = anchor_specs(anchor, rules)
  trained_specs = {} if frozen_anchor else specs

  def local_loss(anchor_params, block, batch, tokens):
    """This device's part of the loss, whose gradients add up to the loss's."""
    losses, log_z = anchor_losses(anchor, anchor_params, batch, block)
    weights = batch["decoder_loss_weights"]
    of_sequence = (losses * weights).sum(axis=-1)
    loss = of_sequence.sum() / tokens
    log_z = (log_z * weights).sum() / tokens
    elsewhere = jax.lax.stop_gradient(jax.lax.psum(log_z, BATCH_AXES) - log_z)
    return loss + z_loss * jnp.square(log_z + elsewhere), (loss, of_sequence)

  def local_grads(anchor_params, block, batch):
    """Gradients of the loss on each device's sequences; the anchor's are summed over devices."""
    tokens_of_sequence = batch["decoder_loss_weights"].sum(axis=-1)
    tokens = jax.lax.psum(tokens_of_sequence.sum(), BATCH_AXES)
    grad_fn = jax.grad(local_loss, argnums=1 if frozen_anchor else (0, 1), has_aux=True)
    grads, (loss, of_sequence) = grad_fn(anchor_params, block, batch, tokens)
    anchor_grads, block_grads = ({}, grads) if frozen_anchor else grads

    def add(grad, spec):  # what is split over the data axis has been summed over it by the gather's gradient
      return jax.lax.psum(grad, REPLICA_AXIS if DATA_AXIS in spec else BATCH_AXES)

    anchor_grads = jax.tree.map(add, anchor_grads, trained_specs)
    losses = Losses(jax.lax.psum(loss, BATCH_AXES), tokens, of_sequence, tokens_of_sequence)
    return anchor_grads, block_grads, losses

  by_sequence, everywhere = PartitionSpec(BATCH_AXES), PartitionSpec()
  grads_fn = batch_parallel(
    local_grads,
    mesh,
    rules,
    in_specs=(specs, by_sequence, by_sequence),
    out_specs=(trained_specs, by_sequence, Losses(everywhere, everywhere, by_sequence, by_sequence)),
  )

  def gradients(params, leaf, batch):
    block = None if memory is None else fetch(params["bank"], leaf, memory, anchor, mesh)
    anchor_grads, block_grads, losses = grads_fn(params["anchor"], block, batch)
    grads = {"anchor": anchor_grads}
    if memory is not None:
      grads["bank"] = push(block_grads, leaf, memory, anchor, mesh)
    return grads, losses

  return gradients


def make_update(
  optimizer: optax.GradientTransformation,
) -> Callable[[TrainState, Params, jax.Array, jax.Array], tuple[TrainState, Params]]:
  """Builds update(state, grads, key, finite=True) of `OptimizerConfig.build`'s transformation.

  Returns:
    update, which gives the state after one step and the updates; with finite=False they are zero, and only the counts
    of steps and of skipped ones are others.
  """

  optimizer = optax.with_extra_args_support(optimizer)

  def update(state, grads, key, finite=True):
    with jax.named_scope("optimizer"):
      updates, opt_state = optimizer.update(grads, state.opt_state, state.params, finite=finite)
      params = apply_updates(state.params, updates, key)
    skipped = state.skipped + jnp.int32(1) - jnp.int32(finite)
    return TrainState(step=state.step + 1, skipped=skipped, params=params, opt_state=opt_state), updates

  return update


def make_train_step(
  *,
  anchor: AnchorConfig,
  memory: MemoryConfig | None,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  rules: Rules = DEFAULT_RULES,
  generic_probability: float,
  z_loss: float,
  frozen_anchor: bool = False,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
  """Builds the step (not yet jitted): chooses the generic sequences, then `make_gradients`, then `make_update`.

  A batch whose loss or gradient is not finite changes nothing but the step's number.

  Returns:
    step(state, batch, key) -> (state, metrics). The key is the run's; the step number is folded in. Metrics are float32
    scalars: loss (cross-entropy alone), tokens, grad_norm (before clipping), skipped (updates left out so far, this
    one included), and those of `telemetry.describe_step`.
  """
  gradients = make_gradients(
    anchor=anchor, memory=memory, mesh=mesh, rules=rules, z_loss=z_loss, frozen_anchor=frozen_anchor
  )
  update = make_update(optimizer)

  def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    generic_key, rounding_key = jax.random.split(jax.random.fold_in(key, state.step))
    leaf = batch["memory_leaf"]
    if memory is not None:
      leaf = choose_generic(generic_key, leaf, memory, generic_probability)
    grads, losses = gradients(state.params, leaf, batch)
    norm = global_norm(grads)
    finite = jnp.isfinite(losses.mean) & jnp.isfinite(norm)
    state, updates = update(state, grads, rounding_key, finite)
    metrics = {"loss": losses.mean, "tokens": losses.tokens, "grad_norm": norm}
    metrics["skipped"] = state.skipped.astype(jnp.float32)
    return state, metrics | describe_step(memory, leaf, losses, grads, updates)

  return step
