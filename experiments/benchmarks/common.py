"""What the benchmarks share: random batches, filled states, and functions timed in turns."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hiermem_jax.errors import InputError
from hiermem_jax.pod.topology import CHIPS

# jax's `device_kind` of the TPUs whose peaks `hiermem_jax.pod.topology` has.
_TPUS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "TPU7x": "tpu7x"}
# Dense bfloat16 FLOP/s by the start of `device_kind`, from NVIDIA's data sheets (their figures with sparsity, halved).
_GPU_PEAK_FLOPS = {"NVIDIA A100": 312e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12}


def require_positive(flags: argparse.Namespace, *names: str) -> None:
  """Raises InputError for the first of the flags that is not positive."""
  for name in names:
    if getattr(flags, name) < 1:
      raise InputError(f"--{name}={getattr(flags, name)}: must be positive; give another number")


def random_batch(batch: int, length: int, vocab: int, num_leaves: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
  """Random tokens without padding (the batch contract, arrays [batch, length]) and random leaf ids [batch]."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, vocab, (batch, length), dtype=np.int32)
  return {
    "decoder_input_tokens": np.pad(tokens[:, :-1], ((0, 0), (1, 0))),
    "decoder_target_tokens": tokens,
    "decoder_segment_ids": np.ones((batch, length), np.int32),
    "decoder_positions": np.tile(np.arange(length, dtype=np.int32), (batch, 1)),
    "decoder_loss_weights": np.ones((batch, length), np.float32),
    "memory_leaf": rng.integers(0, num_leaves, batch).astype(np.int32),
  }


def filled_state(program):
  """A state whose every number is written (so its memory is really there), without the cost of drawing a bank."""

  def fill(x):
    value = 0 if jnp.issubdtype(x.dtype, jnp.integer) else 0.01
    return jax.jit(lambda: jnp.full(x.shape, value, x.dtype), out_shardings=x.sharding)()

  return jax.tree.map(fill, program.abstract_state)


def in_turns(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
  """Median milliseconds of each function over `rounds` rounds, in each of which all take a turn; two rounds warm up."""
  times = {name: [] for name in functions}
  for turn in range(rounds + 2):
    for name, function in functions.items():
      start = time.perf_counter()
      jax.block_until_ready(function())
      if turn >= 2:
        times[name].append(1e3 * (time.perf_counter() - start))
  return {name: statistics.median(values) for name, values in times.items()}


def in_rotated_turns(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
  """Seconds of each function in each of `rounds` rounds, [2, rounds]: by the clock, and of this process's CPU time.

  In every round all take a turn, and the order rotates from round to round: none is always the first. Two warm up.
  """
  times = {name: np.zeros((2, rounds)) for name in functions}
  names = list(functions)
  for turn in range(-2, rounds):
    for name in names[turn % len(names) :] + names[: turn % len(names)]:
      start = time.perf_counter(), time.process_time()
      jax.block_until_ready(functions[name]())
      if turn >= 0:
        times[name][:, turn] = np.subtract((time.perf_counter(), time.process_time()), start)
  return times


def optax_steps(losses: Callable, params, transformation: optax.GradientTransformation) -> Callable[[], object]:
  """A function that starts one more training step from where the last one ended: parameters, state and loss."""

  def step(params, state):
    loss, grads = jax.value_and_grad(losses)(params)
    updates, state = transformation.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  step, state = jax.jit(step, donate_argnums=(0, 1)), transformation.init(params)

  def run():
    nonlocal params, state
    params, state, loss = step(params, state)
    return params, state, loss

  return run


def seconds_of(function: Callable[[], object], calls: int = 5) -> float:
  """Median seconds of some calls, after one that compiles."""
  return float(np.median(in_rotated_turns({"": function}, calls)[""][0]))


def matmul_flops(dtype: str, size: int = 2048) -> float:
  """FLOP/s of the fastest of six square matmuls, the first of which compiles."""
  x = jnp.ones((size, size), dtype)
  multiply = jax.jit(jnp.matmul)
  return 2 * size**3 / float(in_rotated_turns({"": lambda: multiply(x, x)}, 5)[""][0].min())


def published_peak(device: jax.Device) -> float | None:
  """Dense bfloat16 FLOP/s that a device's maker gives; None for devices not listed here."""
  if device.device_kind in _TPUS:
    chip = CHIPS[_TPUS[device.device_kind]]
    return chip.peak_flops / chip.devices
  # The longest name that fits: "NVIDIA H100 PCIe" before "NVIDIA H100".
  fitting = [name for name in _GPU_PEAK_FLOPS if device.device_kind.startswith(name)]
  return _GPU_PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def peak_bytes(compiled: jax.stages.Compiled) -> int:
  """Bytes that a compiled function needs on a device: arguments, results that do not reuse them, temporaries."""
  memory = compiled.memory_analysis()
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def table(columns: list[str], rows: list[dict]) -> str:
  """Rows as aligned text; whole numbers with separators, others with two decimals."""

  def show(value):
    if isinstance(value, float):
      return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)

  cells = [columns] + [[show(row[column]) for column in columns] for row in rows]
  widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
  return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in cells)
