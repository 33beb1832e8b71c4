r"""Fetching the memory of all layers before the step, or one layer at a time inside the scan over layers.

  python experiments/benchmarks/fetch_streaming.py [--preset a2|b2|c2] [--topology v5e:16x16] [--async] [--json]
  python experiments/benchmarks/fetch_streaming.py --time     # compares and times a small size on 8 CPU devices

A skeleton of the training step: per layer a norm, a dense SwiGLU whose weights are split over the chips (FSDP) and the
memory's neurons; no attention, no embeddings, no optimizer. Layers are scanned and recomputed in the backward pass.

  upfront   what training does: `fetch`, the scan over the fetched block, `push` of its gradient.
  refetch   tables are [C_k + 1, L, 3 * R_k * D], split along the last axis. The scan's body fetches its layer's part of
            the rows, and again in the backward pass, which also pushes that layer's gradient.
  keep      the same, but the backward pass uses what the forward pass has fetched.

The first form compiles for a TPU slice, without one (one to four minutes a variant), and prints per device: GiB of
arguments, of the tables among them without the padding of their layout, and of temporaries; GiB that all instructions
move through HBM; all-to-alls that a step runs, their MB, and the time they take at the published bandwidth; how many of
them are asynchronous, and how many of these have a matrix product between start and end.
"""

import argparse
import functools
import json
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from common import in_turns, table
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hiermem_jax.errors import InputError
from hiermem_jax.models import bank as bank_lib
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.memory import ffn
from hiermem_jax.parallel import fetch, make_mesh, push
from hiermem_jax.parallel.mesh import BATCH_AXES, DATA_AXIS, ROW_AXES
from hiermem_jax.pod.collectives import collectives
from hiermem_jax.pod.cost import cost
from hiermem_jax.pod.hlo import Module
from hiermem_jax.pod.report import step_seconds
from hiermem_jax.pod.topology import GIB, parse_topology, topology_devices

VARIANTS = ("upfront", "refetch", "keep")
WEIGHTS = (P(None, DATA_AXIS), P(None, DATA_AXIS), P(None, None, DATA_AXIS))  # [L, D, F], [L, D, F], [L, F, D]
SEQUENCES, ROWS = P(BATCH_AXES), P(None, None, ROW_AXES)


class Size(NamedTuple):
  """Of the skeleton."""

  anchor: AnchorConfig  # only its layers, width and MLP width matter here
  memory: MemoryConfig
  sequences: int  # on each device; at most the rows of the smallest table
  length: int = 2048

  @property
  def model(self) -> ModelConfig:
    """Both configurations."""
    return ModelConfig(anchor=self.anchor, memory=self.memory)


def size(layers, width, mlp_width, rows, sequences, *, dtype="bfloat16", branching=16, **other) -> Size:
  """A size from its numbers."""
  sizes = {"num_layers": layers, "width": width, "mlp_width": mlp_width, "num_heads": 1, "head_dim": 2}
  return Size(AnchorConfig(**sizes, dtype=dtype), MemoryConfig(rows=rows, branching=branching), sequences, **other)


# The paper's A2, B2 and C2 with 1024, 1024 and 2048 sequences on 256 chips, and a small one.
PRESETS = {
  "a2": size(35, 512, 2048, (256, 64, 16), 4),
  "b2": size(24, 1024, 2816, (512, 128, 32), 4),
  "c2": size(24, 2048, 5632, (768, 256, 16), 8),
}
SMALL = size(8, 128, 512, (32, 16, 8), 2, length=128, branching=8, dtype="float32")


def make_step(variant: str, size: Size, mesh: Mesh):
  """A function of (bank, leaf int32 [B], weights, x [B, S, D]), not yet jitted.

  Returns the loss and gradients of weights and rows. Those of rows are summed over the sequences that share one:
  [U_k, R_k * L * 3 * D] for `upfront`, [L, U_k, 3 * R_k * D] otherwise.
  """
  anchor, memory = size.anchor, size.memory
  names = list(bank_lib.table_shapes(size.model))
  split = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)

  def upfront(bank, leaf, weights, x):
    @functools.partial(split, in_specs=(WEIGHTS, SEQUENCES, SEQUENCES), out_specs=(P(), WEIGHTS, SEQUENCES))
    def gradients(weights, block, x):
      def loss(weights, block):
        vectors = jax.tree.map(lambda m: jnp.moveaxis(m, 1, 0), block.vectors)
        return scan(lambda x, xs: layer(x, *xs), x, (weights, vectors))

      value, grads = jax.value_and_grad(loss, (0, 1))(weights, block)
      return jax.lax.psum(value, BATCH_AXES), *grads

    value, weight_grads, block_grads = gradients(weights, fetch(bank, leaf, size.model, mesh), x)
    row_grads = push(block_grads, leaf, size.model, mesh)
    return value, weight_grads, {name: row_grads[name].value for name in names}

  tables = dict.fromkeys(names, ROWS)

  @functools.partial(split, in_specs=(tables, SEQUENCES, WEIGHTS, SEQUENCES), out_specs=(P(), WEIGHTS, tables))
  def streamed(bank, leaf, weights, x):
    wanted = bank_lib.row_indices(jax.lax.all_gather(leaf, DATA_AXIS, tiled=True), memory)
    index = {name: _places(wanted[name], len(bank[name])) for name in names}

    def fetched(number):
      for name in names:
        part = bank[name].at[wanted[name], number].get().astype(anchor.dtype)
        row = jax.lax.all_to_all(part, DATA_AXIS, split_axis=0, concat_axis=1, tiled=True)
        yield checkpoint_name(row, "rows")

    # Nothing reads the values of `sums`; their gradient is the pushed gradient of the rows.
    @jax.custom_vjp
    def attach(rows, sums, index):
      return rows

    def backward(index, rows):
      sums = {}
      for name, row in zip(names, rows):
        part = jax.lax.all_to_all(row, DATA_AXIS, split_axis=1, concat_axis=0, tiled=True).astype(jnp.float32)
        sums[name] = jnp.zeros((min(len(part), len(bank[name])), part.shape[1])).at[index[name]].add(part)
      return None, sums, None

    attach.defvjp(lambda rows, sums, index: (rows, index), backward)

    def body(x, xs):
      number, weights, sums = xs
      rows = attach(list(fetched(number)), sums, index)
      block = jnp.concatenate([row.reshape(len(x), -1, 3, anchor.width) for row in rows], axis=1)
      return layer(x, weights, {f"m{matrix + 1}": block[:, :, matrix] for matrix in range(3)})

    def loss(weights, sums):
      policies = jax.checkpoint_policies
      policy = policies.save_only_these_names("rows") if variant == "keep" else policies.nothing_saveable
      return scan(body, x, (jnp.arange(anchor.num_layers), weights, sums), policy)

    sums = {
      name: jnp.zeros((anchor.num_layers, min(len(wanted[name]), len(part)), part.shape[2]))
      for name, part in bank.items()
    }
    value, grads = jax.value_and_grad(loss, (0, 1))(weights, sums)
    return jax.lax.psum(value, BATCH_AXES), *grads

  return upfront if variant == "upfront" else streamed


def layer(x: jax.Array, weights, vectors: dict[str, jax.Array]) -> jax.Array:
  """One layer; weights are this device's part, x and the block's vectors those of its sequences."""
  h = x / jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean(-1, keepdims=True) + 1e-5).astype(x.dtype)
  w1, w2, w3 = (
    jax.lax.all_gather(w.astype(x.dtype), DATA_AXIS, axis=axis, tiled=True) for w, axis in zip(weights, (0, 0, 1))
  )
  return x + (jax.nn.silu(h @ w1) * (h @ w2)) @ w3 + ffn.neurons(vectors, h)


def scan(body, x, xs, policy=jax.checkpoint_policies.nothing_saveable) -> jax.Array:
  """The loss after all layers."""
  x, _ = jax.lax.scan(jax.checkpoint(lambda *a: (body(*a), None), policy=policy, prevent_cse=False), x, xs)
  return jnp.square(x.astype(jnp.float32)).mean()


def _places(index: jax.Array, table_rows: int) -> jax.Array:
  """Which of the sums each of the row indices [N] adds to, in the order of `bank.sum_rows`."""
  return index if len(index) >= table_rows else jnp.unique(index, size=len(index), return_inverse=True)[1]


def arguments(variant: str, size: Size, mesh: Mesh):
  """A step's arguments as shapes laid out on the mesh."""
  layers, width, mlp_width = size.anchor.num_layers, size.anchor.width, size.anchor.mlp_width
  bank, specs = {}, P(None, ROW_AXES) if variant == "upfront" else ROWS
  for name, (clusters, row) in bank_lib.table_shapes(size.model).items():
    shape = (clusters, row) if variant == "upfront" else (clusters, layers, row // layers)
    bank[name] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, specs))
  batch = size.sequences * mesh.size
  others = (
    jax.ShapeDtypeStruct((batch,), jnp.int32),
    tuple(jax.ShapeDtypeStruct((layers, *s), jnp.float32) for s in 2 * [(width, mlp_width)] + [(mlp_width, width)]),
    jax.ShapeDtypeStruct((batch, size.length, width), size.anchor.dtype),
  )
  specs = (SEQUENCES, WEIGHTS, SEQUENCES)
  lay_out = lambda s, spec: s.update(sharding=NamedSharding(mesh, spec))  # noqa: E731
  return bank, *jax.tree.map(lay_out, others, specs)


def measure(variant: str, size: Size, mesh: Mesh, topology, options: dict[str, str]) -> dict:
  """Compiles one variant and reads what it needs."""
  inputs = arguments(variant, size, mesh)
  compiled = jax.jit(make_step(variant, size, mesh)).lower(*inputs).compile(compiler_options=options)
  text, stats = compiled.as_text(), compiled.memory_analysis()
  exchange = [c for c in collectives(text, topology.devices_per_slice) if c.kind == "all-to-all"]
  started, covered = _asynchronous(Module(text))
  return {
    "variant": variant,
    "arguments": stats.argument_size_in_bytes / GIB,
    "tables": sum(t.size for t in inputs[0].values()) * 4 / mesh.size / GIB,
    "temporaries": stats.temp_size_in_bytes / GIB,
    "hbm_traffic": cost(text).hbm_bytes / GIB,
    "all_to_alls": sum(c.count for c in exchange),
    "wire_mb": sum(c.bytes for c in exchange) / 1e6,
    "exchange_ms": 1e3 * step_seconds(0, 0, exchange, topology)["ici"],
    "asynchronous": started,
    "covered": covered,
  }


def _asynchronous(module: Module) -> tuple[int, int]:
  """Asynchronous all-to-alls of a step, and how many have a matrix product between their start and end."""
  started = covered = 0
  products = {
    name for name, c in module.computations.items() if any(i.opcode in ("dot", "convolution") for i in c.values())
  }
  for name, times in module.executions():
    open_ones: dict[str, bool] = {}
    for instruction in module.computations[name].values():
      if instruction.opcode == "all-to-all-start":
        open_ones[instruction.name] = False
      elif instruction.opcode == "all-to-all-done":
        started, covered = started + times, covered + times * open_ones.pop(instruction.operands[0])
      elif instruction.opcode in ("dot", "convolution") or instruction.called in products:
        open_ones = dict.fromkeys(open_ones, True)
  return started, covered


def time_small(size: Size, devices: int, rounds: int) -> list[dict]:
  """Milliseconds a step of each variant on CPU devices, in turns, after checking that they compute the same.

  Raises:
    AssertionError: loss or gradients of two variants differ.
  """
  jax.config.update("jax_num_cpu_devices", devices)
  mesh, memory, anchor = make_mesh(), size.memory, size.anchor
  key, runs, results = jax.random.key(0), {}, {}
  for variant in VARIANTS:
    shapes = arguments(variant, size, mesh)
    _, weights, x = jax.tree.map(lambda s: jax.random.normal(key, s.shape, jnp.float32) / 8, shapes[1:])
    values = _bank(variant, size), jax.random.randint(key, shapes[1].shape, 0, memory.num_leaves), weights, x
    values = jax.tree.map(lambda v, s: jax.device_put(v, s.sharding), values, shapes)
    runs[variant] = functools.partial(jax.jit(make_step(variant, size, mesh)), *values)
    value, weight_grads, sums = jax.device_get(runs[variant]())
    if variant != "upfront":  # to the order of `upfront`
      sums = {n: s.reshape(*s.shape[:2], -1, 3, anchor.width).transpose(1, 2, 0, 3, 4) for n, s in sums.items()}
    results[variant] = value, weight_grads, {n: s.reshape(len(s), -1) for n, s in sums.items()}
    for ours, theirs in zip(jax.tree.leaves(results[variant]), jax.tree.leaves(results["upfront"])):
      scale = jnp.abs(theirs).max()
      assert jnp.allclose(ours, theirs, rtol=0, atol=1e-4 * scale), f"{variant} is not upfront"
  return [{"variant": variant, "step_ms": ms} for variant, ms in in_turns(runs, rounds).items()]


def _bank(variant: str, size: Size) -> bank_lib.Bank:
  """The same random tables in the order that the variant wants, none of them zero."""
  anchor, bank = size.anchor, {}
  for level, (name, (clusters, row)) in zip(size.memory.levels, bank_lib.table_shapes(size.model).items()):
    table = jax.random.normal(jax.random.key(level), (clusters, row)) * anchor.width**-0.5
    if variant != "upfront":
      table = table.reshape(clusters, -1, anchor.num_layers, 3, anchor.width).transpose(0, 2, 1, 3, 4)
      table = table.reshape(clusters, anchor.num_layers, -1)
    bank[name] = table
  return bank


def main(argv: list[str]) -> int:
  """Prints the table; 2 and one line on bad input or where the compiler refuses."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--preset", choices=tuple(PRESETS), default="a2")
  parser.add_argument("--topology", default="v5e:16x16")
  parser.add_argument("--sequences", type=int, help="on each chip; default: the preset's")
  parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
  parser.add_argument("--async", dest="overlap", action="store_true", help="with xla_tpu_enable_async_all_to_all")
  parser.add_argument("--time", action="store_true", help="a small size on 8 CPU devices instead")
  parser.add_argument("--rounds", type=int, default=15, help="of --time")
  parser.add_argument("--json", action="store_true", help="print JSON")
  flags = parser.parse_args(argv)
  jax.config.update("jax_platforms", "cpu")
  if flags.time:
    rows = time_small(SMALL, 8, flags.rounds)
  else:
    chosen = PRESETS[flags.preset]
    chosen = chosen._replace(sequences=flags.sequences or chosen.sequences)
    options = {"xla_tpu_enable_async_all_to_all": "true"} if flags.overlap else {}
    try:
      smallest = min(clusters for clusters, _ in bank_lib.table_shapes(chosen.model).values())
      if not 0 < chosen.sequences <= smallest:
        raise InputError(
          f"--sequences={chosen.sequences}: the smallest table has {smallest} rows; give 1 to {smallest}"
        )
      topology = parse_topology(flags.topology)
      mesh = make_mesh(devices=topology_devices(topology))
      rows = [measure(variant, chosen, mesh, topology, options) for variant in flags.variants]
    except (InputError, jax.errors.JaxRuntimeError) as error:
      print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
      return 2
  print(json.dumps(rows, indent=2) if flags.json else table(list(rows[0]), rows))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
