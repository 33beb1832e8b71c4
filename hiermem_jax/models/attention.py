"""Causal attention within documents: plain XLA, or the flash-attention kernel that TPUs have (splash attention)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from hiermem_jax.errors import InputError


def document_mask(segment_ids: jax.Array) -> jax.Array:
  """Which key a query may see: its own document, itself and earlier. int32 [B, S] -> bool [B, 1, S, S].

  A padding position (segment 0) sees padding, so no softmax row is empty.
  """
  same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
  causal = jnp.tril(jnp.ones((segment_ids.shape[1],) * 2, bool))
  return same & causal


def splash(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
  """Attention under `document_mask` without an array of S x S.

  Every device runs the kernel on its own sequences and heads. Off a TPU the kernel is interpreted, which is slow and
  for tests.

  Args:
    q: [B, S, N, H] queries.
    k: [B, S, N, H] keys.
    v: [B, S, N, H] values.
    segment_ids: int32 [B, S].

  Returns:
    [B, S, N, H].

  Raises:
    InputError: S is not a multiple of 128.
  """
  length, head_dim = q.shape[1], q.shape[3]
  if length % 128:
    raise InputError(f"AnchorConfig.attention = 'splash': sequences of {length} are not a multiple of 128; bind 'xla'")
  mesh = jax.sharding.get_abstract_mesh()
  device = getattr(mesh, "abstract_device", None)  # ahead of time, not what this process has
  platform = device.platform if device else jax.default_backend()
  local = functools.partial(_local_splash, interpret=platform != "tpu")
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


def _local_splash(q, k, v, segment_ids, *, interpret: bool) -> jax.Array:
  length, heads = q.shape[1:3]
  block = max(size for size in (128, 256, 512) if length % size == 0)
  sizes = splash_attention.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    use_fused_bwd_kernel=True,
  )
  mask = splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads)
  kernel = splash_attention.make_splash_mha_single_device(
    mask, block_sizes=sizes, interpret=interpret, residual_checkpoint_name="attention"
  )
  segments = splash_attention.SegmentIds(q=segment_ids, kv=segment_ids)
  by_head = (y.swapaxes(1, 2) for y in (q, k, v))
  return jax.vmap(kernel)(*by_head, segments).swapaxes(1, 2)
