"""Training by brute force: whole tables are differentiated through one-hot products, AdamW is optax's and NumPy's.

Nothing here knows of rows that are fetched, of sums over duplicates or of devices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small_run import ANCHOR, GENERIC

from hiermem_jax.models import Anchor
from hiermem_jax.models.memory import KINDS, Block

NEURONS = {"level_1": 4, "level_3": 2}
LEAVES_PER_ROW = {"level_1": 9, "level_3": 1}


def row_of(name, leaf):
  """Row of table `name` that a leaf addresses; None for no memory."""
  if leaf < 0:
    return None
  return GENERIC // LEAVES_PER_ROW[name] if leaf == GENERIC else int(leaf) // LEAVES_PER_ROW[name]


def one_hot(name, leaves, rows):
  """float32 [B, rows], a one for each sequence's row."""
  result = np.zeros((len(leaves), rows), np.float32)
  for sequence, leaf in enumerate(leaves):
    if (row := row_of(name, leaf)) is not None:
      result[sequence, row] = 1
  return result


def loss_fn(params, batch, choice, z_loss):
  """(loss with its penalty, cross-entropy) with the bank's tables as dense parameters."""
  parts = []
  for name, neurons in NEURONS.items():
    rows = choice[name] @ params["bank"][name]
    parts.append(rows.reshape(-1, neurons, ANCHOR.num_layers, 3, ANCHOR.width).swapaxes(1, 2))
  matrices = (jnp.concatenate([part[:, :, :, matrix] for part in parts], axis=2) for matrix in range(3))
  block = Block(dict(zip(("m1", "m2", "m3"), matrices)), KINDS["ffn"])
  names = ("decoder_input_tokens", "decoder_segment_ids", "decoder_positions")
  logits = Anchor(ANCHOR).apply({"params": params["anchor"]}, *(batch[name] for name in names), block)
  log_z = jnp.log(jnp.exp(logits).sum(axis=-1))
  chosen = jnp.take_along_axis(logits, batch["decoder_target_tokens"][..., None], axis=-1)[..., 0]
  weights = batch["decoder_loss_weights"]
  cross_entropy = ((log_z - chosen) * weights).sum() / weights.sum()
  return cross_entropy + z_loss * ((log_z * weights).sum() / weights.sum()) ** 2, cross_entropy


_grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


class LazyAdamW:
  """AdamW in float64 NumPy in which a row takes part in the steps that name it, and counts its own steps."""

  def __init__(self, optimizer, table):
    self.config = optimizer
    self.mu, self.nu, self.steps = np.zeros(table.shape), np.zeros(table.shape), np.zeros(len(table), int)

  def update(self, table, gradient, named, rate):
    config, table = self.config, table.astype(np.float64)
    for row in named:
      self.steps[row] += 1
      self.mu[row] = config.beta1 * self.mu[row] + (1 - config.beta1) * gradient[row]
      self.nu[row] = config.beta2 * self.nu[row] + (1 - config.beta2) * gradient[row] ** 2
      mean = self.mu[row] / (1 - config.beta1 ** self.steps[row])
      scale = np.sqrt(self.nu[row] / (1 - config.beta2 ** self.steps[row])) + config.epsilon
      table[row] -= rate * (mean / scale + config.weight_decay * table[row])
    return table.astype(np.float32)


def train(params, batches, optimizer, z_loss, lazy):
  """Trains a copy of `params`; `lazy` names the tables that are updated lazily. Returns (params, losses)."""
  params = jax.tree.map(np.asarray, params)
  steps = len(batches)
  decay = {"weight_decay": optimizer.weight_decay, "eps": optimizer.epsilon}
  adamw = optax.adamw(optimizer.schedule(steps), b1=optimizer.beta1, b2=optimizer.beta2, **decay)
  rows = {name: LazyAdamW(optimizer, params["bank"][name]) for name in lazy}
  opt_state, losses = adamw.init(params), []
  update_fn = jax.jit(adamw.update)
  for step, batch in enumerate(batches):
    leaves = batch["memory_leaf"]
    choice = {name: one_hot(name, leaves, len(table)) for name, table in params["bank"].items()}
    (_, loss), grads = _grad_fn(params, batch, choice, z_loss)
    losses.append(float(loss))
    norm = np.sqrt(sum((np.asarray(grad, np.float64) ** 2).sum() for grad in jax.tree.leaves(grads)))
    grads = jax.tree.map(lambda grad, norm=norm: grad * min(1.0, optimizer.clip_norm / norm), grads)
    updates, opt_state = update_fn(grads, opt_state, params)
    updated = jax.tree.map(np.asarray, optax.apply_updates(params, updates))
    for name in lazy:
      named = {row_of(name, leaf) for leaf in leaves} - {None}
      rate = float(optimizer.schedule(steps)(step))
      updated["bank"][name] = rows[name].update(params["bank"][name], np.asarray(grads["bank"][name]), named, rate)
    params = updated
  return params, losses
