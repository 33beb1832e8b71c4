"""The attention kernels against attention with an explicit mask."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.models import Anchor, AnchorConfig, attention
from hiermem_jax.models.attention import attend, blocked, cudnn, document_mask, splash

CONFIG = AnchorConfig(
  num_layers=1, width=16, num_heads=2, head_dim=32, mlp_width=8, vocab_size=11, dtype="float32", rope_base=100.0
)


def documents(length):
  """Segments of uneven length, and padding at the end."""
  starts = np.zeros((2, length), np.int32)
  starts[0, [0, 5, length // 2 + 2]] = 1
  starts[1, [0, length // 4]] = 1
  segments = starts.cumsum(axis=1)
  segments[1, length * 4 // 5 :] = 0
  return segments


def plain(q, k, v, segments):
  """Softmax attention with the whole mask, straight from its definition, in the inputs' type with float32 softmax."""
  index = np.arange(segments.shape[1])
  mask = (segments[:, :, None] == segments[:, None, :]) & (index[:, None] >= index)
  scores = jnp.einsum("bqnh,bknh->bnqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
  weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1).astype(v.dtype)
  return jnp.einsum("bnqk,bknh->bqnh", weights, v)


def value_and_gradients(kernel, segments, head_dim, dtype="float32", heads=3, seed=0):
  """Output of a kernel, and gradients of a weighted sum of it that leaves padding out: that is nobody's business."""
  rng = np.random.default_rng(seed)
  q, k, v, weight = rng.standard_normal((4, *segments.shape, heads, head_dim)).astype(np.float32)
  weight *= (segments > 0)[:, :, None, None]

  def loss(q, k, v):
    y = kernel(q, k, v, segments)
    return (y * weight).sum(), y * (weight != 0)

  (_, output), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
    *(x.astype(dtype) for x in (q, k, v))
  )
  return [np.asarray(x, np.float32) for x in (output, *gradients)]


@pytest.mark.parametrize("length", [100, 201, 256, 385])
def test_blocks_equal_attention_with_the_whole_mask(length):
  """Lengths of one, three, four and four uneven blocks."""
  expected = value_and_gradients(plain, documents(length), 16)
  for result, wanted in zip(value_and_gradients(blocked, documents(length), 16), expected):
    np.testing.assert_allclose(result, wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())


def test_blocks_in_bfloat16_are_as_exact_as_the_whole():
  exact = value_and_gradients(plain, documents(640), 16)
  whole, blocks = (value_and_gradients(kernel, documents(640), 16, "bfloat16") for kernel in (plain, blocked))
  for result, reference, wanted in zip(blocks, whole, exact):
    error, usual = (np.sqrt(np.mean((x - wanted) ** 2)) for x in (result, reference))
    assert 0 < error < 1.1 * usual


def test_blocks_leave_most_masked_scores_out():
  """Of n x n blocks n (n + 1) / 2 are computed: three of four, ten of sixteen."""

  def flops(kernel, length):
    shape = jax.ShapeDtypeStruct((1, length, 2, 64), jnp.float32)
    run = functools.partial(kernel, segment_ids=np.ones((1, length), np.int32))
    return jax.jit(run).lower(shape, shape, shape).cost_analysis()["flops"]

  for length, share in ((64, 1), (128, 3 / 4), (256, 10 / 16), (1024, 10 / 16)):
    whole = flops(lambda q, k, v, segment_ids: plain(q, k, v, segment_ids), length)
    assert flops(blocked, length) == pytest.approx(share * whole, rel=0.05)


@pytest.mark.parametrize("head_dim, blocks", [(32, None), (64, (256, 256, 128, 128, 256, 128))])
def test_splash_equals_attention_with_the_whole_mask(head_dim, blocks):
  expected = value_and_gradients(plain, documents(256), head_dim)
  result = value_and_gradients(functools.partial(splash, blocks=blocks), documents(256), head_dim)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), result, expected)


def test_splash_runs_with_the_blocks_of_the_configuration(monkeypatch):
  sizes = {}
  monkeypatch.setattr(attention.splash_attention, "BlockSizes", lambda **names: sizes.update(names) or 1 / 0)
  config = dataclasses.replace(CONFIG, attention="splash", splash_blocks=(512, 256, 128, 1024, 512, 256))
  x = jnp.zeros((1, 1024, 2, 32))
  with pytest.raises(ZeroDivisionError):
    attend(x, x, x, jnp.ones((1, 1024), jnp.int32), config)
  assert sizes == {
    "block_q": 512,
    "block_kv": 256,
    "block_kv_compute": 128,
    "block_q_dkv": 1024,
    "block_kv_dkv": 512,
    "block_kv_dkv_compute": 256,
    "use_fused_bwd_kernel": True,
  }


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


def test_cudnn_is_given_the_documents_and_causality(monkeypatch):
  """What is asked of cuDNN, asked of XLA, is attention within documents."""
  asked = []

  def on_xla(*args, implementation, original=jax.nn.dot_product_attention, **settings):
    asked.append(implementation)
    return original(*args, implementation="xla", **settings)

  monkeypatch.setattr(attention, "_platform", lambda: "gpu")
  monkeypatch.setattr(jax.nn, "dot_product_attention", on_xla)
  expected = value_and_gradients(plain, documents(256), 16)
  result = value_and_gradients(cudnn, documents(256), 16)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), result, expected)
  assert set(asked) == {"cudnn"}


def test_cudnn_is_what_a_gpu_would_run(monkeypatch):
  """Lowered for CUDA, where no GPU is needed: the flash-attention call with a bias, forward and backward."""
  from jax._src.cudnn import fused_attention_stablehlo

  monkeypatch.setattr(attention, "_platform", lambda: "gpu")
  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91100)
  x = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16)
  segments = jax.ShapeDtypeStruct((2, 256), jnp.int32)

  def loss(q, k, v, segments):
    return attend(q, k, v, segments, dataclasses.replace(CONFIG, dtype="bfloat16", attention="cudnn")).sum()

  lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, x, x, segments).lower(lowering_platforms=("cuda",))
  text = lowered.as_text()
  assert text.count("@__cudnn$fmhaScaleBiasSoftmax(") == 1 and text.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1
  assert "CAUSAL" in text and "2x4x256x256xf32" not in text  # no scores


@pytest.mark.parametrize(
  "platform, kernel, length, message",
  [
    ("cpu", "splash", 100, "'splash': sequences of 100 are not a multiple of 128; bind 'xla'"),
    ("gpu", "splash", 128, "'splash': a kernel for TPUs, this is a GPU; bind 'cudnn' or 'xla'"),
    ("cpu", "cudnn", 128, "'cudnn': a kernel for GPUs, this is a cpu; bind another"),
    ("tpu", "cudnn", 128, "'cudnn': a kernel for GPUs, this is a tpu; bind another"),
    ("gpu", "cudnn", 129, "'cudnn': sequences of 129 are odd; bind 'xla'"),
  ],
)
def test_kernel_that_cannot_run_is_refused(monkeypatch, platform, kernel, length, message):
  monkeypatch.setattr(attention, "_platform", lambda: platform)
  x = jnp.zeros((1, length, 1, 32), jnp.bfloat16)
  with pytest.raises(InputError, match=f"^AnchorConfig.attention = {message}$"):
    attend(x, x, x, jnp.ones((1, length), jnp.int32), dataclasses.replace(CONFIG, dtype="bfloat16", attention=kernel))


def test_blocks_that_do_not_divide_the_length():
  x = jnp.zeros((1, 384, 1, 32))
  with pytest.raises(InputError, match=r"256 does not divide sequences of 384; bind divisors"):
    splash(x, x, x, jnp.ones((1, 384), jnp.int32), (128, 256, 128, 128, 128, 128))


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"splash_blocks": (128,) * 5}, r"splash_blocks = \(128, 128, 128, 128, 128\): bind six positive multiples of 128"),
    ({"splash_blocks": (128, 64, 64, 128, 128, 128)}, "bind six positive multiples of 128"),
    ({"splash_blocks": (128, 256, 128, 128, 384, 256)}, "256 does not divide 384; bind a divisor"),
    ({"attention": "cudnn"}, "'cudnn': the kernel computes in bfloat16"),
    ({"attention": "cudnn", "dtype": "bfloat16", "head_dim": 20}, "not in bfloat16 with 20; bind 'xla'"),
  ],
)
def test_settings_that_no_kernel_takes(fields, message):
  with pytest.raises(InputError, match=message):
    dataclasses.replace(CONFIG, **fields)


def test_blocks_of_stored_metadata_are_those_that_were_bound():
  config = dataclasses.replace(CONFIG, splash_blocks=(128, 256, 128, 128, 256, 128))
  assert AnchorConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_document_mask_of_some_queries_by_brute_force():
  segments = documents(256)
  whole = document_mask(segments)
  np.testing.assert_array_equal(document_mask(segments, 100, 180), whole[:, :, 100:180, :180])
