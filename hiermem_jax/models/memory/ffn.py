"""FFN memory: extra SwiGLU neurons, the kind that the paper uses throughout (Section 2.2, Appendix I)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hiermem_jax.models.memory.base import MemoryKind, Vector, Vectors


def neurons(vectors: Vectors, x: jax.Array) -> jax.Array:
  """M3(silu(M1 x) * (M2 x)), one block per sequence.

  Args:
    vectors: `m1` (gated), `m2` and `m3` (stored transposed), each [B, R, D].
    x: [B, S, D] the normalised input of the feed-forward layer.

  Returns:
    [B, S, D], exactly zero where M3 is zero.
  """
  hidden = nn.silu(jnp.einsum("bsd,brd->bsr", x, vectors["m1"])) * jnp.einsum("bsd,brd->bsr", x, vectors["m2"])
  return jnp.einsum("bsr,brd->bsd", hidden, vectors["m3"])


# r neurons of a layer are 3 * r * D parameters.
FFN = MemoryKind(
  vectors=lambda anchor: {
    "m1": Vector(anchor.width, "normal", anchor.width**-0.5),
    "m2": Vector(anchor.width, "normal", anchor.width**-0.5),
    "m3": Vector(anchor.width, "zeros"),
  },
  adds={"feed_forward": neurons},
)
