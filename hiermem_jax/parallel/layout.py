"""Where every array of a model or of a training state lies on a mesh."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.models.anchor import init_anchor
from hiermem_jax.models.config import AnchorConfig, ModelConfig
from hiermem_jax.parallel.mesh import CONTEXT_AXIS, DATA_AXIS, DEFAULT_RULES, MODEL_AXIS, Rules, state_shardings


def anchor_specs(anchor: AnchorConfig, rules: Rules = DEFAULT_RULES) -> Any:
  """How the anchor's parameters are split over the data axis (FSDP), as a tree of `PartitionSpec`s."""
  boxed = jax.eval_shape(lambda: init_anchor(jax.random.key(0), anchor))
  specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), rules)

  def data_only(spec):
    return PartitionSpec(*(axis if axis == DATA_AXIS else None for axis in spec))

  return jax.tree.map(data_only, specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def check_mesh(mesh: Mesh | AbstractMesh, model: ModelConfig) -> None:
  """Raises InputError when the mesh does not divide the attention heads or the memory units of a level."""
  parts = mesh.shape[MODEL_AXIS]
  sizes = {"AnchorConfig.num_heads": model.anchor.num_heads}
  for level in () if model.memory is None else model.memory.levels:
    units = model.required_memory.rows[level - 1] * model.anchor.num_layers // len(model.memory_layers)
    sizes[f"MemoryConfig.rows of level {level}"] = units
  for name, size in sizes.items():
    if size % parts:
      raise InputError(f"{name} = {size}: cannot be split over a model axis of {parts}; bind MeshConfig.model to less")
  heads, context = model.anchor.num_heads, mesh.shape[CONTEXT_AXIS]
  if heads % (parts * context):
    raise InputError(
      f"AnchorConfig.num_heads = {heads}: cannot be split over a context axis of {context} and a model axis of {parts};"
      " bind MeshConfig.context to less"
    )


def abstract_arrays(init: Callable[[], Any], mesh: Mesh | AbstractMesh, rules: Rules = DEFAULT_RULES) -> Any:
  """The arrays that `init()` returns, unboxed, as `jax.ShapeDtypeStruct`s that the rules lay out on a mesh.

  Raises:
    InputError: an axis cannot be split over its devices.
  """
  boxed = jax.eval_shape(init)
  shardings = state_shardings(boxed, mesh, rules)
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), nn.unbox(boxed), shardings
  )


class ArrayLayout(NamedTuple):
  """Where one array lies."""

  name: str
  shape: tuple[int, ...]
  dtype: str
  spec: PartitionSpec
  bytes_per_device: int


def array_layouts(abstract: Any) -> list[ArrayLayout]:
  """One entry for each array of a tree of `jax.ShapeDtypeStruct`s with shardings."""
  return [
    ArrayLayout(
      jax.tree_util.keystr(path, simple=True, separator="/"),
      x.shape,
      x.dtype.name,
      x.sharding.spec,
      bytes_per_device(x),
    )
    for path, x in jax.tree_util.tree_leaves_with_path(abstract)
  ]


def bytes_per_device(abstract: Any) -> int:
  """Bytes that one device holds of a tree of `jax.ShapeDtypeStruct`s with shardings."""
  return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(abstract))
