"""The flash-attention kernel, interpreted, against attention with an explicit mask."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.models import Anchor, AnchorConfig
from hiermem_jax.models.attention import document_mask, splash

CONFIG = AnchorConfig(
  num_layers=1, width=16, num_heads=2, head_dim=32, mlp_width=8, vocab_size=11, dtype="float32", rope_base=100.0
)


def documents(length):
  """Segments of uneven length, and padding at the end."""
  starts = np.zeros((2, length), np.int32)
  starts[0, [0, 5, 130]] = 1
  starts[1, [0, 64]] = 1
  segments = starts.cumsum(axis=1)
  segments[1, 200:] = 0
  return segments


@pytest.mark.parametrize("head_dim", [32, 64])
def test_output_and_gradients_equal_masked_attention(head_dim):
  segments = documents(256)
  rng = np.random.default_rng(0)
  q, k, v, weight = rng.standard_normal((4, 2, 256, 3, head_dim)).astype(np.float32)
  weight *= (segments > 0)[:, :, None, None]  # what padding gets out is nobody's business

  def masked(q, k, v):
    return (jax.nn.dot_product_attention(q, k, v, mask=document_mask(segments)) * weight).sum()

  def kernel(q, k, v):
    return (splash(q, k, v, segments) * weight).sum()

  expected = jax.jit(jax.value_and_grad(masked, argnums=(0, 1, 2)))(q, k, v)
  result = jax.jit(jax.value_and_grad(kernel, argnums=(0, 1, 2)))(q, k, v)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), result, expected)


def test_heads_may_be_split_over_an_axis_that_the_caller_leaves_to_the_partitioner():
  """As in training: sequences are split by hand, heads over the model axis by the rules; here on one device."""
  mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
  segments = documents(256)
  q, k, v = np.random.default_rng(0).standard_normal((3, 2, 256, 2, 32)).astype(np.float32)
  specs = {"in_specs": PartitionSpec("data"), "out_specs": PartitionSpec("data")}
  run = jax.shard_map(splash, mesh=mesh, axis_names={"data"}, check_vma=False, **specs)
  with nn.logical_axis_rules([("heads", "model")]):
    result = jax.jit(run)(q, k, v, segments)
  np.testing.assert_array_equal(result, jax.jit(splash)(q, k, v, segments))


def test_anchor_computes_the_same_with_either(random_anchor):
  params, segments = random_anchor(CONFIG), documents(256)
  tokens = np.random.default_rng(1).integers(0, 11, segments.shape).astype(np.int32)
  positions = np.tile(np.arange(256, dtype=np.int32), (2, 1))
  logits = [
    jax.jit(Anchor(dataclasses.replace(CONFIG, attention=name)).apply)({"params": params}, tokens, segments, positions)
    for name in ("xla", "splash")
  ]
  np.testing.assert_allclose(*(np.asarray(x)[segments > 0] for x in logits), rtol=1e-4, atol=1e-4)


def test_length_that_the_kernel_does_not_take():
  x = jnp.zeros((1, 100, 1, 32))
  with pytest.raises(InputError, match=r"sequences of 100 are not a multiple of 128; bind 'xla'"):
    splash(x, x, x, jnp.ones((1, 100), jnp.int32))
