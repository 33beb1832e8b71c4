"""The configuration of all commands: defaults in config.toml, then a file, then flags; the last one wins."""

import argparse
import dataclasses
import difflib
import pathlib
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from hiermem_jax.errors import InputError
from hiermem_jax.pod.topology import Topology, parse_topology

DEFAULTS = pathlib.Path(__file__).with_name("config.toml")
CAPACITIES = ("spot", "reserved", "on-demand")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """All values of the configuration. config.toml explains each and gives its default."""

  provider: str
  name: str
  project: str
  zone: str
  topology: str
  slices: int
  capacity: str
  runtime_version: str
  network: str
  subnetwork: str
  service_account: str
  internal_ips: bool
  bucket: str
  python: str
  commit: str
  wait_minutes: float
  tries: int
  backoff_seconds: float
  poll_seconds: float
  healthy_minutes: float
  stop_seconds: int
  root: str
  hosts: int
  devices: int
  labels: Mapping[str, str]

  def __post_init__(self):
    if self.provider not in ("gcloud", "local"):
      raise InputError(f"provider = {self.provider!r}: no such provider; use 'gcloud' or 'local'")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", self.name):
      raise InputError(f"name = {self.name!r}: use at most 40 lower-case letters, digits and hyphens, a letter first")
    for field in ("slices", "tries", "hosts", "devices"):
      if getattr(self, field) < 1:
        raise InputError(f"{field} = {getattr(self, field)}: must be at least 1")
    if self.provider == "gcloud":
      self._check_cloud()

  def _check_cloud(self) -> None:
    if self.parsed.name.split(":")[0] not in CHIPS:
      raise InputError(f"topology = {self.topology!r}: no such Cloud TPU here; use one of {', '.join(CHIPS)}")
    if self.capacity not in CAPACITIES:
      raise InputError(f"capacity = {self.capacity!r}: use one of {', '.join(CAPACITIES)}")
    if self.bucket and not re.fullmatch(r"gs://[a-z0-9][-_.a-z0-9]+", self.bucket):
      raise InputError(f"bucket = {self.bucket!r}: give the bucket alone, e.g. gs://my-bucket")

  def require_project(self) -> None:
    """Raises InputError when the project or the zone of a slice in the cloud is missing."""
    missing = [field for field in ("project", "zone") if not getattr(self, field)]
    if self.provider == "gcloud" and missing:
      raise InputError(f"{' and '.join(missing)} missing; set it in {DEFAULTS.name}, or give --{missing[0]}=...")

  @property
  def parsed(self) -> Topology:
    """The topology of one slice. Raises InputError where there is no such topology."""
    return parse_topology(self.topology, self.slices)

  @property
  def chip(self) -> str:
    """The kind of chip, e.g. "v5e"."""
    return self.topology.split(":")[0]

  @property
  def chips(self) -> int:
    """Chips of one slice."""
    return self.parsed.devices_per_slice // self.parsed.chip.devices

  @property
  def chips_per_host(self) -> int:
    """Chips of one host: 4, or all chips of a slice that is a single host (up to 8 of v5e and v6e)."""
    return self.chips if self.chips <= CHIPS[self.chip].single_host else 4


@dataclasses.dataclass(frozen=True)
class CloudChip:
  """Google's names for a kind of chip, from `gcloud help` and cloud.google.com/tpu/docs in 2026."""

  accelerator: str  # the part of --accelerator-type before the number
  cores: int  # by which one chip raises that number
  runtime: str  # TPU VM image
  single_host: int  # most chips of a slice that is one host
  gke: str  # cloud.google.com/gke-tpu-accelerator


CHIPS = {
  "v4": CloudChip("v4", 2, "tpu-ubuntu2204-base", 4, "tpu-v4-podslice"),
  "v5e": CloudChip("v5litepod", 1, "v2-alpha-tpuv5-lite", 8, "tpu-v5-lite-podslice"),
  "v5p": CloudChip("v5p", 2, "v2-alpha-tpuv5", 4, "tpu-v5p-slice"),
  "v6e": CloudChip("v6e", 1, "v2-alpha-tpuv6e", 8, "tpu-v6e-slice"),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds a flag for a configuration file and a flag for each value."""
  group = parser.add_argument_group("configuration, see tpu_setup/config.toml")
  group.add_argument("--config", type=pathlib.Path, help="a file like config.toml; what it lacks is as there")
  for field in dataclasses.fields(Config):
    if field.name == "labels":
      group.add_argument("--labels", type=_labels, metavar="KEY=VALUE,...")
    elif field.type is bool:
      group.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, default=None)
    else:
      assert isinstance(field.type, type)
      group.add_argument(f"--{field.name}", type=field.type, metavar=field.type.__name__.upper())


def _labels(text: str) -> dict[str, str]:
  pairs = [pair.partition("=") for pair in text.split(",")]
  if not all(key and equals for key, equals, _ in pairs):
    raise argparse.ArgumentTypeError(f"{text!r}: write KEY=VALUE,KEY=VALUE")
  return {key: value for key, _, value in pairs}


def load(path: pathlib.Path | None, flags: Mapping[str, Any]) -> Config:
  """Reads the defaults, then the file, then the flags that are not None; the last one wins.

  Raises:
    InputError: a value is unknown or of the wrong type; the file, the value and what it should be are named.
  """
  values = _read(DEFAULTS)
  for source in [path] if path else []:
    values |= _read(source)
  given = {field.name: flags.get(field.name) for field in dataclasses.fields(Config)}
  return Config(**values | {name: value for name, value in given.items() if value is not None})


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    values = tomllib.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: {error}; give a file like {DEFAULTS}") from None
  types: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Config)} | {"labels": dict}
  for name, value in values.items():
    if name not in types:
      close = difflib.get_close_matches(name, types, 1)
      raise InputError(f"{path}: {name}: no such value{f'; {close[0]}?' if close else ''}; config.toml lists them")
    wanted = types[name]
    fits = isinstance(value, (int, float) if wanted is float else wanted)
    if not fits or isinstance(value, bool) != (wanted is bool):
      raise InputError(f"{path}: {name} = {value!r}: must be {'a table' if wanted is dict else wanted.__name__}")
  return values
