"""The training state and how it is laid out on a mesh."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.models.anchor import init_anchor
from hiermem_jax.models.bank import init_bank
from hiermem_jax.models.config import AnchorConfig, MemoryConfig
from hiermem_jax.parallel import state_shardings
from hiermem_jax.parallel.mesh import DATA_AXIS, DEFAULT_RULES, MODEL_AXIS, Rules


@flax.struct.dataclass
class TrainState:
  """Everything a step changes."""

  step: jax.Array  # int32 [], batches seen
  skipped: jax.Array  # int32 [], those of them that were not finite and changed nothing else
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


def init_state(
  key: jax.Array, anchor: AnchorConfig, memory: MemoryConfig | None, optimizer: optax.GradientTransformation
) -> TrainState:
  """A fresh state, its parameters and moments boxed with their logical axis names."""
  params = init_params(key, anchor, memory)
  zero = jnp.zeros((), jnp.int32)
  return TrainState(step=zero, skipped=zero, params=params, opt_state=optimizer.init(params))


def anchor_specs(anchor: AnchorConfig, rules: Rules = DEFAULT_RULES):
  """How the anchor's parameters are split over the data axis (FSDP), as a tree of `PartitionSpec`s."""
  boxed = jax.eval_shape(lambda: init_anchor(jax.random.key(0), anchor))
  specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), rules)

  def data_only(spec):
    return PartitionSpec(*(axis if axis == DATA_AXIS else None for axis in spec))

  return jax.tree.map(data_only, specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def check_mesh(mesh: Mesh | AbstractMesh, anchor: AnchorConfig, memory: MemoryConfig | None) -> None:
  """Raises InputError when the model axis does not divide the attention heads or the bank's neurons."""
  parts = mesh.shape[MODEL_AXIS]
  sizes = {"AnchorConfig.num_heads": anchor.num_heads}
  for level in memory.levels if memory else ():
    layers = len(memory.layer_numbers(anchor))
    sizes[f"MemoryConfig.rows of level {level}"] = memory.rows[level - 1] * anchor.num_layers // layers
  for name, size in sizes.items():
    if size % parts:
      raise InputError(f"{name} = {size}: cannot be split over a model axis of {parts}; bind MeshConfig.model to less")


def abstract_arrays(init, mesh: Mesh | AbstractMesh, rules: Rules = DEFAULT_RULES):
  """What `init()` returns, unboxed, as `jax.ShapeDtypeStruct`s laid out on a mesh by the rules.

  Raises:
    InputError: an axis cannot be split over its devices.
  """
  boxed = jax.eval_shape(init)
  shardings = state_shardings(boxed, mesh, rules)
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), nn.unbox(boxed), shardings
  )
