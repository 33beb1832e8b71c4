"""Context parallelism: several devices share a sequence, each with a contiguous part of its positions.

All of a layer but attention works position by position. For attention, an all-to-all gives each of the c devices every
position of N / c of the heads, and a second one brings the outputs back (the exchange of DeepSpeed-Ulysses). So masks
and kernels are those of a whole sequence, and each device has the same share of the causal triangle.

Which mesh axis the positions are split over is said by the rule of the logical name `POSITIONS`. Where the axis is not
one that the caller splits by hand, or has one device, the functions below return what they are given.
"""

import functools

import flax.linen as nn
import jax

POSITIONS = "positions"


def axis() -> str | None:
  """The mesh axis whose devices share each sequence; None where a device has whole sequences."""
  (name,) = nn.logical_to_mesh_axes((POSITIONS,)) or (None,)
  shared = name in jax.sharding.get_abstract_mesh().manual_axes and jax.lax.axis_size(name) > 1
  return name if shared else None


def whole_sequence(x: jax.Array) -> jax.Array:
  """All positions [B, S, ...] of the sequences of which the device has a part [B, S / c, ...]."""
  return x if axis() is None else jax.lax.all_gather(x, axis(), axis=1, tiled=True)


def to_heads(x: jax.Array) -> jax.Array:
  """From a part of the positions of all heads to all positions of a part: [B, S / c, N, H] -> [B, S, N / c, H]."""
  return _exchange(x, split=2, join=1)


def to_positions(x: jax.Array) -> jax.Array:
  """The inverse of `to_heads`: [B, S, N / c, H] -> [B, S / c, N, H]."""
  return _exchange(x, split=1, join=2)


def _exchange(x: jax.Array, *, split: int, join: int) -> jax.Array:
  """Device i gets the i-th part along `split` from all, joined in their order along `join`."""
  if (name := axis()) is None:
    return x
  exchange = functools.partial(jax.lax.all_to_all, axis_name=name, split_axis=split, concat_axis=join, tiled=True)
  if others := set(jax.sharding.get_abstract_mesh().auto_axes):  # each of their devices exchanges its own heads
    by_head = nn.logical_to_mesh_axes((None, None, "heads", None))
    exchange = jax.shard_map(exchange, in_specs=by_head, out_specs=by_head, axis_names=others, check_vma=False)
  return exchange(x)
