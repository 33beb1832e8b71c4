"""Gradients in bfloat16 against those in float32, on text whose words are as unequal as those of real text."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermem_jax.models.anchor import init_anchor
from hiermem_jax.models.config import AnchorConfig
from hiermem_jax.models.losses import anchor_losses
from hiermem_jax.models.weights import look_up

VOCABULARY, SEQUENCES, LENGTH = 1024, 256, 128  # 32,768 tokens
ANCHOR = AnchorConfig(
  num_layers=1,
  width=32,
  num_heads=2,
  head_dim=16,
  mlp_width=64,
  vocab_size=VOCABULARY,
  logits_chunk=32,
  dtype="float32",
)


@pytest.fixture(scope="module")
def tokens():
  """int32 [SEQUENCES, LENGTH + 1]; the word of rank r is drawn in proportion to 1/r (Zipf's law)."""
  share = 1 / np.arange(1, VOCABULARY + 1)
  shape = (SEQUENCES, LENGTH + 1)
  return np.random.default_rng(0).choice(VOCABULARY, shape, p=share / share.sum()).astype(np.int32)


def gradients(config, tokens):
  """Of the mean loss, by each parameter of an anchor that starts from key 0."""
  ones = np.ones((SEQUENCES, LENGTH), np.int32)
  batch = {
    "decoder_input_tokens": tokens[:, :-1],
    "decoder_target_tokens": tokens[:, 1:],
    "decoder_loss_weights": ones.astype(np.float32),
    "decoder_segment_ids": ones,
    "decoder_positions": ones.cumsum(axis=1) - 1,
  }
  params = nn.unbox(init_anchor(jax.random.key(0), config))
  found = jax.jit(jax.grad(lambda params: anchor_losses(config, params, batch, None)[0].mean()))(params)
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(found)}


@pytest.mark.parametrize("tied", [False, True])
def test_every_gradient_has_the_norm_it_has_in_float32(tokens, tied):
  config = dataclasses.replace(ANCHOR, tied_embeddings=tied)
  exact, low = (gradients(dataclasses.replace(config, dtype=dtype), tokens) for dtype in ("float32", "bfloat16"))
  for name in exact:
    assert np.linalg.norm(low[name]) == pytest.approx(np.linalg.norm(exact[name]), rel=0.02), name
    assert np.linalg.norm(low[name] - exact[name]) < 0.02 * np.linalg.norm(exact[name]), name
  (embedding,) = (name for name in exact if "embedding" in name)
  for word in (0, 1, 2, 10, 100):  # word 0 is every eighth token
    assert np.linalg.norm(low[embedding][word]) == pytest.approx(np.linalg.norm(exact[embedding][word]), rel=0.02), word


def test_many_chunks_of_logits_do_not_make_the_gradient_of_the_head_worse(tokens):
  """Relative errors 0.0026 and 0.0026; where each of 64 additions rounds to bfloat16, the second is 0.0105."""

  def head(**how):
    found = gradients(dataclasses.replace(ANCHOR, **how), tokens)
    return next(gradient for name, gradient in found.items() if "head" in name)

  exact = head(logits_chunk=None)
  errors = [np.linalg.norm(head(dtype="bfloat16", logits_chunk=chunk) - exact) for chunk in (None, 2)]
  assert errors[1] < 1.2 * errors[0] < 0.01 * np.linalg.norm(exact)


def test_a_row_of_the_embedding_gets_the_sum_over_its_positions():
  """Against jnp.take, to the last bit in float32; and 4,096 equal terms, which a sum in bfloat16 stops at 256."""
  table = jax.random.normal(jax.random.key(0), (7, 3))
  tokens = jax.random.randint(jax.random.key(1), (5, 11), 0, 6)
  weights = jax.random.normal(jax.random.key(2), (5, 11, 3))
  ours = jax.grad(lambda table: (look_up(table, tokens) * weights).sum())(table)
  theirs = jax.grad(lambda table: (jnp.take(table, tokens, axis=0) * weights).sum())(table)
  assert np.array_equal(ours, theirs) and not ours[6].any()
  ones = jax.grad(lambda table: look_up(table, jnp.zeros((1, 4096), jnp.int32)).sum())(jnp.ones((2, 1), jnp.bfloat16))
  assert ones.dtype == jnp.bfloat16 and ones.ravel().tolist() == [4096, 0]
