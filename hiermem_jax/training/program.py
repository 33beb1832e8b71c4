"""The training program of a run: the loop runs it on a mesh, and `compile_pod` compiles it ahead of time for a pod."""

import dataclasses
import functools
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.models.attention import check_platform
from hiermem_jax.models.config import ModelConfig
from hiermem_jax.parallel import batch_sharding, token_sharding
from hiermem_jax.parallel.layout import abstract_arrays, bytes_per_device, check_mesh
from hiermem_jax.parallel.mesh import check_batch
from hiermem_jax.training.config import TrainingRun
from hiermem_jax.training.state import TrainState, init_state
from hiermem_jax.training.step import make_train_step


@flax.struct.dataclass
class Scalars:
  """Named float32 scalars in one array: a call then has one output for all of them."""

  values: jax.Array  # float32 [n], of several steps [steps, n]
  names: tuple[str, ...] = flax.struct.field(pytree_node=False)

  @classmethod
  def pack(cls, scalars: dict[str, jax.Array]) -> "Scalars":
    """Puts scalars side by side."""
    return cls(jnp.stack([jnp.float32(value) for value in scalars.values()]), tuple(scalars))

  def __getitem__(self, name: str) -> jax.Array:
    """One of them, float32 [] or [steps]."""
    return self.values[..., self.names.index(name)]

  def read(self) -> list[dict[str, float]]:
    """Those of each step, as soon as they have been computed."""
    return [dict(zip(self.names, row)) for row in np.asarray(self.values).reshape(-1, len(self.names)).tolist()]


@dataclasses.dataclass(frozen=True)
class Program:
  """A jitted training step, and shapes, types and shardings of its arguments; see `make_program`."""

  model: ModelConfig
  mesh: Mesh  # where nothing but `trace` is needed, an AbstractMesh will do
  batch_size: int
  microbatches: int
  abstract_state: TrainState  # shapes, types and shardings
  step: Any  # jitted (state, batch, key) -> (state, `Scalars`), see `make_train_step`; the state given is consumed
  steps: Any  # the same of a sequence of batches of one shape, one step for each, in one call
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
    """The batch contract for sequences of `length` tokens.

    Raises:
      InputError: the mesh does not divide the length.
    """
    shape, sharding = (self.batch_size, length), token_sharding(self.mesh, length)
    names = ("input_tokens", "target_tokens", "segment_ids", "positions")
    batch = {f"decoder_{name}": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for name in names}
    batch["decoder_loss_weights"] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    batch["memory_leaf"] = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=batch_sharding(self.mesh))
    return batch

  def trace(self, length: int) -> jax.stages.Traced:
    """The step traced for abstract arguments; the mesh may be an abstract one.

    Raises:
      InputError: the model cannot take sequences of this length.
    """
    key = jax.eval_shape(jax.random.key, 0)
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(self.mesh, PartitionSpec()))
    return self.step.trace(self.abstract_state, self.abstract_batch(length), key)

  def lower(self, length: int) -> jax.stages.Lowered:
    """The step lowered for abstract arguments, which needs no device; raises as `trace` does."""
    return self.trace(length).lower()

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


def make_program(run: TrainingRun, mesh: Mesh) -> Program:
  """The training program of a run on a mesh, whose devices may be those of an ahead-of-time topology.

  Raises:
    InputError: the mesh does not divide the batch, the heads, the memory units or a weight, the microbatches do not
      divide a device's sequences, or the devices do not have the attention kernel.
  """
  check_batch(mesh, run.batch_size, run.microbatches)
  if isinstance(mesh, Mesh):
    check_platform(run.model.anchor.attention, mesh.devices.flat[0].platform)
  optimizer = run.transformation()
  abstract_state = abstract_train_state(run, mesh)
  train_step = make_train_step(
    run.model, optimizer, mesh, objective=run.objective, rules=run.mesh.rules, microbatches=run.microbatches
  )

  def step(state, batch, key):
    state, metrics = train_step(state, batch, key)
    return state, Scalars.pack(metrics)

  def steps(state, batches, key):
    def one(state, batch):
      state, metrics = step(state, batch, key)
      return jax.lax.with_sharding_constraint(state, shardings), metrics

    return jax.lax.scan(one, state, jax.tree.map(lambda *arrays: jnp.stack(arrays), *batches))

  shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
  jit = functools.partial(jax.jit, donate_argnums=0, out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())))
  init = functools.partial(init_state, model=run.model, optimizer=optimizer)
  return Program(run.model, mesh, run.batch_size, run.microbatches, abstract_state, jit(step), jit(steps), init)


def abstract_train_state(run: TrainingRun, mesh: Mesh | AbstractMesh) -> TrainState:
  """Shapes, types and shardings of a run's state on a mesh. No device is needed.

  Raises:
    InputError: the mesh does not divide the heads, the memory units or a weight.
  """
  check_mesh(mesh, run.model)
  optimizer = run.transformation()
  return abstract_arrays(lambda: init_state(jax.random.key(0), run.model, optimizer), mesh, run.mesh.rules)
