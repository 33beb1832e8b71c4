"""TPU chips and pod topologies: published peaks, and devices to compile for on a machine that has none."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from hiermem_jax.errors import InputError

GIB = 2**30
_MAX_CHIPS = 9216  # of the largest slice of any chip below


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """A TPU chip, as Google publishes it at cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} (read in 2026).

  Bandwidths are those of one chip in one direction, all links together: half of the "bidirectional ICI bandwidth per
  chip", which is what older pages give in Gbps. A chip with two jax devices gives each half of everything.
  """

  hbm_gib: float  # published
  usable_gib: float  # that libtpu 0.0.42 leaves to a program, per jax device, as its out-of-memory error says
  peak_flops: float  # bfloat16, per second
  hbm_bandwidth: float  # bytes per second
  ici_bandwidth: float  # bytes per second
  dcn_bandwidth: float  # bytes per second: the host's network, divided by its chips
  axes: int  # dimensions of the interconnect
  wraps_at: int  # an axis whose length is a multiple of this is a ring
  devices: int = 1  # jax devices per chip
  libtpu: tuple[tuple[str, str], ...] = ()  # further options for libtpu


CHIPS = {
  # ICI 2400 Gbps. Megacore makes one device of the two cores, as on a v4 machine. Google gives no DCN bandwidth for v4:
  # assumed to be that of v5p, 50 Gbps.
  "v4": Chip(
    hbm_gib=32,
    usable_gib=30.75,
    peak_flops=275e12,
    hbm_bandwidth=1200e9,
    ici_bandwidth=300e9,
    dcn_bandwidth=6.25e9,
    axes=3,
    wraps_at=4,
    libtpu=(("chip_config_name", "megacore"),),
  ),
  # ICI 400 GB/s bidirectional; DCN 6.4 Tbps for a pod of 256.
  "v5e": Chip(
    hbm_gib=16,
    usable_gib=15.75,
    peak_flops=197e12,
    hbm_bandwidth=819e9,
    ici_bandwidth=200e9,
    dcn_bandwidth=3.125e9,
    axes=2,
    wraps_at=16,
  ),
  # ICI 1200 GB/s bidirectional; DCN 50 Gbps per chip.
  "v5p": Chip(
    hbm_gib=95,
    usable_gib=95.74,
    peak_flops=459e12,
    hbm_bandwidth=2765e9,
    ici_bandwidth=600e9,
    dcn_bandwidth=6.25e9,
    axes=3,
    wraps_at=4,
  ),
  # ICI 800 GB/s bidirectional; DCN 100 Gbps per chip.
  "v6e": Chip(
    hbm_gib=32,
    usable_gib=31.25,
    peak_flops=918e12,
    hbm_bandwidth=1638e9,
    ici_bandwidth=400e9,
    dcn_bandwidth=12.5e9,
    axes=2,
    wraps_at=16,
  ),
  # ICI 1200 GB/s bidirectional; DCN 100 Gbps per chip; its two chiplets are two devices.
  "tpu7x": Chip(
    hbm_gib=192,
    usable_gib=94.75,
    peak_flops=2307e12,
    hbm_bandwidth=7380e9,
    ici_bandwidth=600e9,
    dcn_bandwidth=12.5e9,
    axes=3,
    wraps_at=4,
    devices=2,
  ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice shape of one kind of chip, and how many such slices."""

  name: str  # e.g. "v5e:16x16"
  slices: int
  chip: Chip
  shape: tuple[int, ...]  # chips along each axis of one slice

  @property
  def devices_per_slice(self) -> int:
    """jax devices of one slice."""
    return math.prod(self.shape) * self.chip.devices

  def mean_hops(self) -> float:
    """Links that a message between two chips of a slice crosses on average, over all pairs; 1 for a single chip."""
    chips = math.prod(self.shape)
    if chips == 1:
      return 1.0
    per_axis = []
    for size in self.shape:
      distances = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
      ring = size > 2 and size % self.chip.wraps_at == 0
      per_axis.append((np.minimum(distances, size - distances) if ring else distances).mean())
    return float(sum(per_axis)) * chips / (chips - 1)  # a chip is no partner of itself


def parse_topology(name: str, slices: int = 1) -> Topology:
  """Parses e.g. "v5e:16x16".

  Raises:
    InputError: no such chip, or not a shape that it comes in.
  """
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
  if not found or found[1] not in CHIPS:
    raise InputError(
      f"--topology={name}: no such topology; write CHIP:SHAPE with CHIP one of {', '.join(CHIPS)}, e.g. v5e:16x16 or"
      " v5p:4x4x8"
    )
  chip, shape = CHIPS[found[1]], tuple(int(size) for size in found[2].split("x"))
  if len(shape) != chip.axes or not 0 < math.prod(shape) <= _MAX_CHIPS:
    example = "x".join(["4"] * chip.axes)
    raise InputError(
      f"--topology={name}: a {found[1]} slice has {chip.axes} axes and at most {_MAX_CHIPS} chips; write e.g."
      f" {found[1]}:{example}"
    )
  if slices < 1:
    raise InputError(f"--num_slices={slices}: must be at least 1")
  return Topology(name, slices, chip, shape)


def has_libtpu() -> bool:
  """Whether libtpu is installed, which knows the topologies and compiles for them."""
  return importlib.util.find_spec("libtpu") is not None


def topology_devices(topology: Topology) -> Sequence[jax.Device]:
  """Devices to build a mesh of and compile for; nothing can run on them.

  The jax of this process must not use a TPU. Sets the environment variables that keep libtpu from looking for one.

  Raises:
    InputError: libtpu is not installed, or does not know the shape.
  """
  if not has_libtpu():
    raise InputError(
      "libtpu is not installed, and it is what compiles for a TPU; run pip install 'hiermem_jax[tpu]' (no TPU needed)"
    )
  # Without the first three libtpu asks the metadata server of a TPU machine, which elsewhere takes minutes to fail; the
  # type stands for this machine's, and does not matter. Without the last, two compilations lock each other out.
  for variable, value in (
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
  ):
    os.environ.setdefault(variable, value)
  from jax.experimental import topologies

  options: dict[str, Any] = dict(topology.chip.libtpu)
  if math.prod(topology.shape) == 1:
    options["chips_per_host_bounds"] = (1, 1, 1)
  if topology.slices > 1:
    options["num_slices"] = topology.slices
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices
  except jax.errors.JaxRuntimeError as error:
    if "INVALID_ARGUMENT" not in str(error):
      raise
    cause = str(error).splitlines()[0].split(": ", 1)[-1]
    raise InputError(f"--topology={topology.name}: libtpu does not know it ({cause}); name one that exists") from None


def out_of_memory(error: Exception) -> tuple[float, float] | None:
  """(needed, available) bytes of HBM per device from the compiler's refusal; None when the error is another one."""
  text = str(error)
  if "RESOURCE_EXHAUSTED" not in text or not re.search(r"\bhbm\b", text, re.IGNORECASE):
    return None
  size = r"([\d.]+)([KMGT]?)i?B?"
  for pattern in (rf"\({size}\) exceeds available HBM \({size}\)", rf"Used {size} of {size} hbm"):
    if found := re.search(pattern, text, re.IGNORECASE):
      units = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
      return float(found[1]) * units[found[2].upper()], float(found[3]) * units[found[4].upper()]
  return None
