"""The training state and how it is created on a mesh."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from hiermem_jax.errors import InputError
from hiermem_jax.models.anchor import init_anchor
from hiermem_jax.models.bank import init_bank, table_shapes
from hiermem_jax.models.config import AnchorConfig, MemoryConfig
from hiermem_jax.parallel import DATA_AXIS, DEFAULT_RULES, state_shardings


@flax.struct.dataclass
class TrainState:
  """Everything a step changes."""

  step: jax.Array  # int32 []
  params: dict[str, Any]  # "anchor": Linen parameters; "bank": row tables, when there is a memory
  opt_state: optax.OptState


def init_params(key: jax.Array, anchor: AnchorConfig, memory: MemoryConfig | None):
  """Fresh parameters {"anchor": ..., "bank": ...}, boxed with their logical axis names."""
  anchor_key, bank_key = jax.random.split(key)
  params = {"anchor": init_anchor(anchor_key, anchor)}
  if memory is not None:
    names = ("bank_cluster", "bank_row")
    params["bank"] = {
      name: nn.LogicallyPartitioned(table, names) for name, table in init_bank(bank_key, memory, anchor).items()
    }
  return params


def check_mesh(mesh: Mesh, anchor: AnchorConfig, memory: MemoryConfig | None) -> None:
  """Raises InputError when the devices cannot share the bank's rows evenly."""
  devices = mesh.shape[DATA_AXIS]
  for name, (_, row) in (table_shapes(memory, anchor) if memory else {}).items():
    if row % devices:
      raise InputError(
        f"bank table {name}: a row of {row} parameters cannot be split over {devices} devices; use a number of devices"
        " that divides it, or change MemoryConfig.rows"
      )


def create_state(
  key: jax.Array,
  anchor: AnchorConfig,
  memory: MemoryConfig | None,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> TrainState:
  """A fresh state, every array created in place on its own devices; plain arrays, float32."""
  check_mesh(mesh, anchor, memory)

  def init(key):
    params = init_params(key, anchor, memory)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))

  shardings = state_shardings(jax.eval_shape(init, key), mesh, DEFAULT_RULES)
  return jax.jit(lambda key: nn.unbox(init(key)), out_shardings=shardings)(key)
