"""LoRA memory: weight matrices become W + 2 B A with A, B from the block (Appendix I; the factor 2 is its best)."""

import functools

import jax
import jax.numpy as jnp

from hiermem_jax.models.memory.base import MemoryKind, Vector, Vectors

_SCALE = 2.0


def low_rank(vectors: Vectors, x: jax.Array, *, name: str) -> jax.Array:
  """2 B A x: [B, S, inputs] -> [B, S, outputs], with A [B, R, inputs] and B [B, R, outputs]."""
  ranks = jnp.einsum("bsi,bri->bsr", x, vectors[f"{name}_a"])
  return _SCALE * jnp.einsum("bsr,bro->bso", ranks, vectors[f"{name}_b"])


def _lora(*names: str) -> MemoryKind:
  """LoRA of some of a layer's weight matrices: A starts Kaiming-uniform (within 1/sqrt(inputs)), B at zero."""

  def vectors(anchor) -> dict[str, Vector]:
    into_heads, into_mlp = (anchor.width, anchor.attention_width), (anchor.width, anchor.mlp_width)
    sizes = dict.fromkeys(("query", "key", "value"), into_heads) | dict.fromkeys(("w1", "w2"), into_mlp)
    sizes |= {"out": into_heads[::-1], "w3": into_mlp[::-1]}
    result: dict[str, Vector] = {}
    for name in names:
      inputs, outputs = sizes[name]
      result |= {f"{name}_a": Vector(inputs, "uniform", inputs**-0.5), f"{name}_b": Vector(outputs, "zeros")}
    return result

  return MemoryKind(vectors, {name: functools.partial(low_rank, name=name) for name in names})


LORA_QK = _lora("query", "key")  # 2 * r * (D + N * H) parameters in a layer
LORA_VO = _lora("value", "out")  # 2 * r * (D + N * H)
LORA_FFN = _lora("w1", "w2", "w3")  # 3 * r * (D + F)
