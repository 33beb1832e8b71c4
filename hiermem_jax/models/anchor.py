"""The anchor: a pre-norm decoder, one block scanned over layers, that can take a fetched memory block.

Shape letters are those of `hiermem_jax.models`. Logical axis names stand beside each weight and are mapped to
mesh axes by rules elsewhere; no mesh axis appears here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hiermem_jax.models.bank import Block
from hiermem_jax.models.config import AnchorConfig

_REMAT_POLICIES = {
  "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def _trunc_normal(sigma: float | jax.Array, *axes: str):
  """Truncated normal cut at 3 sigma, with the logical names of the weight's axes."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.truncated_normal(key, -3, 3, shape, dtype) * sigma

  return nn.with_logical_partitioning(init, axes)


def rope(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
  """Rotary position embedding, half-rotation style.

  Args:
    x: [B, S, N, H] queries or keys.
    positions: int32 [B, S].
    base: frequency base; 100,000 in the paper (Appendix A).

  Returns:
    [B, S, N, H] of x's dtype; the rotation itself is computed in float32.
  """
  half = x.shape[-1] // 2
  frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[..., None, None].astype(jnp.float32) * frequency  # [B, S, 1, H/2]
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def document_mask(segment_ids: jax.Array) -> jax.Array:
  """Which key a query may see: its own document, itself and earlier. int32 [B, S] -> bool [B, 1, S, S].

  A padding position (segment 0) sees padding, so no softmax row is empty.
  """
  same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
  causal = jnp.tril(jnp.ones((segment_ids.shape[1],) * 2, bool))
  return same & causal


class Norm(nn.Module):
  """Gain-only LayerNorm or RMSNorm over the last axis, computed in float32."""

  config: AnchorConfig
  axis: str = "embed"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., features] -> the same shape, in the configured dtype."""
    settings = {
      "epsilon": self.config.norm_eps,
      "dtype": jnp.float32,
      "scale_init": nn.with_logical_partitioning(nn.initializers.ones, (self.axis,)),
      "name": "norm",
    }
    norm = nn.RMSNorm(**settings) if self.config.norm == "rmsnorm" else nn.LayerNorm(use_bias=False, **settings)
    return norm(x).astype(self.config.dtype)


class Attention(nn.Module):
  """Multi-head attention: project, q/k norm over the flat heads, split, RoPE, masked softmax, project back."""

  config: AnchorConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, positions: jax.Array, layer: jax.Array) -> jax.Array:
    """x [B, S, D], mask bool [B, 1, S, S], positions int32 [B, S], layer int32 [] -> [B, S, D]."""
    c = self.config
    heads = (*x.shape[:2], c.num_heads, c.head_dim)
    sigma = c.width**-0.5

    def project(name):
      init = _trunc_normal(sigma, "embed", "heads")
      return nn.Dense(c.attention_width, use_bias=False, dtype=c.dtype, kernel_init=init, name=name)(x)

    q, k, v = project("query"), project("key"), project("value")
    if c.qk_norm:
      q, k = Norm(c, "heads", name="query_norm")(q), Norm(c, "heads", name="key_norm")(k)
    q, k = (rope(y.reshape(heads), positions, c.rope_base) for y in (q, k))
    y = jax.nn.dot_product_attention(q, k, v.reshape(heads), mask=mask)
    init = _trunc_normal(sigma / jnp.sqrt(2.0 * (layer + 1)), "heads", "embed")
    out = nn.Dense(c.width, use_bias=False, dtype=c.dtype, kernel_init=init, name="out")
    return out(y.reshape(*x.shape[:2], c.attention_width))


class FeedForward(nn.Module):
  """SwiGLU, W3(silu(W1 x) * (W2 x)), widened by the neurons of the fetched block (Appendix I)."""

  config: AnchorConfig

  @nn.compact
  def __call__(self, x: jax.Array, block: Block | None, layer: jax.Array) -> jax.Array:
    """x [B, S, D], block leaves [B, R, D] or None, layer int32 [] -> [B, S, D]."""
    c = self.config
    init = _trunc_normal(c.width**-0.5, "embed", "mlp")
    gate = nn.Dense(c.mlp_width, use_bias=False, dtype=c.dtype, kernel_init=init, name="w1")(x)
    up = nn.Dense(c.mlp_width, use_bias=False, dtype=c.dtype, kernel_init=init, name="w2")(x)
    init = _trunc_normal(c.mlp_width**-0.5 / jnp.sqrt(2.0 * (layer + 1)), "mlp", "embed")
    down = nn.Dense(c.width, use_bias=False, dtype=c.dtype, kernel_init=init, name="w3")
    y = down(nn.silu(gate) * up)
    return y if block is None else y + feed_forward_memory(x, block)


def feed_forward_memory(x: jax.Array, block: Block) -> jax.Array:
  """The extra neurons: M3(silu(M1 x) * (M2 x)), one block per sequence (Appendix I).

  Args:
    x: [B, S, D] the normalised input of the feed-forward layer.
    block: leaves [B, R, D].

  Returns:
    [B, S, D], exactly zero where M3 is zero.
  """
  m1, m2, m3 = (m.astype(x.dtype) for m in block)
  hidden = nn.silu(jnp.einsum("bsd,brd->bsr", x, m1)) * jnp.einsum("bsd,brd->bsr", x, m2)
  return jnp.einsum("bsr,brd->bsd", hidden, m3)


class Layer(nn.Module):
  """One pre-norm decoder layer: h = x + Attention(norm(x)); out = h + FeedForward(norm(h))."""

  config: AnchorConfig

  @nn.compact
  def __call__(self, x, block, layer, mask, positions):
    """The carry x [B, S, D] and this layer's slice of the scanned inputs -> (x, None)."""
    c = self.config
    x = x + Attention(c, name="attention")(Norm(c, name="attention_norm")(x), mask, positions, layer)
    x = x + FeedForward(c, name="feed_forward")(Norm(c, name="feed_forward_norm")(x), block, layer)
    return nn.with_logical_constraint(x, ("batch", "seq", "embed_act")), None


class Anchor(nn.Module):
  """Decoder-only language model (paper, Appendix A) with room for a fetched memory block."""

  config: AnchorConfig

  @nn.compact
  def __call__(
    self, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array, block: Block | None = None
  ) -> jax.Array:
    """Next-token logits.

    Args:
      tokens: int32 [B, S] decoder inputs (targets shifted right within their document).
      segment_ids: int32 [B, S]; a token attends only to its own segment. 0 is padding.
      positions: int32 [B, S], restarting with every document.
      block: fetched memory, leaves [B, L, R, D]; None runs the anchor alone.

    Returns:
      float32 [B, S, V].
    """
    c = self.config
    embedding = nn.Embed(
      c.vocab_size, c.width, dtype=c.dtype, embedding_init=_trunc_normal(c.width**-0.5, "vocab", "embed"), name="embed"
    )
    x = nn.with_logical_constraint(embedding(tokens), ("batch", "seq", "embed_act"))
    layer = Layer
    if c.remat != "none":
      layer = nn.remat(Layer, policy=_REMAT_POLICIES[c.remat], prevent_cse=False)
    layers = nn.scan(
      layer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      # The layer index is scanned because the output projections' initial scale depends on it.
      in_axes=(1, 0, nn.broadcast, nn.broadcast),
      length=c.num_layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )(c, name="layers")
    x, _ = layers(x, block, jnp.arange(c.num_layers), document_mask(segment_ids), positions)
    x = Norm(c, name="final_norm")(x)
    if c.tied_embeddings:
      logits = embedding.attend(x)
    else:
      head = _trunc_normal(c.width**-0.5, "embed", "vocab")
      logits = nn.Dense(c.vocab_size, use_bias=False, dtype=c.dtype, kernel_init=head, name="head")(x)
    return logits.astype(jnp.float32)


def init_anchor(key: jax.Array, config: AnchorConfig):
  """Fresh float32 parameters, as boxed `nn.LogicallyPartitioned` values that carry their logical axis names."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  return Anchor(config).init(key, tokens, tokens, tokens)["params"]
