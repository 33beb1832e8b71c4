"""The anchor: a pre-norm decoder whose layers are scanned, and which can take a fetched memory block.

Shape letters are those of `hiermem_jax.models`. Logical axis names stand beside each weight and are mapped to
mesh axes by rules elsewhere; no mesh axis appears here.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from hiermem_jax.models import context
from hiermem_jax.models.anchor_config import AnchorConfig
from hiermem_jax.models.attention import attend
from hiermem_jax.models.memory import Block, with_memory
from hiermem_jax.models.remat import remat_policy
from hiermem_jax.models.rope import rope, rope_angles
from hiermem_jax.models.weights import Weight, look_up


class KVCache(NamedTuple):
  """Keys and values of the positions decoded so far, [L, B, T, N, H] each, indexed by position."""

  key: jax.Array
  value: jax.Array


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
  """Multi-head attention.

    1. project x to queries, keys and values     [B, S, D] -> [B, S, N * H] each
    2. q/k norm over the flat heads              [B, S, N * H]
    3. split into heads                          [B, S, N, H]
    4. RoPE on queries and keys                  [B, S, N, H]
    5. with a cache: write the keys and values of these positions into it, and read all T of it    [B, T, N, H]
    6. masked softmax attention                  [B, S, N, H]; where several devices share a sequence, on all of its
       positions and a part of the heads (see `context`)
    7. project back                              [B, S, N * H] -> [B, S, D]

  A memory block adds what its kind says at steps 1 (`query`, `key`, `value`), 6 (`attention`) and 7 (`out`).
  """

  config: AnchorConfig

  @nn.compact
  def __call__(self, x, block, mask, segment_ids, positions, angles, cache, layer) -> tuple[jax.Array, KVCache | None]:
    """Attends to the input itself, or to the cache's positions.

    Args:
      x: [B, S, D].
      block: this layer's vectors [B, R, width], or None.
      mask: bool [B, 1, S, T], positions of the cache that each position sees; None without a cache.
      segment_ids: int32 [B, S], of whole sequences.
      positions: int32 [B, S].
      angles: of the positions, for RoPE.
      cache: keys and values [B, T, N, H], or None.
      layer: int32 [], the number of the layer.

    Returns:
      [B, S, D], and the cache with these positions in it.
    """
    c = self.config
    heads = (*x.shape[:2], c.num_heads, c.head_dim)
    shape, axes, sigma = (c.width, c.attention_width), ("embed", "heads"), c.width**-0.5

    def project(name):
      projected = x @ Weight(shape, axes, sigma, c, name=name)()
      return checkpoint_name(with_memory(projected, block, name, x, layer), name)

    q, k, v = (project(name) for name in ("query", "key", "value"))
    if c.qk_norm:
      q, k = Norm(c, "heads", name="query_norm")(q), Norm(c, "heads", name="key_norm")(k)
    q, k, v = (y.reshape(heads) for y in (q, k, v))
    unrotated = q
    q, k = (rope(y, angles) for y in (q, k))
    if cache is not None:
      here = jnp.arange(len(x))[:, None], positions
      cache = KVCache(cache.key.at[here].set(k), cache.value.at[here].set(v))
      k, v = cache
    if cache is None:
      q, k, v = map(context.to_heads, (q, k, v))
      y = context.to_positions(attend(q, k, v, segment_ids, c))
      if c.attention != "splash":  # whose kernel names what it keeps
        y = checkpoint_name(y, "attention")
    else:
      y = jax.nn.dot_product_attention(q, k, v, mask=mask)
    y = with_memory(y, block, "attention", unrotated, layer).reshape(*x.shape[:2], c.attention_width)
    out = Weight(shape[::-1], axes[::-1], sigma / jnp.sqrt(2.0 * (layer + 1)), c, name="out")
    return checkpoint_name(with_memory(y @ out(), block, "out", y, layer), "out"), cache


class FeedForward(nn.Module):
  """SwiGLU, W3(silu(W1 x) * (W2 x)), plus the output of the fetched block (Appendix I)."""

  config: AnchorConfig

  @nn.compact
  def __call__(self, x: jax.Array, block: Block | None, layer: jax.Array) -> jax.Array:
    """x [B, S, D], block vectors [B, R, width] or None, layer int32 [] -> [B, S, D]."""
    c = self.config
    shape, axes = (c.width, c.mlp_width), ("embed", "mlp")

    def project(name):
      projected = x @ Weight(shape, axes, c.width**-0.5, c, name=name)()
      return checkpoint_name(with_memory(projected, block, name, x, layer), name)

    w3 = Weight(shape[::-1], axes[::-1], c.mlp_width**-0.5 / jnp.sqrt(2.0 * (layer + 1)), c, name="w3")
    gate, up = project("w1"), project("w2")
    hidden = nn.silu(gate) * up
    y = with_memory(hidden @ w3(), block, "w3", hidden, layer)
    return with_memory(y, block, "feed_forward", x, layer)


class Layer(nn.Module):
  """One pre-norm decoder layer: h = x + Attention(norm(x)); out = h + FeedForward(norm(h))."""

  config: AnchorConfig

  @nn.compact
  def __call__(self, x, block, cache, layer, mask, segment_ids, positions, angles):
    """The carry x [B, S, D] and this layer's slice of the scanned inputs -> (x, the layer's cache)."""
    c = self.config
    normed = Norm(c, name="attention_norm")(x)
    attended, cache = Attention(c, name="attention")(normed, block, mask, segment_ids, positions, angles, cache, layer)
    x = x + attended
    x = x + FeedForward(c, name="feed_forward")(Norm(c, name="feed_forward_norm")(x), block, layer)
    return nn.with_logical_constraint(x, ("batch", "seq", "embed_act")), cache


class Anchor(nn.Module):
  """Decoder-only language model (paper, Appendix A) that can take a fetched memory block."""

  config: AnchorConfig

  def setup(self):
    """Declares the embedding, the head, the scanned layers and the final norm."""
    c = self.config
    sigma = c.width**-0.5
    self.embed = Weight((c.vocab_size, c.width), ("vocab", "embed"), sigma, c, parameter="embedding")
    if not c.tied_embeddings:
      self.head = Weight((c.width, c.vocab_size), ("embed", "vocab"), sigma, c)
    policy = remat_policy(c)
    layer = Layer if policy is None else nn.remat(Layer, policy=policy, prevent_cse=False)
    self.layers = nn.scan(
      layer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      # The layer index is scanned because the output projections' initial scale depends on it.
      in_axes=(1, 0, 0, *[nn.broadcast] * 4),
      length=c.num_layers,
      unroll=c.unroll,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )(c)
    self.final_norm = Norm(c)

  def hidden(
    self, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array, block: Block | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Factors of the logits: hidden states [B, S, D] and the output head [D, V]; arguments as for `__call__`."""
    segment_ids = context.whole_sequence(segment_ids)
    hidden, head, _ = self._run(tokens, segment_ids, positions, None, block, None)
    return hidden, head

  def decode(
    self, tokens: jax.Array, positions: jax.Array, cache: KVCache, block: Block | None = None
  ) -> tuple[jax.Array, jax.Array, KVCache]:
    """Decodes further positions of sequences whose earlier keys and values are in the cache.

    The positions are a prompt, or the next token of each sequence. A position attends to itself and to all positions
    before it. In a batch of prompts of several lengths, the tokens after a prompt's end may be anything: no earlier
    position attends to them, and decoding that position later overwrites them in the cache.

    Args:
      tokens: int32 [B, S] decoder inputs.
      positions: int32 [B, S], below the cache's T.
      cache: keys and values [L, B, T, N, H].
      block: as for `__call__`.

    Returns:
      Factors of the logits, as of `hidden`, and the cache with these positions in it.
    """
    mask = jnp.arange(cache.key.shape[2]) <= positions[:, None, :, None]
    return self._run(tokens, jnp.ones_like(tokens), positions, mask, block, cache)

  def _run(self, tokens, segment_ids, positions, mask, block, cache):
    c = self.config
    embedding = self.embed()
    x = nn.with_logical_constraint(look_up(embedding, tokens), ("batch", "seq", "embed_act"))
    block = None if block is None else block.in_all_layers(c.num_layers)
    angles = rope_angles(positions, c.head_dim, c.rope_base)
    x, cache = self.layers(x, block, cache, jnp.arange(c.num_layers), mask, segment_ids, positions, angles)
    head = embedding.T if c.tied_embeddings else self.head()
    return self.final_norm(x), head, cache

  def __call__(
    self, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array, block: Block | None = None
  ) -> jax.Array:
    """Next-token logits.

    Args:
      tokens: int32 [B, S] decoder inputs (targets shifted right within their document).
      segment_ids: int32 [B, S]; a token attends only to its own segment. 0 is padding.
      positions: int32 [B, S], restarting with every document.
      block: fetched memory, vectors [B, L, R, width]; None runs the anchor alone.

    Returns:
      float32 [B, S, V].
    """
    hidden, head = self.hidden(tokens, segment_ids, positions, block)
    return (hidden @ head).astype(jnp.float32)


def init_anchor(key: jax.Array, config: AnchorConfig):
  """Fresh float32 parameters, as boxed `nn.LogicallyPartitioned` values that carry their logical axis names."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  config = dataclasses.replace(config, attention="xla")  # the flash-attention kernels refuse one token
  return Anchor(config).init(key, tokens, tokens, tokens)["params"]
