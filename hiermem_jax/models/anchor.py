"""The anchor: a pre-norm decoder, one block scanned over layers, that can take a fetched memory block.

Shape letters are those of `hiermem_jax.models`. Logical axis names stand beside each weight and are mapped to
mesh axes by rules elsewhere; no mesh axis appears here.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from hiermem_jax.models.attention import document_mask, splash
from hiermem_jax.models.bank import Block
from hiermem_jax.models.config import AnchorConfig

_REMAT_POLICIES = {
  "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
  "full": jax.checkpoint_policies.nothing_saveable,
}


class Weight(nn.Module):
  """A weight matrix where it is used: in the type that is computed in, and whole.

  It is gathered along the axes that the rules split over devices which each run this code (FSDP). The gradient of a
  gather is a reduce-scatter, so every device ends with the gradient of its own part.
  """

  shape: tuple[int, int]
  axes: tuple[str, str]  # logical names
  sigma: float | jax.Array  # of the initial truncated normal, cut at 3 sigma
  dtype: str
  leaf: str = "kernel"

  @nn.compact
  def __call__(self) -> jax.Array:
    """The weight, of `shape` and `dtype`; stored in float32."""
    if self.is_initializing():

      def init(key, shape):
        return jax.random.truncated_normal(key, -3, 3, shape) * self.sigma

      return self.param(self.leaf, nn.with_logical_partitioning(init, self.axes), self.shape).astype(self.dtype)
    weight = self.get_variable("params", self.leaf).astype(self.dtype)  # `param` would not take a part
    names, running = list(self.axes), jax.sharding.get_abstract_mesh().manual_axes
    for axis, mesh_axis in enumerate(nn.logical_to_mesh_axes(self.axes) or ()):
      if mesh_axis in running:
        names[axis] = None
        if jax.lax.axis_size(mesh_axis) > 1:  # a gather of one part would still cost a copy
          weight = jax.lax.all_gather(weight, mesh_axis, axis=axis, tiled=True)
    return nn.with_logical_constraint(weight, tuple(names))  # and its gradient: they stay split over the other axes


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


class Norm(nn.Module):
  """Gain-only LayerNorm or RMSNorm over the last axis, computed in float32."""

  config: AnchorConfig
  axis: str = "norm"

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
  def __call__(self, x, mask, segment_ids, positions, layer) -> jax.Array:
    """x [B, S, D], mask bool [B, 1, S, S] or None, segment_ids, positions int32 [B, S], layer int32 [] -> [B, S, D]."""
    c = self.config
    heads = (*x.shape[:2], c.num_heads, c.head_dim)
    shape, axes, sigma = (c.width, c.attention_width), ("embed", "heads"), c.width**-0.5
    q, k, v = (x @ Weight(shape, axes, sigma, c.dtype, name=name)() for name in ("query", "key", "value"))
    if c.qk_norm:
      q, k = Norm(c, "heads", name="query_norm")(q), Norm(c, "heads", name="key_norm")(k)
    q, k = (rope(y.reshape(heads), positions, c.rope_base) for y in (q, k))
    v = v.reshape(heads)
    y = splash(q, k, v, segment_ids) if mask is None else jax.nn.dot_product_attention(q, k, v, mask=mask)
    out = Weight(shape[::-1], axes[::-1], sigma / jnp.sqrt(2.0 * (layer + 1)), c.dtype, name="out")
    return y.reshape(*x.shape[:2], c.attention_width) @ out()


class FeedForward(nn.Module):
  """SwiGLU, W3(silu(W1 x) * (W2 x)), widened by the neurons of the fetched block (Appendix I)."""

  config: AnchorConfig

  @nn.compact
  def __call__(self, x: jax.Array, block: Block | None, layer: jax.Array) -> jax.Array:
    """x [B, S, D], block leaves [B, R, D] or None, layer int32 [] -> [B, S, D]."""
    c = self.config
    shape, axes = (c.width, c.mlp_width), ("embed", "mlp")
    gate, up = (x @ Weight(shape, axes, c.width**-0.5, c.dtype, name=name)() for name in ("w1", "w2"))
    w3 = Weight(shape[::-1], axes[::-1], c.mlp_width**-0.5 / jnp.sqrt(2.0 * (layer + 1)), c.dtype, name="w3")
    y = (nn.silu(gate) * up) @ w3()
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
  def __call__(self, x, block, layer, mask, segment_ids, positions):
    """The carry x [B, S, D] and this layer's slice of the scanned inputs -> (x, None)."""
    c = self.config
    attended = Attention(c, name="attention")(Norm(c, name="attention_norm")(x), mask, segment_ids, positions, layer)
    x = x + attended
    x = x + FeedForward(c, name="feed_forward")(Norm(c, name="feed_forward_norm")(x), block, layer)
    return nn.with_logical_constraint(x, ("batch", "seq", "embed_act")), None


class Anchor(nn.Module):
  """Decoder-only language model (paper, Appendix A) with room for a fetched memory block."""

  config: AnchorConfig

  def setup(self):
    """Names the parts."""
    c = self.config
    sigma, dtype = c.width**-0.5, c.dtype
    self.embed = Weight((c.vocab_size, c.width), ("vocab", "embed"), sigma, dtype, leaf="embedding")
    if not c.tied_embeddings:
      self.head = Weight((c.width, c.vocab_size), ("embed", "vocab"), sigma, dtype)
    layer = Layer
    if c.remat != "none":
      layer = nn.remat(Layer, policy=_REMAT_POLICIES[c.remat], prevent_cse=False)
    self.layers = nn.scan(
      layer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      # The layer index is scanned because the output projections' initial scale depends on it.
      in_axes=(1, 0, nn.broadcast, nn.broadcast, nn.broadcast),
      length=c.num_layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )(c)
    self.final_norm = Norm(c)

  def hidden(
    self, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array, block: Block | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Factors of the logits: hidden states [B, S, D] and the output head [D, V]; arguments as for `__call__`."""
    c = self.config
    embedding = self.embed()
    x = nn.with_logical_constraint(jnp.take(embedding, tokens, axis=0), ("batch", "seq", "embed_act"))
    mask = document_mask(segment_ids) if c.attention == "xla" else None
    x, _ = self.layers(x, block, jnp.arange(c.num_layers), mask, segment_ids, positions)
    head = embedding.T if c.tied_embeddings else self.head()
    return self.final_norm(x), head

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
    hidden, head = self.hidden(tokens, segment_ids, positions, block)
    return (hidden @ head).astype(jnp.float32)


def init_anchor(key: jax.Array, config: AnchorConfig):
  """Fresh float32 parameters, as boxed `nn.LogicallyPartitioned` values that carry their logical axis names."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  config = dataclasses.replace(config, attention="xla")  # the kernel has no use for one token
  return Anchor(config).init(key, tokens, tokens, tokens)["params"]
