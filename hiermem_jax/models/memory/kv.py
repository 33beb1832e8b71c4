"""KV memory: learned keys and values that all queries may attend to (Appendix I)."""

import jax

from hiermem_jax.models.memory.base import MemoryKind, Vector, Vectors


def attend(vectors: Vectors, q: jax.Array) -> jax.Array:
  """A softmax of its own over the block's tokens, without mask and without positions.

  Args:
    vectors: `key` and `value`, each [B, R, N * H].
    q: [B, S, N, H] queries before RoPE.

  Returns:
    [B, S, N, H], exactly zero where the values are zero.
  """
  shape = (*vectors["key"].shape[:2], *q.shape[2:])
  return jax.nn.dot_product_attention(q, vectors["key"].reshape(shape), vectors["value"].reshape(shape))


# r tokens of a layer are 2 * r * N * H parameters.
KV = MemoryKind(
  vectors=lambda anchor: {
    "key": Vector(anchor.attention_width, "normal", anchor.width**-0.5),
    "value": Vector(anchor.attention_width, "zeros"),
  },
  adds={"attention": attend},
)
