"""The anchor against a float64 numpy decoder written from the paper, its document mask, and its initialisation."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from hiermem_jax.models.anchor import Anchor, init_anchor
from hiermem_jax.models.attention import document_mask
from hiermem_jax.models.config import AnchorConfig
from hiermem_jax.models.memory import KINDS, Block
from hiermem_jax.models.rope import rope, rope_angles

CONFIG = AnchorConfig(
  num_layers=2, width=16, num_heads=3, head_dim=4, mlp_width=24, vocab_size=29, dtype="float32", rope_base=100.0
)
# Two sequences: documents of 4, 5 and 2 tokens with one of padding; one document that fills the sequence.
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 0], [1] * 12], np.int32)
POSITIONS = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 0], list(range(12))], np.int32)


def reference(config, params, tokens, segments, positions, block=None):
  """Logits [S, V] of one sequence, float64; the block's neurons are joined to the SwiGLU matrices."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

  def norm(x, gain):
    if config.norm == "layernorm":
      x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.norm_eps) * gain

  def rotate(x):  # pairs (i, i + H/2) as complex numbers
    half = config.head_dim // 2
    angle = np.array([[p * config.rope_base ** (-2 * i / config.head_dim) for i in range(half)] for p in positions])
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
    return np.concatenate([z.real, z.imag], axis=-1)

  x = params["embed"]["embedding"][tokens]
  for layer in range(config.num_layers):
    p = jax.tree.map(lambda leaf: leaf[layer], params["layers"])  # noqa: B023
    attention, feed_forward = p["attention"], p["feed_forward"]
    h = norm(x, p["attention_norm"]["norm"]["scale"])
    q, k, v = (h @ attention[name]["kernel"] for name in ("query", "key", "value"))
    if config.qk_norm:
      q = norm(q, attention["query_norm"]["norm"]["scale"])
      k = norm(k, attention["key_norm"]["norm"]["scale"])
    q, k, v = (y.reshape(len(tokens), config.num_heads, config.head_dim) for y in (q, k, v))
    q, k = rotate(q), rotate(k)
    mixed = np.zeros_like(v)
    for query in range(len(tokens)):
      visible = [key for key in range(query + 1) if segments[key] == segments[query]]
      for head in range(config.num_heads):
        scores = np.array([q[query, head] @ k[key, head] for key in visible]) / np.sqrt(config.head_dim)
        weights = np.exp(scores - scores.max())
        mixed[query, head] = (weights / weights.sum()) @ v[visible, head]
    x = x + mixed.reshape(len(tokens), -1) @ attention["out"]["kernel"]
    h = norm(x, p["feed_forward_norm"]["norm"]["scale"])
    w1, w2, w3 = (feed_forward[name]["kernel"] for name in ("w1", "w2", "w3"))
    if block is not None:
      w1 = np.concatenate([w1, block.vectors["m1"][layer].T], axis=1)
      w2 = np.concatenate([w2, block.vectors["m2"][layer].T], axis=1)
      w3 = np.concatenate([w3, block.vectors["m3"][layer]], axis=0)
    gate = h @ w1
    x = x + (gate / (1 + np.exp(-gate)) * (h @ w2)) @ w3
  x = norm(x, params["final_norm"]["norm"]["scale"])
  return x @ (params["embed"]["embedding"].T if config.tied_embeddings else params["head"]["kernel"])


def random_tokens(seed=0):
  return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, SEGMENTS.shape).astype(np.int32)


def random_block(config, rows=5, seed=1):
  shape = (len(SEGMENTS), config.num_layers, rows, config.width)
  rng = np.random.default_rng(seed)
  draw = {name: rng.standard_normal(shape).astype(np.float32) * config.width**-0.5 for name in ("m1", "m2", "m3")}
  return Block(draw, KINDS["ffn"])


def jitted(config, params):
  return jax.jit(functools.partial(Anchor(config).apply, {"params": params}))


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"tied_embeddings": True, "qk_norm": False},
    {"norm": "rmsnorm", "norm_eps": 1e-2},
  ],
)
def test_equals_reference_with_memory_joined_to_the_swiglu(changes, random_anchor):
  """Joining the block's neurons to W1, W2, W3 is the same as adding its output; each sequence has its own block."""
  config = dataclasses.replace(CONFIG, **changes)
  params, tokens, block = random_anchor(config), random_tokens(), random_block(config)
  apply = jitted(config, params)
  with_memory, alone = apply(tokens, SEGMENTS, POSITIONS, block), apply(tokens, SEGMENTS, POSITIONS)
  assert with_memory.dtype == np.float32
  for row in range(len(tokens)):
    own = jax.tree.map(lambda leaf: leaf[row], block)  # noqa: B023
    inputs = (tokens[row], SEGMENTS[row], POSITIONS[row])
    np.testing.assert_allclose(alone[row], reference(config, params, *inputs), atol=1e-4)
    np.testing.assert_allclose(with_memory[row], reference(config, params, *inputs, own), atol=1e-4)
  assert np.abs(with_memory - alone).max() > 0.1


def test_documents_do_not_see_each_other(random_anchor):
  """New tokens in one document, and in the padding, change no bit of the others' logits."""
  apply = jitted(CONFIG, random_anchor(CONFIG))
  tokens = random_tokens()
  before = np.asarray(apply(tokens, SEGMENTS, POSITIONS))[0]
  for segment in (0, 1, 2, 3):
    inside = SEGMENTS[0] == segment
    changed = tokens.copy()
    changed[0, inside] = (changed[0, inside] + 7) % CONFIG.vocab_size
    after = np.asarray(apply(changed, SEGMENTS, POSITIONS))[0]
    np.testing.assert_array_equal(after[~inside], before[~inside])
    assert (after[inside] != before[inside]).any(axis=-1).all()


def test_future_tokens_are_not_seen(random_anchor):
  apply = jitted(CONFIG, random_anchor(CONFIG))
  tokens = random_tokens()
  before = np.asarray(apply(tokens, SEGMENTS, POSITIONS))[1]
  tokens[1, 6] = (tokens[1, 6] + 1) % CONFIG.vocab_size
  after = np.asarray(apply(tokens, SEGMENTS, POSITIONS))[1]
  np.testing.assert_array_equal(after[:6], before[:6])
  assert (after[6:] != before[6:]).any(axis=-1).all()


def test_packed_documents_equal_separate_ones(random_anchor):
  apply = jitted(CONFIG, random_anchor(CONFIG))
  tokens, width = random_tokens(), SEGMENTS.shape[1]
  packed = apply(tokens, SEGMENTS, POSITIONS)[0]
  for segment in (1, 2, 3):
    where = np.flatnonzero(SEGMENTS[0] == segment)
    alone = np.zeros((3, *SEGMENTS.shape), np.int32)  # tokens, segments, positions
    alone[:, 0, : len(where)] = tokens[0, where], np.ones(len(where)), np.arange(len(where))
    assert len(where) < width
    np.testing.assert_allclose(apply(*alone)[0, : len(where)], packed[where], atol=1e-5)


def test_document_mask_by_brute_force():
  mask = document_mask(SEGMENTS)
  expected = [[[s[k] == s[q] and k <= q for k in range(12)] for q in range(12)] for s in SEGMENTS]
  np.testing.assert_array_equal(mask[:, 0], expected)
  assert mask.any(axis=-1).all()


def test_rope_dot_products_depend_on_distance_alone():
  rng = np.random.default_rng(0)
  q, k = (np.tile(rng.standard_normal((1, 1, 2, 8)).astype(np.float32), (1, 10, 1, 1)) for _ in range(2))
  positions = np.arange(10, dtype=np.int32)[None]
  angles = rope_angles(positions, 8, 100.0)
  scores = np.einsum("bqnh,bknh->nqk", rope(q, angles), rope(k, angles))
  for distance in range(-9, 10):
    for head in scores:
      diagonal = np.diagonal(head, distance)
      np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
  np.testing.assert_array_equal(rope(q, rope_angles(np.zeros_like(positions), 8, 100.0)), q)


def test_rope_rotates_pairs_and_makes_no_array_of_half_the_width():
  """Pairs (i, i + H / 2) turn like complex numbers; TPUs would pad an array whose last axis is H / 2."""
  rng = np.random.default_rng(0)
  x, weight = rng.standard_normal((2, 2, 6, 3, 32)).astype(np.float32)
  positions = rng.integers(0, 3000, (2, 6)).astype(np.int32)

  def loss(x):
    return (rope(x, rope_angles(positions, 32, 1e5)) * weight).sum()

  angle = positions[..., None, None] * 1e5 ** (-np.arange(16) / 16)
  turned = (x[..., :16] + 1j * x[..., 16:]) * np.exp(1j * angle)
  back = (weight[..., :16] + 1j * weight[..., 16:]) * np.exp(-1j * angle)
  result = rope(x, rope_angles(positions, 32, 1e5))
  # float32 angles of some thousand radians are exact to 1e-4.
  np.testing.assert_allclose(result, np.concatenate([turned.real, turned.imag], axis=-1), atol=1e-3)
  np.testing.assert_allclose(jax.grad(loss)(x), np.concatenate([back.real, back.imag], axis=-1), atol=1e-3)
  traced = jax.make_jaxpr(jax.grad(loss))(x)
  assert 16 not in {variable.aval.shape[-1] for e in traced.eqns for variable in e.outvars if variable.aval.shape}


def test_rope_is_that_of_two_halves_to_the_last_bits():
  rng = np.random.default_rng(0)
  x, positions = rng.standard_normal((2, 6, 3, 32)).astype(np.float32), np.arange(12, dtype=np.int32).reshape(2, 6)
  cos, sin = (np.asarray(y)[..., :16] for y in rope_angles(positions, 32, 1e5))
  first, second = x[..., :16], x[..., 16:]
  expected = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  np.testing.assert_array_max_ulp(np.asarray(rope(x, rope_angles(positions, 32, 1e5))), expected, maxulp=1)


def test_bfloat16_gives_float32_logits(random_anchor):
  params, tokens = random_anchor(CONFIG), random_tokens()
  config = dataclasses.replace(CONFIG, dtype="bfloat16")
  block = random_block(config)
  low = jitted(config, params)(tokens, SEGMENTS, POSITIONS, block)
  exact = jitted(CONFIG, params)(tokens, SEGMENTS, POSITIONS, block)
  assert low.dtype == np.float32
  error = np.asarray(low - exact)
  # Each rounding is wrong by up to 2^-9 of a value; errors of some twenty in a row add up like random steps.
  assert 2**-9 < np.sqrt((error**2).mean()) / np.std(exact) < 6 * 2**-9
  assert np.abs(error).max() < 0.1


def test_remat_and_unrolled_layers_change_no_gradient(random_anchor):
  params, tokens, block = random_anchor(CONFIG), random_tokens(), random_block(CONFIG)

  def gradients(**how):
    config = dataclasses.replace(CONFIG, **how)

    def loss(params, block):
      logits = Anchor(config).apply({"params": params}, tokens, SEGMENTS, POSITIONS, block)
      return (nn.log_softmax(logits) ** 2).mean()

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, block)

  expected = gradients()
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected))
  points = ({"remat": ("attention", "w1")}, {"remat": ("query", "key", "value", "out", "w2@host")})
  for how in ({"remat": "dots"}, {"remat": "full"}, *points, {"unroll": 2}):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), gradients(**how), expected)


def test_initialisation_statistics():
  """Truncated normals cut at 3 sigma; the two projections back to the residual stream shrink with depth."""
  config = AnchorConfig(num_layers=3, width=64, num_heads=3, head_dim=32, mlp_width=112, vocab_size=128)
  params = nn.unbox(jax.jit(init_anchor, static_argnums=1)(jax.random.key(0), config))

  def check(weights, sigma):
    assert 2.7 * sigma < np.abs(weights).max() <= 3 * sigma * (1 + 1e-6)
    np.testing.assert_allclose(np.std(weights), 0.98658 * sigma, rtol=0.03)  # of a normal cut at 3 sigma
    assert abs(np.mean(weights)) < 0.05 * sigma

  check(params["embed"]["embedding"], 64**-0.5)
  check(params["head"]["kernel"], 64**-0.5)
  attention, feed_forward = params["layers"]["attention"], params["layers"]["feed_forward"]
  for layer in range(3):
    for weights in (attention["query"], attention["key"], attention["value"], feed_forward["w1"], feed_forward["w2"]):
      check(weights["kernel"][layer], 64**-0.5)
    check(attention["out"]["kernel"][layer], 64**-0.5 / np.sqrt(2 * (layer + 1)))
    check(feed_forward["w3"]["kernel"][layer], 112**-0.5 / np.sqrt(2 * (layer + 1)))
  assert (attention["query"]["kernel"][0] != attention["query"]["kernel"][1]).mean() > 0.99
  assert (feed_forward["w1"]["kernel"] != feed_forward["w2"]["kernel"]).mean() > 0.99
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    assert leaf.dtype == np.float32
    if path[-1].key == "scale":
      np.testing.assert_array_equal(leaf, 1)
