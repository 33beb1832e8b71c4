"""The training program of a run: what the loop runs on a mesh, and what is compiled ahead of time for a pod."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, MemoryConfig
from hiermem_jax.parallel import MeshConfig, batch_sharding, batch_shards
from hiermem_jax.parallel.mesh import Rules
from hiermem_jax.training.optimizer import OptimizerConfig
from hiermem_jax.training.state import TrainState, abstract_arrays, check_mesh, init_state
from hiermem_jax.training.step import make_train_step


@flax.struct.dataclass
class Scalars:
  """Named float32 scalars in one array, so that a step has one more output and not dozens."""

  values: jax.Array  # float32 [n]
  names: tuple[str, ...] = flax.struct.field(pytree_node=False)

  @classmethod
  def pack(cls, scalars: dict[str, jax.Array]) -> "Scalars":
    """Puts scalars side by side."""
    return cls(jnp.stack([jnp.float32(value) for value in scalars.values()]), tuple(scalars))

  def __getitem__(self, name: str) -> jax.Array:
    """One of them, float32 []."""
    return self.values[self.names.index(name)]

  def read(self) -> dict[str, float]:
    """All of them, as soon as they have been computed."""
    return dict(zip(self.names, np.asarray(self.values).tolist()))


@dataclasses.dataclass(frozen=True)
class Program:
  """A training step and the layout of what it takes; see `make_program`."""

  mesh: Mesh
  batch_size: int
  abstract_state: TrainState  # shapes, types and shardings
  step: Any  # jitted (state, batch, key) -> (state, `Scalars`), see `make_train_step`; the state given is consumed
  _init: Any

  def init(self, key: jax.Array) -> TrainState:
    """A fresh state, every array created in place on its own devices.

    Raises:
      InputError: a device has less memory than its part of the state.
    """
    self._check_memory()
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
    return jax.jit(lambda key: nn.unbox(self._init(key)), out_shardings=shardings)(key)

  def replicate(self, array: jax.Array) -> jax.Array:
    """An array, e.g. the run's key, held by every device of the mesh; all processes must give the same."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(self.mesh, PartitionSpec()))(array)

  def abstract_batch(self, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch contract for sequences of `length` tokens."""
    shape, sharding = (self.batch_size, length), batch_sharding(self.mesh)
    names = ("input_tokens", "target_tokens", "segment_ids", "positions")
    batch = {f"decoder_{name}": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for name in names}
    batch["decoder_loss_weights"] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    batch["memory_leaf"] = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=sharding)
    return batch

  def lower(self, length: int) -> jax.stages.Lowered:
    """The step lowered for abstract arguments, which needs no device."""
    key = jax.eval_shape(jax.random.key, 0)
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(self.mesh, PartitionSpec()))
    return self.step.lower(self.abstract_state, self.abstract_batch(length), key)

  def _check_memory(self) -> None:
    stats = self.mesh.local_devices[0].memory_stats() or {}
    limit, needed = stats.get("bytes_limit"), bytes_per_device(self.abstract_state)
    if limit and needed > limit:
      largest = max(jax.tree_util.tree_leaves_with_path(self.abstract_state.params), key=lambda leaf: leaf[1].size)
      name = "/".join(key.key for key in largest[0])
      raise InputError(
        f"parameters and optimizer state take {needed / 2**30:.1f} GiB on each of {self.mesh.size} devices, one has"
        f" {limit / 2**30:.1f} GiB; the largest array is {name} {largest[1].shape}; use more devices, or bind"
        " MemoryConfig.dtype or OptimizerConfig.bank_moment_dtype to 'bfloat16'"
      )


def make_program(
  *,
  anchor: AnchorConfig,
  memory: MemoryConfig | None,
  optimizer: OptimizerConfig,
  steps: int,
  batch_size: int,
  mesh_config: MeshConfig,
  mesh: Mesh,
  generic_probability: float = 1 / 17,
  z_loss: float = 0.0,
  frozen_anchor: bool = False,
) -> Program:
  """The training program of a run.

  Args:
    anchor: the anchor's configuration.
    memory: the bank's, or None to train the anchor alone.
    optimizer: one setting for anchor and bank.
    steps: length of the run, which sets the learning-rate schedule.
    batch_size: sequences of a global batch.
    mesh_config: the rules of the layout.
    mesh: devices, which may be those of an ahead-of-time topology.
    generic_probability: chance that a sequence trains the generic memory.
    z_loss: coefficient of the squared mean log-partition.
    frozen_anchor: train the bank alone; the anchor has neither gradients nor moments.

  Raises:
    InputError: the mesh does not divide the batch, the heads, the rows or a weight.
  """
  shards = batch_shards(mesh)
  if batch_size % shards:
    raise InputError(f"train.batch_size = {batch_size}: cannot be split over {shards} devices; bind a multiple")
  transformation = optimizer.build(steps, memory, batch_size, frozen_anchor=frozen_anchor)
  init = functools.partial(init_state, anchor=anchor, memory=memory, optimizer=transformation)
  abstract_state = abstract_train_state(anchor, memory, transformation, mesh, mesh_config.rules)
  train_step = make_train_step(
    anchor=anchor,
    memory=memory,
    optimizer=transformation,
    mesh=mesh,
    rules=mesh_config.rules,
    generic_probability=generic_probability,
    z_loss=z_loss,
    frozen_anchor=frozen_anchor,
  )

  def step(state, batch, key):
    state, metrics = train_step(state, batch, key)
    return state, Scalars.pack(metrics)

  shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
  step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())))
  return Program(mesh, batch_size, abstract_state, step, init)


def abstract_train_state(
  anchor: AnchorConfig,
  memory: MemoryConfig | None,
  optimizer: optax.GradientTransformation,
  mesh: Mesh | AbstractMesh,
  rules: Rules,
) -> TrainState:
  """Shapes, types and shardings of a run's state on a mesh, which needs no devices.

  Raises:
    InputError: the mesh does not divide the heads, the rows or a weight.
  """
  check_mesh(mesh, anchor, memory)
  return abstract_arrays(lambda: init_state(jax.random.key(0), anchor, memory, optimizer), mesh, rules)


class ArrayLayout(NamedTuple):
  """Where one array of the state lies."""

  name: str
  shape: tuple[int, ...]
  dtype: str
  spec: PartitionSpec
  bytes_per_device: int


def layout(abstract) -> list[ArrayLayout]:
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


def bytes_per_device(abstract) -> int:
  """Bytes that one device holds of a tree of `jax.ShapeDtypeStruct`s with shardings."""
  return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(abstract))
