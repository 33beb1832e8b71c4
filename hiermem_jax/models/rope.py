"""Rotary position embedding (RoPE)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Angles(NamedTuple):
  """Cosines and sines by which `rope` rotates, float32 [B, S, 1, H] each; the two halves of H are equal."""

  cos: jax.Array
  sin: jax.Array


def rope_angles(positions: jax.Array, head_dim: int, base: float) -> Angles:
  """The angles of a batch's positions.

  Args:
    positions: int32 [B, S].
    head_dim: H.
    base: frequency base; 100,000 in the paper (Appendix A).
  """
  half = head_dim // 2
  frequency = base ** (-(jnp.arange(head_dim) % half).astype(jnp.float32) / half)
  angle = positions[..., None, None].astype(jnp.float32) * frequency
  return Angles(jnp.cos(angle), jnp.sin(angle))


def rope(x: jax.Array, angles: Angles) -> jax.Array:
  """Rotary position embedding, half-rotation style.

  Args:
    x: [B, S, N, H] queries or keys.
    angles: of their positions.

  Returns:
    [B, S, N, H] of x's dtype; the rotation itself is computed in float32.
  """
  half, x32 = x.shape[-1] // 2, x.astype(jnp.float32)

  def shift(by):  # zeros come in; an array of the half alone would be padded to a TPU's 128 lanes
    return jax.lax.pad(x32, jnp.float32(0), [(0, 0, 0)] * (x.ndim - 1) + [(by, -by, 0)])

  rotated = shift(half) - shift(-half)  # -x2 and x1
  return (x32 * angles.cos + rotated * angles.sin).astype(x.dtype)
