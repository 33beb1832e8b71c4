"""Row-sparse AdamW against an AdamW of NumPy that is run row by row, each row with a clock of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hiermem_jax.models.bank import RowGradient, sum_rows
from hiermem_jax.training.row_adamw import apply_row_updates, row_adamw, stochastic_round

ROWS, WIDTH, STEPS = 12, 5, 9
ADAM = {"b1": 0.8, "b2": 0.9, "eps": 1e-3, "weight_decay": 0.1}


def rate(step):
  return 0.05 / (1 + step)


def gradients():
  """Per step the row indices of four sequences, some shared and some without memory, and their rows."""
  rng = np.random.default_rng(0)
  for step in range(STEPS):
    index = rng.integers(0, ROWS if step % 2 else 4, 4).astype(np.int32)  # four rows are busy, the others rare
    if step == 3:
      index[1:] = ROWS  # no memory
    yield index, rng.standard_normal((4, WIDTH)).astype(np.float32)


def lazy_reference(table):
  """float64 AdamW in which only the rows that a step names take part."""
  table, steps = table.astype(np.float64), np.zeros(ROWS, int)
  mu, nu = np.zeros_like(table), np.zeros_like(table)
  for step, (index, rows) in enumerate(gradients()):
    for row in set(index.tolist()) - {ROWS}:
      gradient = rows[index == row].astype(np.float64).sum(axis=0)
      steps[row] += 1
      mu[row] = 0.8 * mu[row] + 0.2 * gradient
      nu[row] = 0.9 * nu[row] + 0.1 * gradient**2
      direction = mu[row] / (1 - 0.8 ** steps[row]) / (np.sqrt(nu[row] / (1 - 0.9 ** steps[row])) + 1e-3)
      table[row] -= rate(step) * (direction + 0.1 * table[row])
  return table, mu, nu, steps


def run(table, *, lazy, moment_dtype="float32"):
  transformation = row_adamw(rate, **ADAM, lazy=lazy, moment_dtype=moment_dtype)

  @jax.jit
  def step(table, state, index, rows, key):
    updates, state = transformation.update(sum_rows(index, rows, ROWS), state, table, key=jax.random.fold_in(key, 1))
    return apply_row_updates(table, updates, key), state

  state = transformation.init(table)
  for number, (index, rows) in enumerate(gradients()):
    table, state = step(table, state, index, rows, jax.random.key(number))
  return table, state


@pytest.fixture(scope="module")
def table():
  return np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)


def test_lazy_equals_row_by_row(table):
  result, state = run(jnp.asarray(table), lazy=True)
  expected, mu, nu, steps = lazy_reference(table)
  assert 0 in steps and steps.max() > 3
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(state.mu, mu, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(state.nu, nu, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(state.row_steps, steps)


def test_lazy_leaves_untouched_rows_bit_for_bit(table):
  untouched = lazy_reference(table)[3] == 0
  result, state = run(jnp.asarray(table), lazy=True)
  np.testing.assert_array_equal(np.asarray(result)[untouched], table[untouched])
  np.testing.assert_array_equal(np.asarray(state.mu)[untouched], 0)


def test_dense_equals_optax(table):
  result, _ = run(jnp.asarray(table), lazy=False)
  adamw = optax.adamw(rate, **ADAM)
  expected, state = jnp.asarray(table), adamw.init(jnp.asarray(table))
  for index, rows in gradients():
    dense = np.zeros((ROWS + 1, WIDTH), np.float32)
    np.add.at(dense, index, rows)
    updates, state = adamw.update(jnp.asarray(dense[:-1]), state, expected)
    expected = optax.apply_updates(expected, updates)
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_rows_that_every_step_names_are_updated_alike():
  """Where all rows are fetched in all steps, lazy and dense are the same optimizer."""
  rng = np.random.default_rng(2)
  tables = {lazy: jnp.ones((3, WIDTH)) for lazy in (True, False)}
  transformations = {lazy: row_adamw(rate, **ADAM, lazy=lazy) for lazy in tables}
  states = {lazy: transformations[lazy].init(tables[lazy]) for lazy in tables}
  for _ in range(5):
    gradient = RowGradient(jnp.arange(3), jnp.asarray(rng.standard_normal((3, WIDTH)), jnp.float32))
    for lazy, table in tables.items():
      updates, states[lazy] = transformations[lazy].update(gradient, states[lazy], table)
      tables[lazy] = apply_row_updates(table, updates, jax.random.key(0))
  np.testing.assert_allclose(tables[True], tables[False], rtol=1e-6)


def test_one_isolated_gradient():
  """The paper's betas: dense AdamW goes on to move the weight by about 5.8 learning rates in all, lazy by one."""
  moved = {}
  for lazy in (True, False):
    transformation = row_adamw(lambda _: 1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, lazy=lazy)
    table = jnp.zeros((1, 1))
    state = transformation.init(table)
    update = jax.jit(transformation.update)
    # The moments of a long run have seen gradients; bias correction is over.
    state = state._replace(row_steps=jnp.full_like(state.row_steps, 0 if lazy else 10_000))
    for step in range(200):
      gradient = RowGradient(jnp.array([0 if step == 0 else 1]), jnp.array([[1.0 if step == 0 else 0.0]]))
      updates, state = update(gradient, state, table)
      table = apply_row_updates(table, updates, jax.random.key(0))
    moved[lazy] = -float(table[0, 0]) / 1e-3
  assert moved[True] == pytest.approx(1.0, rel=1e-4)
  momentum = sum(0.1 * 0.9**k / np.sqrt(0.05 * 0.95**k) for k in range(200))
  assert moved[False] == pytest.approx(momentum, rel=1e-3)
  assert 5.7 < moved[False] < 5.9


@pytest.mark.parametrize("lazy", [True, False])
def test_bfloat16_tables_and_moments_stay_close(table, lazy):
  exact, _ = run(jnp.asarray(table), lazy=lazy)
  result, state = run(jnp.asarray(table, jnp.bfloat16), lazy=lazy, moment_dtype="bfloat16")
  assert result.dtype == state.mu.dtype == state.nu.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(result, np.float32), exact, atol=0.05)


def test_entries_of_a_gradient_that_name_no_row_get_no_update():
  """A gradient has as many entries as the batch has sequences, and names fewer rows when two share one."""
  transformation = row_adamw(rate, **ADAM, lazy=True)
  table = jnp.ones((ROWS, 3))
  gradient = sum_rows(jnp.array([2, 2, ROWS]), jnp.ones((3, 3)), ROWS)
  updates, _ = transformation.update(gradient, transformation.init(table), table)
  named = np.asarray(updates.indices) < ROWS
  assert named.sum() == 1 and np.asarray(updates.value)[named].all()
  np.testing.assert_array_equal(np.asarray(updates.value)[~named], 0)


@pytest.mark.parametrize("lazy", [True, False])
def test_bfloat16_moments_decay(lazy):
  """By 0.999 a step, which is less than half of the spacing of bfloat16: 2,000 steps leave 0.135 of the second moment."""
  transformation = row_adamw(rate, **ADAM | {"b1": 0.998, "b2": 0.999}, lazy=lazy, moment_dtype="bfloat16")
  table = jnp.zeros((3, 4000))
  zeros = sum_rows(jnp.array([0, 1]), jnp.zeros((2, 4000)), 3)

  def body(step, state):
    return transformation.update(zeros, state, table, key=jax.random.fold_in(jax.random.key(0), step))[1]

  ones = jnp.ones(table.shape, jnp.bfloat16)
  start = transformation.init(table)._replace(mu=ones, nu=ones)
  state = jax.jit(lambda state: jax.lax.fori_loop(0, 2000, body, state))(start)
  mu, nu = (np.asarray(moment, np.float32).mean(axis=1) for moment in (state.mu, state.nu))
  left = 2 if lazy else 3  # a lazy update leaves the row alone that no sequence fetched
  np.testing.assert_allclose(nu[:left], 0.999**2000, rtol=0.03)
  np.testing.assert_allclose(mu[:left], 0.998**2000, rtol=0.05)
  assert (nu[left:] == 1).all() and (mu[left:] == 1).all()


def test_a_gradient_that_is_not_finite_leaves_bfloat16_moments_as_they_are():
  rng = np.random.default_rng(0)
  transformation = row_adamw(rate, **ADAM, lazy=False, moment_dtype="bfloat16")
  table = jnp.zeros((3, 50))
  values = jnp.asarray(rng.standard_normal((3, 50)), jnp.bfloat16)
  state = transformation.init(table)._replace(mu=values, nu=values**2)
  gradient = sum_rows(jnp.array([0, 2]), jnp.full((2, 50), jnp.nan), 3)
  _, after = transformation.update(gradient, state, table, finite=jnp.bool_(False), key=jax.random.key(0))
  np.testing.assert_array_equal(np.asarray(after.mu, np.float32), np.asarray(state.mu, np.float32))
  np.testing.assert_array_equal(np.asarray(after.nu, np.float32), np.asarray(state.nu, np.float32))


def test_stochastic_rounding_keeps_the_mean():
  """Half of the way, a hundredth of it, and exact values, of both signs and many magnitudes."""
  base = np.array([1.0, -3.0, 2.0**-20, 1e20], np.float32)
  low = np.asarray(jnp.asarray(base, jnp.bfloat16), np.float32)
  step = np.abs(low) * 2.0**-7 / np.abs(low / 2.0 ** np.floor(np.log2(np.abs(low))))  # spacing of bfloat16 there
  for fraction in (0.5, 0.01, 0.0):
    x = np.tile((low + fraction * np.sign(low) * step).astype(np.float32), (20_000, 1))
    rounded = np.asarray(stochastic_round(jax.random.key(0), jnp.asarray(x)), np.float32)
    assert set(np.unique((rounded - low) / (np.sign(low) * step))) <= {0.0, 1.0}
    up = ((rounded - low) != 0).mean(axis=0)
    np.testing.assert_allclose(up, fraction, atol=0.02)
    if not fraction:
      np.testing.assert_array_equal(rounded, x)


def test_without_stochastic_rounding_small_updates_would_be_lost():
  """Half a million updates of a thousandth of the spacing move a bfloat16 table as far as they would a float32 one."""
  table = jnp.ones((500,), jnp.bfloat16)

  def body(step, table):
    updates = jnp.full(table.shape, 2.0**-7 / 1000)
    return apply_row_updates(table, updates, jax.random.fold_in(jax.random.key(0), step))

  moved = np.asarray(jax.jit(lambda t: jax.lax.fori_loop(0, 1000, body, t))(table), np.float32).mean() - 1
  assert moved == pytest.approx(2.0**-7, rel=0.1)
  assert np.asarray(jnp.ones((), jnp.bfloat16) + jnp.bfloat16(2.0**-7 / 1000)) == 1


def test_fetched_rows_of_a_bfloat16_table_are_rounded_stochastically():
  """A quarter of the spacing moves a quarter of the weights, others with another key; rows that no id names stay."""
  spacing, index = 2.0**-7, jnp.array([4, 1, ROWS])
  table = jnp.ones((ROWS, 4000), jnp.bfloat16)
  updates = RowGradient(index, jnp.full((3, 4000), spacing / 4))
  first, second = (np.asarray(apply_row_updates(table, updates, jax.random.key(k)), np.float32) for k in (0, 1))
  for result in (first, second):
    assert set(np.unique(result[[1, 4]])) == {1.0, 1.0 + spacing}
    np.testing.assert_allclose((result[[1, 4]] > 1).mean(axis=1), 0.25, atol=0.04)  # 6 standard deviations
    np.testing.assert_array_equal(np.delete(result, [1, 4], axis=0), 1.0)
  assert (first != second).any()
  assert (first[1] != first[4]).any()
