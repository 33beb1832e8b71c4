"""Where arrays live: the device mesh, the logical-axis rules, and the exchange that fetches memory rows.

Hands out `MeshConfig`, `make_mesh`, `state_shardings`, `fetch` and `push`. Knows jax, flax and the arithmetic of bank
rows: the model names its axes logically, and this package maps the names to the mesh.
"""

from hiermem_jax.parallel.exchange import fetch, push, with_fetched_block
from hiermem_jax.parallel.mesh import (
  MeshConfig,
  batch_parallel,
  batch_sharding,
  batch_shards,
  check_length,
  local_sequences,
  make_mesh,
  place_batch,
  state_shardings,
  token_sharding,
)

__all__ = [
  "MeshConfig",
  "batch_parallel",
  "batch_sharding",
  "batch_shards",
  "check_length",
  "fetch",
  "local_sequences",
  "make_mesh",
  "place_batch",
  "push",
  "state_shardings",
  "token_sharding",
  "with_fetched_block",
]
