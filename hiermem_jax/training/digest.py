"""A digest of arrays that does not depend on how they are laid out over devices."""

import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def digest(tree: Any) -> str:
  """A checksum over every bit of every array of a tree, 8 hexadecimal digits; of two trees one in 2^32 has the same.

  Of each array the sum modulo 2^32 of a hash of each element's bits and place, so that it is exact in any order of
  summation. One pass over the arrays, at the speed of memory. Checkpoints hold it: computed in any other way, it would
  make every older one look damaged.
  """
  return combined(array_digests(tree).values())


def array_digests(tree: Any) -> dict[str, str]:
  """The digest of each array by its path in the tree."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): array_digest(x)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def array_digest(x: jax.Array) -> str:
  """The part of one array in a digest, 8 hexadecimal digits."""
  # It is waited for: of several sums in flight, processes with CPU devices may run theirs in different orders.
  return f"{int(_jitted(getattr(x, 'sharding', None))(x)):08x}"


def combined(digests: Iterable[str]) -> str:
  """The digest of a tree whose arrays, in the order of its leaves, have these digests."""
  return hashlib.sha256(b"".join(int(x, 16).to_bytes(4, "little") for x in digests)).hexdigest()[:8]


@functools.cache
def _jitted(sharding):
  """Compiled once per shape, for all arrays that have it; every process can read the result."""
  mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
  return jax.jit(_sum, out_shardings=NamedSharding(mesh, PartitionSpec()) if mesh else None)


def _sum(x: jax.Array) -> jax.Array:
  place = jnp.uint32(0)
  for axis in range(x.ndim):
    place = _mix(place + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) + 1)
  bits = x
  if not jnp.issubdtype(x.dtype, jnp.integer):
    bits = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
  return _mix(_mix(bits.astype(jnp.uint32)) ^ place).sum(dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 in which every bit of the result depends on every bit given (murmur3's finalizer)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
