"""The step against a dense formulation that differentiates the whole tables, and the choice of the generic memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.models import NO_MEMORY, Anchor, AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.bank import row_indices, table_shapes
from hiermem_jax.models.losses import token_losses
from hiermem_jax.models.memory import KINDS, Block
from hiermem_jax.parallel import make_mesh
from hiermem_jax.training import TrainState
from hiermem_jax.training.config import Objective
from hiermem_jax.training.step import choose_generic, make_train_step

ANCHOR = AnchorConfig(
  num_layers=2, width=8, num_heads=2, head_dim=4, mlp_width=12, vocab_size=19, dtype="float32", rope_base=100.0
)
MEMORY = MemoryConfig(rows=(3, 0, 2), branching=3)
GENERIC = MEMORY.num_leaves
LEAF = np.array([5, 5, 26, GENERIC, NO_MEMORY, 3], np.int32)
TOUCHED = {"level_1": [0, 2, 3], "level_3": [3, 5, 26, 27]}  # by hand; the last row of each is the generic one
Z_LOSS = 0.03


def record(grads, state, params, **_):
  """Keeps the gradient, rows laid out as tables, as its state, and changes nothing."""
  kept = {"anchor": grads["anchor"]}
  if "bank" in grads:
    kept["bank"] = {
      name: jnp.zeros_like(params["bank"][name]).at[index].add(value, mode="drop")
      for name, (index, value) in grads["bank"].items()
    }
  return jax.tree.map(jnp.zeros_like, kept), kept


RECORD = optax.GradientTransformationExtraArgs(lambda params: jax.tree.map(jnp.zeros_like, params), record)


def random_batch(leaf=LEAF, seed=0):
  rng = np.random.default_rng(seed)
  inputs, targets = rng.integers(0, ANCHOR.vocab_size, (2, len(leaf), 6)).astype(np.int32)
  segments = np.tile(np.array([1, 1, 1, 2, 2, 0], np.int32), (len(leaf), 1))
  return {
    "decoder_input_tokens": inputs,
    "decoder_target_tokens": targets,
    "decoder_segment_ids": segments,
    "decoder_positions": np.tile(np.array([0, 1, 2, 0, 1, 0], np.int32), (len(leaf), 1)),
    "decoder_loss_weights": (segments > 0).astype(np.float32),
    "memory_leaf": leaf,
  }


def make_step(memory, generic_probability=0.0, anchor=ANCHOR, optimizer=RECORD, microbatches=1, **objective):
  step = make_train_step(
    ModelConfig(anchor=anchor, memory=memory),
    optimizer,
    make_mesh(devices=jax.devices()[:1]),
    objective=Objective(**{"generic_probability": generic_probability, "z_loss": Z_LOSS} | objective),
    microbatches=microbatches,
  )
  return jax.jit(step)


def make_state(params, step=0):
  params = jax.tree.map(jnp.asarray, params)
  return TrainState(step=jnp.int32(step), skipped=jnp.int32(0), params=params, opt_state=RECORD.init(params))


@pytest.fixture(scope="module")
def params(random_anchor):
  rng = np.random.default_rng(2)
  shapes = table_shapes(ModelConfig(anchor=ANCHOR, memory=MEMORY))
  bank = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
  return {"anchor": random_anchor(ANCHOR), "bank": bank}


@pytest.fixture(scope="module")
def fetched_step():
  return make_step(MEMORY)


def dense_loss(params, batch):
  """(loss with its penalty, cross-entropy), the bank multiplied by one-hot vectors of the rows."""
  rows_of = {"level_1": [0, 0, 2, 3, None, 0], "level_3": [5, 5, 26, 27, None, 3]}
  blocks = []
  for name, neurons in (("level_1", 3), ("level_3", 2)):
    table = params["bank"][name]
    one_hot = np.zeros((len(LEAF), len(table)), np.float32)
    for sequence, row in enumerate(rows_of[name]):
      if row is not None:
        one_hot[sequence, row] = 1
    blocks.append((one_hot @ table).reshape(len(LEAF), neurons, ANCHOR.num_layers, 3, ANCHOR.width))
  layer_first = [part.swapaxes(1, 2) for part in blocks]  # [B, L, R, 3, D]
  matrices = (jnp.concatenate([part[:, :, :, matrix] for part in layer_first], axis=2) for matrix in range(3))
  block = Block(dict(zip(("m1", "m2", "m3"), matrices)), KINDS["ffn"])
  names = ("decoder_input_tokens", "decoder_segment_ids", "decoder_positions")
  logits = Anchor(ANCHOR).apply({"params": params["anchor"]}, *(batch[name] for name in names), block)
  log_z = jnp.log(jnp.exp(logits).sum(axis=-1))
  chosen = jnp.take_along_axis(logits, batch["decoder_target_tokens"][..., None], axis=-1)[..., 0]
  counted = batch["decoder_segment_ids"] > 0
  cross_entropy = jnp.mean(log_z - chosen, where=counted)
  return cross_entropy + Z_LOSS * jnp.mean(log_z, where=counted) ** 2, cross_entropy


def test_gradients_equal_those_of_the_dense_formulation(params, fetched_step):
  """With the z-loss, duplicates, the generic memory and none; rows off the batch's paths get exactly zero."""
  batch = random_batch()
  state, metrics = fetched_step(make_state(params), batch, jax.random.key(0))
  (_, cross_entropy), expected = jax.jit(jax.value_and_grad(dense_loss, has_aux=True))(params, batch)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4), state.opt_state, expected)
  for name, touched in TOUCHED.items():
    gradient = np.asarray(state.opt_state["bank"][name])
    np.testing.assert_array_equal(np.flatnonzero(np.abs(gradient).max(axis=1)), touched)
  assert float(metrics["loss"]) == pytest.approx(float(cross_entropy), rel=1e-5)
  assert float(metrics["tokens"]) == 5 * len(LEAF)
  norm = np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(expected)))
  assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
  assert int(state.step) == 1


@pytest.mark.parametrize("microbatches, objective", [(2, {}), (6, {"z_loss": 0.0}), (3, {"frozen_anchor": True})])
def test_microbatches_give_the_gradient_of_the_whole_batch(params, microbatches, objective):
  """Sequences of unequal numbers of tokens, one without any; rows that sequences of two microbatches share."""
  batch = random_batch()
  batch["decoder_loss_weights"] *= np.array([1, 1, 0, 1, 1, 1])[:, None] * np.random.default_rng(3).integers(0, 2, 6)
  whole, parts = (
    make_step(MEMORY, 0.3, microbatches=count, **objective)(make_state(params), batch, jax.random.key(0))
    for count in (1, microbatches)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-7, rtol=2e-6), parts[0].opt_state, whole[0].opt_state
  )
  assert parts[1].keys() == whole[1].keys()
  for name, value in whole[1].items():
    np.testing.assert_allclose(parts[1][name], value, rtol=1e-6, err_msg=name)


def test_microbatches_that_do_not_divide_the_batch(params):
  with pytest.raises(InputError, match=r"^train\.microbatches = 4: does not divide the 6 sequences that a device has"):
    make_step(MEMORY, microbatches=4)(make_state(params), random_batch(), jax.random.key(0))


def test_padding_is_ignored(params, fetched_step):
  batch = random_batch()
  changed = {name: array.copy() for name, array in batch.items()}
  padding = batch["decoder_segment_ids"] == 0
  for name in ("decoder_input_tokens", "decoder_target_tokens"):
    changed[name][padding] = (changed[name][padding] + 5) % ANCHOR.vocab_size
  results = [fetched_step(make_state(params), b, jax.random.key(0)) for b in (batch, changed)]
  jax.tree.map(np.testing.assert_array_equal, *((state.opt_state, metrics["loss"]) for state, metrics in results))


def test_loss_is_the_mean_over_weighted_tokens_not_over_sequences(params, fetched_step):
  batch = random_batch()
  batch["decoder_loss_weights"] = np.random.default_rng(3).integers(0, 2, (len(LEAF), 6)).astype(np.float32)
  batch["decoder_loss_weights"][0] = 0
  _, metrics = fetched_step(make_state(params), batch, jax.random.key(0))
  losses = []
  for row, position in zip(*np.nonzero(batch["decoder_loss_weights"])):
    single = batch | {"decoder_loss_weights": np.zeros((len(LEAF), 6), np.float32)}
    single["decoder_loss_weights"][row, position] = 1
    losses.append(float(fetched_step(make_state(params), single, jax.random.key(0))[1]["loss"]))
  assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_token_losses():
  logits = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32) * 4
  targets = np.array([[0, 1, 2], [3, 4, 0]], np.int32)
  losses, log_z = token_losses(logits, {"decoder_target_tokens": targets})
  exponentials = np.exp(logits.astype(np.float64))
  np.testing.assert_allclose(log_z, np.log(exponentials.sum(axis=-1)), rtol=1e-5)
  probability = np.take_along_axis(exponentials / exponentials.sum(axis=-1, keepdims=True), targets[..., None], axis=-1)
  np.testing.assert_allclose(losses, -np.log(probability[..., 0]), rtol=1e-4)


def test_without_memory_there_is_no_bank(params):
  state = make_state({"anchor": params["anchor"]})
  batch = random_batch()
  after, metrics = make_step(None, generic_probability=1.0)(state, batch, jax.random.key(0))
  assert after.params.keys() == {"anchor"}
  names = ("decoder_input_tokens", "decoder_segment_ids", "decoder_positions")
  logits = jax.jit(Anchor(ANCHOR).apply)({"params": params["anchor"]}, *(batch[name] for name in names))
  losses, _ = token_losses(logits, batch)
  assert float(metrics["loss"]) == pytest.approx(float(losses[batch["decoder_segment_ids"] > 0].mean()), rel=1e-5)


def test_generic_choice_has_its_frequency():
  """34,000 draws; the standard deviation is 43."""
  leaf = np.full(34_000, 7, np.int32)
  chosen = np.asarray(choose_generic(jax.random.key(0), leaf, MEMORY, 1 / 17))
  assert set(chosen) == {7, GENERIC}
  assert abs((chosen == GENERIC).sum() - 2000) < 4 * 43.4
  np.testing.assert_array_equal(choose_generic(jax.random.key(0), leaf, MEMORY, 0.0), leaf)
  np.testing.assert_array_equal(choose_generic(jax.random.key(0), leaf, MEMORY, 1.0), GENERIC)


def test_generic_is_chosen_for_all_levels_together():
  chosen = choose_generic(jax.random.key(1), np.zeros(200, np.int32), MEMORY, 0.5)
  rows = row_indices(chosen, MEMORY)
  generic = np.asarray(rows["level_1"]) == 3
  assert 60 < generic.sum() < 140
  np.testing.assert_array_equal(np.asarray(rows["level_3"]) == 27, generic)


def test_generic_is_chosen_anew_per_sequence_and_step(params):
  """Each sequence has a leaf of its own, so the rows that get gradient show which sequences kept theirs."""
  step = make_step(MEMORY, generic_probability=0.5)
  leaves = np.arange(24, dtype=np.int32)
  batch, kept = random_batch(leaves), []
  for number in (0, 1, 0):
    state, _ = step(make_state(params, number), batch, jax.random.key(0))
    used = np.abs(np.asarray(state.opt_state["bank"]["level_3"])).max(axis=1) > 0
    assert used[27]
    kept.append(used[:24])
    assert 3 < used[:24].sum() < 21
  assert (kept[0] != kept[1]).any()
  np.testing.assert_array_equal(kept[0], kept[2])


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_of_logits_give_the_same_gradients(params, fetched_step, chunk):
  anchor = dataclasses.replace(ANCHOR, logits_chunk=chunk)
  results = [
    step(make_state(params), random_batch(), jax.random.key(0))
    for step in (fetched_step, make_step(MEMORY, anchor=anchor))
  ]
  (expected, metrics), (state, chunked) = results
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.opt_state, expected.opt_state)
  assert float(chunked["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)


def test_chunk_that_does_not_divide_the_sequence(params):
  with pytest.raises(InputError, match="logits_chunk = 4: does not divide sequences of 6"):
    make_step(MEMORY, anchor=dataclasses.replace(ANCHOR, logits_chunk=4))(
      make_state(params), random_batch(), jax.random.key(0)
    )


def nudge(grads, state, params, finite=True, key=None):
  """Adds half of bfloat16's spacing at 1 to every weight of the bank; its state is what it was told of the batch."""
  updates = {name: jnp.full(table.shape, 2.0**-8) for name, table in params["bank"].items()}
  return {"anchor": {}, "bank": updates}, jnp.asarray(finite)


def nudged_state(anchor_params, step=0):
  bank = {
    name: jnp.ones(shape, jnp.bfloat16)
    for name, shape in table_shapes(ModelConfig(anchor=ANCHOR, memory=MEMORY)).items()
  }
  params = {"anchor": jax.tree.map(jnp.asarray, anchor_params), "bank": bank}
  return TrainState(step=jnp.int32(step), skipped=jnp.int32(3), params=params, opt_state=jnp.asarray(True))


@pytest.fixture(scope="module")
def nudging_step():
  return make_step(MEMORY, optimizer=optax.GradientTransformationExtraArgs(lambda params: jnp.asarray(True), nudge))


@pytest.mark.parametrize("gradient, loss", [(True, True), (False, True), (True, False)])
def test_loss_and_gradient_must_both_be_finite(params, nudging_step, gradient, loss):
  """A head of 1e25 gives a finite loss whose gradient's norm overflows; a token beyond the vocabulary the opposite."""
  anchor, batch = dict(params["anchor"]), random_batch()
  if not gradient:
    anchor["head"] = jax.tree.map(lambda x: x * 1e25, anchor["head"])
  if not loss:
    batch["decoder_target_tokens"][0, 0] = ANCHOR.vocab_size
  state, metrics = nudging_step(nudged_state(anchor), batch, jax.random.key(0))
  assert np.isfinite(metrics["grad_norm"]) == gradient
  assert np.isfinite(metrics["loss"]) == loss
  assert bool(state.opt_state) == (gradient and loss)  # what the optimizer was told
  assert int(state.skipped) == float(metrics["skipped"]) == (3 if gradient and loss else 4)
  assert int(state.step) == 1


def test_rounding_is_drawn_anew_in_every_step(params, nudging_step):
  first, second, again = (
    np.asarray(
      nudging_step(nudged_state(params["anchor"], step), random_batch(), jax.random.key(0))[0].params["bank"]["level_3"]
    )
    for step in (0, 1, 0)
  )
  assert 0.3 < (first == second).mean() < 0.7
  np.testing.assert_array_equal(first, again)
