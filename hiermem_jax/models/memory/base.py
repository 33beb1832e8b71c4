"""The interface that all kinds of memory implement."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import flax
import jax
import jax.numpy as jnp

from hiermem_jax.models.anchor_config import AnchorConfig

Vectors = Mapping[str, jax.Array]  # name -> [B, R, width], of one layer


class Vector(NamedTuple):
  """One of the vectors that a unit of memory has in a layer, and how it is initialised.

  Attributes:
    width: elements of the vector.
    init: "normal" draws from a normal distribution with sigma = `scale`, cut at 3 sigma. "uniform" draws from
      [-scale, scale]. "zeros" draws nothing.
    scale: see `init`.
  """

  width: int
  init: Literal["normal", "uniform", "zeros"]
  scale: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryKind:
  """The vectors of a memory unit, and what units add to a layer.

  Attributes:
    vectors: from the anchor's configuration to the unit's vectors, in the order in which they are stored.
    adds: place in a layer -> function of (vectors of the block, x) that gives what is added to that place's output.
      The places are the weight matrices `query`, `key`, `value`, `out`, `w1`, `w2`, `w3` (x is what the matrix is
      multiplied with); `attention` (x: queries [B, S, N, H] after q/k norm and before RoPE; added to the heads'
      outputs [B, S, N, H]); and `feed_forward` (x: its normalised input [B, S, D]; added to its output).
  """

  vectors: Callable[[AnchorConfig], dict[str, Vector]]
  adds: Mapping[str, Callable[[Vectors, jax.Array], jax.Array]]


@flax.struct.dataclass
class Block:
  """Fetched memory of a batch, all levels side by side on the R axis.

  Attributes:
    vectors: name -> [B, L, R, width]; L counts the layers that have memory.
    kind: what the vectors mean.
    layers: numbers of the layers that have memory, ascending; None: all.
  """

  vectors: dict[str, jax.Array]
  kind: MemoryKind = flax.struct.field(pytree_node=False)
  layers: tuple[int, ...] | None = flax.struct.field(pytree_node=False, default=None)

  def in_all_layers(self, num_layers: int) -> "Block":
    """The block with vectors [B, num_layers, R, width], as a scan over layers takes it.

    A layer without memory has zeros.
    """
    if self.layers is None:
      return self

    def spread(x):
      shape = (x.shape[0], num_layers, *x.shape[2:])
      return jnp.zeros(shape, x.dtype).at[:, jnp.array(self.layers)].set(x)

    return dataclasses.replace(self, vectors=jax.tree.map(spread, self.vectors))


def with_memory(y: jax.Array, block: Block | None, place: str, x: jax.Array, layer: jax.Array) -> jax.Array:
  """The output of a place in a layer, with the block's contribution added.

  Args:
    y: output of a place in a layer.
    block: the layer's part of the block, [B, R, width], or None.
    place: see `MemoryKind.adds`.
    x: input of the place.
    layer: int32 [], the layer's number.

  Returns:
    Of y's shape and type; y itself where the kind adds nothing there or the layer has no memory.
  """
  if block is None or place not in block.kind.adds:
    return y

  def added():
    vectors = {name: vector.astype(x.dtype) for name, vector in block.vectors.items()}
    return y + block.kind.adds[place](vectors, x).astype(y.dtype)

  if block.layers is None:
    return added()
  return jax.lax.cond(jnp.isin(layer, jnp.array(block.layers)), added, lambda: y)
