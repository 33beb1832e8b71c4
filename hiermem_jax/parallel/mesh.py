"""The device mesh and the rules that map logical axis names to it.

One mesh for every machine, with four axes:

  replica   TPU slices, joined by the data-centre network (DCN). Each holds a copy of everything; gradients cross.
  data      chips of a slice. Splits the batch, the anchor's weights (FSDP) and every row of the bank.
  context   context parallelism: splits the positions of every sequence, where there are more chips than sequences. Its
            devices hold copies of the state.
  model     tensor parallelism: splits attention heads, MLP neurons, the vocabulary and the bank's neurons.

One CPU device is the mesh (1, 1, 1, 1), a v5e 16x16 slice (1, 256, 1, 1), two of them (2, 256, 1, 1).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.models import context

REPLICA_AXIS, DATA_AXIS, CONTEXT_AXIS, MODEL_AXIS = AXES = ("replica", "data", "context", "model")
BATCH_AXES = (REPLICA_AXIS, DATA_AXIS)  # what the sequences of a batch are split over
TOKEN_AXES = (*BATCH_AXES, CONTEXT_AXIS)  # what its tokens are split over
ROW_AXES = (MODEL_AXIS, DATA_AXIS)  # what a bank row is split over; model first, so that it gets whole neurons

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

# Logical axis -> mesh axes. A name without a rule is not split.
DEFAULT_RULES: Rules = (
  ("batch", BATCH_AXES),
  ("embed", DATA_AXIS),  # FSDP
  ("heads", MODEL_AXIS),
  ("mlp", MODEL_AXIS),
  ("vocab", MODEL_AXIS),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Shape of the mesh; the data axis takes the devices that the others leave.

  Attributes:
    slices: size of the replica axis; None: as many slices as the devices belong to.
    context: size of the context axis. context x model must divide the heads, context the length of sequences.
    model: size of the model axis.
    rules: how the anchor is laid out, logical name -> axis. The batch and the bank follow the mesh (see the module's
      docstring).
  """

  slices: int | None = None
  context: int = 1
  model: int = 1
  rules: Rules = DEFAULT_RULES

  def __post_init__(self):
    """Rejects sizes and rules that no mesh can have."""
    for name in ("slices", "context", "model"):
      if (size := getattr(self, name)) is not None and size < 1:
        raise InputError(f"MeshConfig.{name} = {size}: bind a positive size")
    allowed = (*BATCH_AXES, MODEL_AXIS)
    for name, axes in self.rules:
      unknown = set((axes,) if isinstance(axes, str) else axes or ()) - set(allowed)
      if unknown:
        raise InputError(f"MeshConfig.rules: {name!r} maps to {sorted(unknown)}; rules are for the axes {allowed}")
    if dict(self.rules).get("batch") != BATCH_AXES:
      raise InputError(f"MeshConfig.rules: 'batch' must map to {BATCH_AXES}, which the exchange of rows relies on")

  def shape(self, devices: int, slices: int = 1) -> tuple[int, int, int, int]:
    """Sizes of the axes (replica, data, context, model) on a number of devices.

    Args:
      devices: number of all devices.
      slices: how many slices they belong to; `MeshConfig.slices` wins where it is bound.

    Raises:
      InputError: slices x context x model does not divide the devices.
    """
    replica = self.slices or slices
    others = replica * self.context * self.model
    if devices % others:
      raise InputError(
        f"{devices} devices cannot be split into {replica} slices x model axis of {self.model} x context axis of"
        f" {self.context}; bind MeshConfig.slices, MeshConfig.model and MeshConfig.context to divisors"
      )
    return replica, devices // others, self.context, self.model


ALL_DEVICES = MeshConfig()


def make_mesh(config: MeshConfig = ALL_DEVICES, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh over `devices` (default: all), neighbours in the machine beside each other.

  Raises:
    InputError: the number of devices is not a multiple of slices x context x model.
  """
  devices = list(devices if devices is not None else jax.devices())
  slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
  shape = config.shape(len(devices), slices)
  if devices[0].platform != "tpu":
    return Mesh(np.asarray(devices).reshape(shape), AXES)
  if slices == 1:
    return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES)
  if shape[0] != slices:
    raise InputError(f"MeshConfig.slices = {shape[0]}: the devices belong to {slices} slices; bind that or None")
  inner, outer = (1, *shape[1:]), (slices, 1, 1, 1)
  return Mesh(mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True), AXES)


def abstract_mesh(shape: tuple[int, int, int, int]) -> AbstractMesh:
  """A mesh of sizes (replica, data, context, model) without devices, for arithmetic on shardings."""
  return AbstractMesh(shape, AXES)


def batch_parallel(
  function: Callable, mesh: Mesh, rules: Rules, in_specs, out_specs, *, split_positions: bool = False
) -> Callable:
  """`function` run by every device on its own sequences.

  Along replica, data and context the function sees what its own device holds. Nothing crosses devices there but by the
  collectives that the function calls itself: gathers of weights, sums, the exchange of positions for heads. The
  compiler splits the work along the model axis, by the rules. The rules are in force while the function is traced, so
  that the model's logical axis names mean something.

  Args:
    function: of local arrays.
    mesh: the mesh.
    rules: of the layout.
    in_specs: per argument, how it is split over replica, data and context.
    out_specs: the same for the results.
    split_positions: whether a device has a part of its sequences' positions, by the context axis. Otherwise all devices
      of that axis do the same.
  """
  inside = [rule for rule in rules if rule[0] != "batch"]
  if split_positions:
    inside.append((context.POSITIONS, CONTEXT_AXIS))

  def local(*arguments):
    with nn.logical_axis_rules(inside):
      return function(*arguments)

  names = set(TOKEN_AXES)
  return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=names, check_vma=False)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of an array [B] of a batch: its sequences over replica and data."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def token_sharding(mesh: Mesh, length: int) -> NamedSharding:
  """Sharding of an array [B, S] of a batch: its sequences as in `batch_sharding`, the `length` positions over context.

  Raises:
    InputError: the mesh does not divide the length.
  """
  check_length(mesh, length)
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES, CONTEXT_AXIS))


def check_length(mesh: Mesh | AbstractMesh, length: int) -> None:
  """Raises InputError when the context axis does not divide sequences of `length` tokens."""
  if length % (parts := mesh.shape[CONTEXT_AXIS]):
    raise InputError(
      f"MeshConfig.context = {parts}: sequences of {length} tokens cannot be split over a context axis of {parts}; bind"
      " it to a divisor"
    )


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
  """How many parts the sequences of a batch are split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def local_sequences(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The positions, in a global batch, of the sequences that this process feeds to its devices.

  Returns:
    int64 [b], ascending.

  Raises:
    InputError: the mesh does not divide the batch.
  """
  check_batch(mesh, batch_size)
  slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Global arrays of a batch, of which every process gives its own sequences (`local_sequences`), all their positions.

  A batch may have any number of sequences that the devices divide, of any length that the context axis divides.

  Raises:
    InputError: it does not divide the length.
  """
  shards = batch_shards(mesh)
  held = len(local_sequences(mesh, shards))  # by this process; JAX cannot tell where processes share some shards

  def place(array):
    sharding = batch_sharding(mesh) if array.ndim == 1 else token_sharding(mesh, array.shape[1])
    return jax.make_array_from_process_local_data(sharding, array, (len(array) * shards // held, *array.shape[1:]))

  return {name: place(array) for name, array in batch.items()}


def check_batch(mesh: Mesh | AbstractMesh, batch_size: int, microbatches: int = 1) -> None:
  """Raises InputError when a batch cannot be split over the devices of a mesh, or a device's part into microbatches."""
  if batch_size % (shards := batch_shards(mesh)):
    raise InputError(
      f"train.batch_size = {batch_size}: cannot be split over {shards} devices; bind a multiple, or more to"
      " MeshConfig.context"
    )
  if batch_size % (shards * microbatches):
    raise InputError(
      f"train.microbatches = {microbatches}: does not divide the {batch_size // shards} sequences that each of {shards}"
      f" devices has of train.batch_size = {batch_size}; bind a divisor"
    )


def state_shardings(boxed, mesh: Mesh | AbstractMesh, rules: Rules = DEFAULT_RULES):
  """Shardings of a tree whose leaves may be boxed with logical axis names; unnamed leaves are replicated.

  Raises:
    InputError: an axis is not a multiple of the devices it would be split over.
  """
  logical = nn.get_partition_spec(boxed)
  any_mesh: Any = mesh  # flax's annotation leaves AbstractMesh out
  shardings = nn.logical_to_mesh_sharding(logical, any_mesh, (*rules, ("bank_row", ROW_AXES)))

  def check(path, leaf, names, sharding):
    for size, name, axes in zip(leaf.shape, names, sharding.spec):
      parts = math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
      if size % parts:
        keys = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        raise InputError(
          f"{keys} {leaf.shape}: {size} ({name}) cannot be split over {parts} devices (mesh axes {axes});"
          f" {_remedy(mesh, size, name, axes)}"
        )

  jax.tree_util.tree_map_with_path(check, nn.unbox(boxed), logical, shardings)
  return shardings


def _remedy(mesh: Mesh | AbstractMesh, size: int, name: str, axes: str | tuple[str, ...]) -> str:
  """What to bind where the axes of a mesh do not divide an array's axis of logical name `name`."""
  if name == "bank_row":
    return "use slices with a number of devices that divides it, or bind other MemoryConfig.rows"
  whole = f"or keep it whole: ({name!r}, None) in MeshConfig.rules"
  if axes != DATA_AXIS:
    return f"bind MeshConfig.model to a divisor of {size}, {whole}"
  data = math.gcd(size, mesh.shape[DATA_AXIS])
  model = mesh.shape[MODEL_AXIS] * mesh.shape[DATA_AXIS] // data
  return f"bind MeshConfig.model = {model}, which leaves data {data}, {whole}, as gin/pods/whole_weights.gin does"
