"""Estimates chip-hours and price of a run from the FLOPs that `describe` counts and the prices in prices.toml."""

import json
import math
import pathlib
import subprocess
import sys
import tomllib
from collections.abc import Sequence

from hiermem_jax.errors import InputError
from tpu_setup.config import Config

PRICES = pathlib.Path(__file__).with_name("prices.toml")


def training_flops(flags: Sequence[str]) -> float:
  """Asks `describe` for the model FLOPs of a whole training.

  Raises:
    InputError: `describe` refuses the configuration.
  """
  command = [sys.executable, "-m", "hiermem_jax.describe", "--json", *flags]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise InputError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
  return json.loads(done.stdout)["training"]["flops"]


def price(config: Config, path: pathlib.Path = PRICES) -> float | None:
  """Reads the price of one chip for one hour; None where the table has no price for it.

  Raises:
    InputError: the table cannot be read, or a value is not a positive number.
  """
  try:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: {error}") from None
  value = table.get(config.chip, {}).get(config.capacity)
  if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0):
    raise InputError(f"{path}: {config.chip}, {config.capacity} = {value!r}: give a price for one chip and hour")
  return value


def report(config: Config, flops: float, utilisation: float, prices: pathlib.Path = PRICES) -> str:
  """Writes chip-hours, hours and price of `flops` at a share `utilisation` of the chip's bfloat16 peak."""
  if not 0 < utilisation <= 1:
    raise InputError(f"--utilisation={utilisation}: the share of peak FLOPs that a run reaches, above 0 and at most 1")
  chips = config.chips * config.slices
  peak = config.parsed.chip.peak_flops
  hours = flops / (peak * utilisation) / 3600
  shape = f"{config.slices} x {config.topology}" if config.slices > 1 else config.topology
  lines = [
    f"model FLOPs       {flops:.4g}",
    f"chip-hours        {hours:,.0f} of {config.chip} at {100 * utilisation:g}% of {peak / 1e12:g} TFLOP/s",
    f"on {shape:<14} {hours / chips:,.1f} hours ({hours / chips / 24:.1f} days) on {chips} chips",
  ]
  cost = price(config, prices)
  if cost is None:
    lines.append(f"price             not known: fill in [{config.chip}] {config.capacity} in {prices}")
  else:
    lines.append(f"price             {hours * cost:,.0f} at {cost:g} per chip and hour ({config.capacity})")
    idle = math.prod(config.parsed.shape) * config.slices * cost
    lines.append(f"a forgotten slice {idle:,.2f} an hour, {24 * idle:,.0f} a day")
  return "\n".join(lines)
