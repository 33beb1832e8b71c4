"""AdamW for a bank table, from the gradient of the rows that a batch fetched.

Two optax transformations that differ in what happens to the other rows. Neither makes an array of the table's size for
the gradient.

  dense   AdamW on the whole table, as the paper's training does: a row that no sequence fetched has gradient zero, its
          moments decay, and momentum and weight decay still move it. Cost follows the bank.
  lazy    only fetched rows change: the others keep their moments and weights, without decay. Bias correction counts the
          steps that the row itself has taken, so that a rare row's first step is as large as a frequent one's. Cost
          follows the batch.

A row that is fetched in every step is updated alike by both. After a single isolated gradient, dense AdamW with the
paper's betas goes on to move a weight by about 5.8 learning rates, lazy by about one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hiermem_jax.models.bank import RowGradient


class RowAdamState(NamedTuple):
  """Optimizer state of one table."""

  step: jax.Array  # int32 []: steps of the run, which the learning rate follows
  row_steps: jax.Array  # lazy: int32 [C_k + 1], steps that each row has taken; dense: int32 [], the same as `step`
  mu: jax.Array  # first moment, shape of the table
  nu: jax.Array  # second moment, shape of the table


def row_adamw(
  learning_rate: optax.Schedule,
  *,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  lazy: bool,
  moment_dtype: str = "float32",
) -> optax.GradientTransformationExtraArgs:
  """AdamW whose gradient is a `RowGradient`; decay is decoupled, and everything is computed in float32.

  Returns:
    A transformation of one table. Its updates are a `RowGradient` when lazy and an array of the table's shape when
    dense; `apply_row_updates` adds either to the table. With `update(..., finite=False)` the gradient counts as never
    seen: the updates are zero and the state stays, without a second copy of either. bfloat16 moments are rounded
    stochastically, with `update(..., key=...)`: a decay by 0.999 is less than half of the spacing of bfloat16, and
    rounding to the nearest would undo it each time.
  """

  def init(table):
    # A boxed table (one that carries its axis names) gives boxed moments.
    mu, nu = (jax.tree.map(lambda x: jnp.zeros(x.shape, moment_dtype), table) for _ in range(2))
    rows = jax.tree.leaves(table)[0].shape[0]
    row_steps = jnp.zeros(rows if lazy else (), jnp.int32)
    return RowAdamState(jnp.zeros((), jnp.int32), row_steps, mu, nu)

  def direction(mu, nu, steps, weights, rate):
    mu = mu.astype(jnp.float32) / (1 - b1**steps)
    nu = nu.astype(jnp.float32) / (1 - b2**steps)
    return -rate * (mu / (jnp.sqrt(nu) + eps) + weight_decay * weights.astype(jnp.float32))

  def update(
    gradient: RowGradient, state: RowAdamState, table: jax.Array, *, finite: jax.Array | bool = True, key=None, **_
  ):
    def rounded(moment, number):
      """Exact where nothing is lost, as in a row of zeros or one that a gradient which is not finite leaves alone."""
      if moment_dtype == "float32":
        return moment
      return stochastic_round(jax.random.fold_in(key, number), moment)

    index, value = gradient
    value, rate, one = jnp.where(finite, value, 0.0), learning_rate(state.step), jnp.int32(finite)
    (decay1, new1), (decay2, new2) = ((jnp.where(finite, b, 1.0), jnp.where(finite, 1 - b, 0.0)) for b in (b1, b2))
    mu = decay1 * _rows(state.mu, index) + new1 * value
    nu = decay2 * _rows(state.nu, index) + new2 * jnp.square(value)
    if lazy:
      row_steps = state.row_steps.at[index].add(one, mode="drop", unique_indices=True)
      steps = jnp.maximum(row_steps.at[index].get(mode="fill", fill_value=1), 1)[:, None]
      rows = direction(mu, nu, steps, _rows(table, index), rate)
      updates: RowGradient | jax.Array = RowGradient(index, jnp.where(finite, rows, 0.0))
      moments = _set_rows(state.mu, index, rounded(mu, 0)), _set_rows(state.nu, index, rounded(nu, 1))
    else:
      row_steps = state.row_steps + one
      moments = (
        _set_rows(rounded(decay1 * state.mu.astype(jnp.float32), 2), index, rounded(mu, 0)),
        _set_rows(rounded(decay2 * state.nu.astype(jnp.float32), 3), index, rounded(nu, 1)),
      )
      updates = jnp.where(finite, direction(*moments, jnp.maximum(row_steps, 1), table, rate), 0.0)
    return updates, RowAdamState(state.step + one, row_steps, *moments)

  return optax.GradientTransformationExtraArgs(init, update)


def apply_row_updates(table: jax.Array, updates: RowGradient | jax.Array, key: jax.Array) -> jax.Array:
  """Adds updates to a table. A bfloat16 table is rounded stochastically with `key`, a float32 one needs no rounding.

  Without it an update below 1/256 of a weight would be lost each time, and at the paper's rate nearly all are.
  """
  if isinstance(updates, RowGradient):
    rows = _rows(table, updates.indices) + updates.value
    return _set_rows(table, updates.indices, rows if table.dtype == jnp.float32 else stochastic_round(key, rows))
  weights = table.astype(jnp.float32) + updates
  return weights if table.dtype == jnp.float32 else stochastic_round(key, weights)


def stochastic_round(key: jax.Array, x: jax.Array) -> jax.Array:
  """float32 -> bfloat16, up or down with the probabilities that make the expectation x; exact values stay."""
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise  # carries into the kept half in proportion to the rest
  return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def _rows(table: jax.Array, index: jax.Array) -> jax.Array:
  return table.at[index].get(mode="fill", fill_value=0).astype(jnp.float32)


def _set_rows(table: jax.Array, index: jax.Array, rows: jax.Array) -> jax.Array:
  return table.at[index].set(rows.astype(table.dtype), mode="drop", unique_indices=True)
