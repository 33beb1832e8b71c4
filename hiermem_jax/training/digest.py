"""A digest of arrays that does not depend on how they are laid out over devices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def digest(tree: Any) -> jax.Array:
  """A checksum over every bit of every array of a tree, uint32 []; of two different trees one in 2^32 has the same.

  The sum modulo 2^32 of a hash of each element's bits and place, so that it is exact in any order of summation. One
  pass over the arrays, at the speed of memory.
  """
  leaves = jax.tree.leaves(tree)
  sharding = getattr(leaves[0], "sharding", None) if leaves else None
  if isinstance(sharding, NamedSharding):  # every process can read the result
    return _jitted(NamedSharding(sharding.mesh, PartitionSpec()))(leaves)
  return _jitted(None)(leaves)


@functools.cache
def _jitted(out_sharding):
  return jax.jit(_digest, out_shardings=out_sharding)


def _digest(leaves: list[jax.Array]) -> jax.Array:
  total = jnp.uint32(len(leaves))
  for number, x in enumerate(leaves):
    place = jnp.full(x.shape, number + 1, jnp.uint32)
    for axis in range(x.ndim):
      place = _mix(place + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis))
    bits = x
    if not jnp.issubdtype(x.dtype, jnp.integer):
      bits = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    total += _mix(_mix(bits.astype(jnp.uint32)) ^ place).sum(dtype=jnp.uint32)
  return total


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 in which every bit of the result depends on every bit given (murmur3's finalizer)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
