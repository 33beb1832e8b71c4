"""Where arrays live: the device mesh, the logical-axis rules, and the exchange that fetches memory rows.

Hands out `make_mesh`, `DEFAULT_RULES`, `state_shardings`, `fetch` and `push`. Knows jax and flax only: the model above
names its axes logically, and this room maps the names to the mesh.
"""

from hiermem_jax.parallel.exchange import fetch, push
from hiermem_jax.parallel.mesh import DATA_AXIS, DEFAULT_RULES, batch_sharding, make_mesh, state_shardings

__all__ = ["DATA_AXIS", "DEFAULT_RULES", "batch_sharding", "fetch", "make_mesh", "push", "state_shardings"]
