"""Causal attention within documents: XLA in blocks of queries, or a flash-attention kernel of TPUs or of GPUs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.models.anchor_config import AnchorConfig

_BLOCK = 64  # queries of a block of `blocked`, at least


def document_mask(segment_ids: jax.Array, start: int = 0, end: int | None = None) -> jax.Array:
  """Which key a query may see: its own document, itself and earlier.

  A padding position (segment 0) sees padding, so no softmax row is empty.

  Args:
    segment_ids: int32 [B, S].
    start: first query.
    end: behind the last query; None: S.

  Returns:
    bool [B, 1, end - start, end]: the queries from `start` to `end`, and the keys up to `end`.
  """
  segment_ids = segment_ids[:, :end]
  same = segment_ids[:, None, start:, None] == segment_ids[:, None, None, :]
  length = segment_ids.shape[1]
  return same & (jnp.arange(start, length)[:, None] >= jnp.arange(length))


def check_platform(kernel: str, platform: str) -> None:
  """Raises InputError when a platform ("cpu", "gpu", "tpu") does not have an attention kernel."""
  if kernel == "splash" and platform == "gpu":
    raise InputError("AnchorConfig.attention = 'splash': a kernel for TPUs, this is a GPU; bind 'cudnn' or 'xla'")
  if kernel == "cudnn" and platform != "gpu":
    raise InputError(f"AnchorConfig.attention = 'cudnn': a kernel for GPUs, this is a {platform}; bind another")


def attend(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, config: AnchorConfig) -> jax.Array:
  """Attention under `document_mask` by the kernel that `config.attention` names.

  Args:
    q: [B, S, N, H] queries.
    k: [B, S, N, H] keys.
    v: [B, S, N, H] values.
    segment_ids: int32 [B, S].
    config: of the anchor.

  Returns:
    [B, S, N, H].

  Raises:
    InputError: the device does not have the kernel, or the kernel does not take sequences of this length.
  """
  if config.attention == "splash":
    return splash(q, k, v, segment_ids, config.splash_blocks)
  return (cudnn if config.attention == "cudnn" else blocked)(q, k, v, segment_ids)


def blocked(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """Attention in blocks of queries, each of which sees only the keys up to its end; arguments as for `attend`.

  Half of the scores of causal attention are masked: two blocks leave out half of these, four three quarters. A block
  has at least 64 queries, because small ones make small matrix products. Scores and softmax are float32. The backward
  pass is written out, so that of all arrays of scores only the weights are kept for it.
  """
  return _by_head(*(y.swapaxes(1, 2) for y in (q, k, v)), segment_ids).swapaxes(1, 2)


@jax.custom_vjp
def _by_head(q, k, v, segment_ids):  # [B, N, S, H]
  return _by_head_forward(q, k, v, segment_ids)[0]


def _by_head_forward(q, k, v, segment_ids):
  outputs, weights = [], []  # of each block: [B, N, queries, H], [B, N, queries, keys]
  for start, end in _blocks(q.shape[2]):
    scores = _product("bnqh,bnkh->bnqk", q[:, :, start:end], k[:, :, :end]) * q.shape[3] ** -0.5
    scores = jnp.where(document_mask(segment_ids, start, end), scores, jnp.finfo(jnp.float32).min)
    weights.append(jax.nn.softmax(scores, axis=-1).astype(q.dtype))
    outputs.append(_product("bnqk,bnkh->bnqh", weights[-1], v[:, :, :end]).astype(q.dtype))
  output = jnp.concatenate(outputs, axis=2)
  return output, (q, k, v, weights, output)


def _by_head_backward(saved, gradient):
  q, k, v, weights, output = saved
  # What the softmax's gradient subtracts: the mean of the weights' gradients, [B, N, S, 1].
  mean = (gradient.astype(jnp.float32) * output.astype(jnp.float32)).sum(axis=-1, keepdims=True)
  of_q, of_k, of_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  for (start, end), w in zip(_blocks(q.shape[2]), weights):
    g = gradient[:, :, start:end]
    of_scores = w * (_product("bnqh,bnkh->bnqk", g, v[:, :, :end]) - mean[:, :, start:end])
    of_scores = (of_scores * q.shape[3] ** -0.5).astype(q.dtype)
    of_q.append(_product("bnqk,bnkh->bnqh", of_scores, k[:, :, :end]).astype(q.dtype))
    behind = [(0, 0), (0, 0), (0, k.shape[2] - end), (0, 0)]  # no query of this block sees these keys
    of_k += jnp.pad(_product("bnqk,bnqh->bnkh", of_scores, q[:, :, start:end]), behind)
    of_v += jnp.pad(_product("bnqk,bnqh->bnkh", w, g), behind)
  return jnp.concatenate(of_q, axis=2), of_k.astype(k.dtype), of_v.astype(v.dtype), None


_by_head.defvjp(_by_head_forward, _by_head_backward)


def _blocks(length: int) -> list[tuple[int, int]]:
  """First query of each block, and the one behind its last."""
  count = max(1, min(4, length // _BLOCK))
  return [(i * length // count, (i + 1) * length // count) for i in range(count)]


def _product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """A product of two arrays of one type, summed in float32."""
  precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if x.dtype == jnp.bfloat16 else None
  return jnp.einsum(equation, x, y, precision=precision, preferred_element_type=jnp.float32)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """cuDNN's flash attention; arguments as for `attend`, in bfloat16.

  The kernel skips what causality masks. It knows documents only as a bias that is added to the scores, an array
  [B, 1, S, S] of 2 bytes an element (8 MiB for a sequence of 2,048), and computes a gradient of that size that nobody
  reads.

  Raises:
    InputError: the device is not a GPU, or S is odd.
  """
  check_platform("cudnn", _platform())
  if q.shape[1] % 2:
    raise InputError(f"AnchorConfig.attention = 'cudnn': sequences of {q.shape[1]} are odd; bind 'xla'")
  same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
  return jax.nn.dot_product_attention(q, k, v, mask=same, is_causal=True, implementation="cudnn")


def _platform() -> str:
  """Platform that the caller is compiled for: of the mesh's device ahead of time, else of this process."""
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  return device.platform if device else jax.default_backend()


def splash(
  q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, blocks: tuple[int, ...] | None = None
) -> jax.Array:
  """The flash-attention kernel for TPUs; arguments as for `attend`.

  Every device runs the kernel on its own sequences and heads. On a CPU the kernel is interpreted, which is slow and
  for tests.

  Args:
    q: see `attend`.
    k: see `attend`.
    v: see `attend`.
    segment_ids: see `attend`.
    blocks: `AnchorConfig.splash_blocks`.

  Returns:
    [B, S, N, H].

  Raises:
    InputError: the device is a GPU, or S is not a multiple of 128 and of the blocks.
  """
  length, head_dim, platform = q.shape[1], q.shape[3], _platform()
  check_platform("splash", platform)
  if length % 128:
    raise InputError(f"AnchorConfig.attention = 'splash': sequences of {length} are not a multiple of 128; bind 'xla'")
  blocks = blocks or (max(size for size in (128, 256, 512) if length % size == 0),) * 6
  for size in blocks:
    if length % size:
      raise InputError(
        f"AnchorConfig.splash_blocks = {blocks}: {size} does not divide sequences of {length}; bind divisors"
      )
  local = functools.partial(_local_splash, blocks=blocks, interpret=platform != "tpu")
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.auto_axes:
    by_head, by_sequence = nn.logical_to_mesh_axes((None, None, "heads", None)), PartitionSpec()
    local = jax.shard_map(
      local,
      in_specs=(by_head, by_head, by_head, by_sequence),
      out_specs=by_head,
      axis_names=set(mesh.auto_axes),
      check_vma=False,
    )
  return local(q * head_dim**-0.5, k, v, segment_ids)


def _local_splash(q, k, v, segment_ids, *, blocks: tuple[int, ...], interpret: bool) -> jax.Array:
  length, heads = q.shape[1:3]
  queries, keys, computed, queries_back, keys_back, computed_back = blocks
  sizes = splash_attention.BlockSizes(
    block_q=queries,
    block_kv=keys,
    block_kv_compute=computed,
    block_q_dkv=queries_back,
    block_kv_dkv=keys_back,
    block_kv_dkv_compute=computed_back,
    use_fused_bwd_kernel=True,
  )
  mask = splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads)
  kernel = splash_attention.make_splash_mha_single_device(
    mask, block_sizes=sizes, interpret=interpret, residual_checkpoint_name="attention"
  )
  segments = splash_attention.SegmentIds(q=segment_ids, kv=segment_ids)
  by_head = (y.swapaxes(1, 2) for y in (q, k, v))
  return jax.vmap(kernel)(*by_head, segments).swapaxes(1, 2)
