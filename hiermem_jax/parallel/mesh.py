"""The device mesh and the rules that map logical axis names to it."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"

# Logical axis -> mesh axis. A name without a rule is replicated: the anchor's weights are, the bank's rows are split.
DEFAULT_RULES = (("batch", DATA_AXIS), ("bank_row", DATA_AXIS))


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A one-axis data-parallel mesh over `devices` (default: all of them)."""
  return Mesh(np.asarray(devices if devices is not None else jax.devices()), (DATA_AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of every array of a batch: the leading (sequence) axis is split over the data axis."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def state_shardings(abstract_state, mesh: Mesh, rules=DEFAULT_RULES):
  """Shardings of a state whose leaves may be boxed with logical axis names; unnamed leaves are replicated."""
  specs = nn.get_partition_spec(abstract_state)
  return nn.logical_to_mesh_sharding(specs, mesh, rules)
