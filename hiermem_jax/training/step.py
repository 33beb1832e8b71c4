"""One training step: a pure function of (state, batch, key)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import MemoryConfig, ModelConfig
from hiermem_jax.models.losses import anchor_losses
from hiermem_jax.parallel import push, with_fetched_block
from hiermem_jax.parallel.layout import anchor_specs
from hiermem_jax.parallel.mesh import (
  BATCH_AXES,
  CONTEXT_AXIS,
  DATA_AXIS,
  DEFAULT_RULES,
  REPLICA_AXIS,
  TOKEN_AXES,
  Rules,
)
from hiermem_jax.training.config import Objective
from hiermem_jax.training.optimizer import apply_updates, global_norm
from hiermem_jax.training.state import TrainState
from hiermem_jax.training.telemetry import Losses, step_scalars

Params = dict[str, Any]  # "anchor", and "bank" when there is a memory
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
_MOMENTS = 1 << 16  # folded into the rounding key, for the moments; the tables take numbers from 0


def choose_generic(key: jax.Array, leaf: jax.Array, memory: MemoryConfig, probability: float) -> jax.Array:
  """Replaces each leaf id [B] by the generic one with the given probability, all levels together (Section 4)."""
  generic = jax.random.bernoulli(key, probability, leaf.shape)
  return jnp.where(generic, memory.num_leaves, leaf)


def make_gradients(
  model: ModelConfig, mesh: Mesh, *, objective: Objective, rules: Rules = DEFAULT_RULES, microbatches: int = 1
) -> Callable[[Params, jax.Array, Batch], tuple[Params, Losses]]:
  """Builds the gradient of the loss (not yet jitted).

  The loss is the mean next-token cross-entropy over the global batch's non-padding tokens (equation 2.1), plus
  z_loss * (mean log-partition)**2. It is differentiated with respect to the anchor's parameters and the *fetched rows*,
  never the tables:

    1. fetch        leaf [B] -> block, vectors [B, L, R, width]
    2. on each device, with its b sequences and its S of their positions, b / m sequences at a time:
       a. losses and log-partitions of its tokens      [b / m, S]
       b. their gradients by the anchor's parameters and by the block [b / m, L, R, width]
       c. the anchor's are added up in float32
    3. the anchor's are summed over the devices, the block's over those that share a sequence
    4. push         the block's gradient -> per table the rows' gradient, summed over the batch

  The m microbatches give the gradient of the whole batch, not a mean of theirs: the loss is divided by the tokens of
  the global batch, and rows are exchanged once. With a z-loss the mean log-partition must be known before the first
  gradient; m > 1 then costs one more forward pass.

  Args:
    model: shapes of the anchor and of the memory.
    mesh: the mesh.
    objective: the loss. Where it freezes the anchor, the anchor's gradients are not computed.
    rules: of the layout.
    microbatches: m, how many parts a device's sequences are split into, of which one at a time has activations.

  Returns:
    gradients(params, leaf int32 [B], batch) -> (grads, losses). `grads` has "anchor", the anchor's gradients ({} where
    it is frozen), and "bank", a `RowGradient` per table. Both are sums over the batch. `losses` is the cross-entropy
    alone.
  """
  specs = {} if objective.frozen_anchor else anchor_specs(model.anchor, rules)

  def sum_over_context(grad):  # in float32
    if mesh.shape[CONTEXT_AXIS] == 1:
      return grad
    return jax.lax.psum(grad.astype(jnp.float32), CONTEXT_AXIS).astype(grad.dtype)

  def weighted_losses(anchor_params, block, batch, tokens):
    """Cross-entropy of each sequence [b], and these tokens' part of the mean log-partition []."""
    losses, log_z = anchor_losses(model.anchor, anchor_params, batch, block)
    weights = batch["decoder_loss_weights"]
    return (losses * weights).sum(axis=-1), (log_z * weights).sum() / tokens

  def local_loss(anchor_params, block, batch, tokens, mean_log_z):
    """This device's part of the loss. The gradients of all parts add up to the loss's gradient."""
    of_sequence, log_z = weighted_losses(anchor_params, block, batch, tokens)
    loss = of_sequence.sum() / tokens
    if mean_log_z is None:
      mean_log_z = jax.lax.psum(log_z, TOKEN_AXES)
    elsewhere = jax.lax.stop_gradient(mean_log_z - log_z)
    return loss + objective.z_loss * jnp.square(log_z + elsewhere), (loss, of_sequence)

  def part_grads(anchor_params, block, batch, tokens, mean_log_z=None):
    """Gradients by the anchor ({} where it is frozen) and by the block, the loss, and the losses of the sequences."""
    grad_fn = jax.grad(local_loss, argnums=1 if objective.frozen_anchor else (0, 1), has_aux=True)
    grads, (loss, of_sequence) = grad_fn(anchor_params, block, batch, tokens, mean_log_z)
    anchor_grads, block_grads = ({}, grads) if objective.frozen_anchor else grads
    return anchor_grads, block_grads, loss, of_sequence

  def summed_grads(anchor_params, block, batch, tokens):
    """The same, one microbatch after the other."""
    parts = _split((block, batch), microbatches)
    mean_log_z = jnp.float32(0)
    if objective.z_loss:
      each = jax.lax.map(lambda part: weighted_losses(anchor_params, part[0], part[1], tokens)[1], parts)
      mean_log_z = jax.lax.psum(each.sum(), TOKEN_AXES)

    def add(sums, part):
      block, batch = part
      anchor_grads, block_grads, loss, of_sequence = part_grads(anchor_params, block, batch, tokens, mean_log_z)
      return jax.tree.map(jnp.add, sums, (anchor_grads, loss)), (block_grads, of_sequence)

    nothing = {} if objective.frozen_anchor else jax.tree.map(jnp.zeros_like, anchor_params)
    (anchor_grads, loss), by_sequence = jax.lax.scan(add, (nothing, jnp.float32(0)), parts)
    block_grads, of_sequence = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), by_sequence)
    return anchor_grads, block_grads, loss, of_sequence

  def local_grads(anchor_params, block, batch):
    """Gradients of the loss on each device's sequences; the anchor's are summed over devices."""
    tokens_of_sequence = jax.lax.psum(batch["decoder_loss_weights"].sum(axis=-1), CONTEXT_AXIS)
    tokens = jax.lax.psum(tokens_of_sequence.sum(), BATCH_AXES)
    grads_of = part_grads if microbatches == 1 else summed_grads
    anchor_grads, block_grads, loss, of_sequence = grads_of(anchor_params, block, batch, tokens)

    def add(grad, spec):  # what is split over the data axis has been summed over it by the gather's gradient
      return jax.lax.psum(grad, (REPLICA_AXIS, CONTEXT_AXIS) if DATA_AXIS in spec else TOKEN_AXES)

    anchor_grads = jax.tree.map(add, anchor_grads, specs)
    block_grads = jax.tree.map(sum_over_context, block_grads)
    of_sequence = jax.lax.psum(of_sequence, CONTEXT_AXIS)
    losses = Losses(jax.lax.psum(loss, TOKEN_AXES), tokens, of_sequence, tokens_of_sequence)
    return anchor_grads, block_grads, losses

  by_sequence, everywhere = PartitionSpec(BATCH_AXES), PartitionSpec()
  out_specs = (specs, by_sequence, Losses._make((everywhere, everywhere, by_sequence, by_sequence)))
  grads_fn = with_fetched_block(local_grads, model, mesh, rules, out_specs=out_specs, split_positions=True)

  def gradients(params, leaf, batch):
    anchor_grads, block_grads, losses = grads_fn(params, leaf, batch)
    grads = {"anchor": anchor_grads}
    if model.memory is not None:
      grads["bank"] = push(block_grads, leaf, model, mesh)
    return grads, losses

  return gradients


def _split(arrays, parts: int):
  """Arrays [b, ...] as [parts, b / parts, ...].

  Raises:
    InputError: the parts do not divide b.
  """

  def split(x):
    if len(x) % parts:
      raise InputError(
        f"train.microbatches = {parts}: does not divide the {len(x)} sequences that a device has of a batch; bind a"
        " divisor"
      )
    return x.reshape(parts, -1, *x.shape[1:])

  return jax.tree.map(split, arrays)


def make_update(
  optimizer: optax.GradientTransformation,
) -> Callable[..., tuple[TrainState, Params]]:
  """Builds the update of a state by `OptimizerConfig.build`'s transformation.

  Returns:
    update(state, grads, key, finite=True) -> (state, updates): the state after one step, and what was added to the
    parameters. With finite=False the updates are zero, and only the counts of steps and of skipped steps change.
  """

  optimizer = optax.with_extra_args_support(optimizer)

  def update(state, grads, key, finite=True):
    with jax.named_scope("optimizer"):
      moments_key = jax.random.fold_in(key, _MOMENTS)
      updates, opt_state = optimizer.update(grads, state.opt_state, state.params, finite=finite, key=moments_key)
      params = apply_updates(state.params, updates, key)
    skipped = state.skipped + jnp.int32(1) - jnp.int32(finite)
    return TrainState(step=state.step + 1, skipped=skipped, params=params, opt_state=opt_state), updates

  return update


def make_train_step(
  model: ModelConfig,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  objective: Objective,
  rules: Rules = DEFAULT_RULES,
  microbatches: int = 1,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
  """Builds the step (not yet jitted).

    1. choose the sequences that train the generic memory
    2. gradients, see `make_gradients`
    3. update, see `make_update`; a batch whose loss or gradient is not finite changes nothing but the step's number

  Returns:
    step(state, batch, key) -> (state, metrics). The key is the run's; the step number is folded in. Metrics are float32
    scalars: loss (cross-entropy alone), tokens, grad_norm (before clipping), skipped (updates left out so far, this
    one included), and those of `telemetry.step_scalars`.
  """
  gradients = make_gradients(model, mesh, objective=objective, rules=rules, microbatches=microbatches)
  update = make_update(optimizer)

  def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    generic_key, rounding_key = jax.random.split(jax.random.fold_in(key, state.step))
    leaf = batch["memory_leaf"]
    if model.memory is not None:
      leaf = choose_generic(generic_key, leaf, model.memory, objective.generic_probability)
    grads, losses = gradients(state.params, leaf, batch)
    norm = global_norm(grads)
    finite = jnp.isfinite(losses.mean) & jnp.isfinite(norm)
    state, updates = update(state, grads, rounding_key, finite)
    metrics = {"loss": losses.mean, "tokens": losses.tokens, "grad_norm": norm}
    metrics["skipped"] = state.skipped.astype(jnp.float32)
    return state, metrics | step_scalars(model.memory, leaf, losses, grads, updates)

  return step
