r"""Prints the arithmetic of a run without touching a device.

  python -m hiermem_jax.describe --gin_file=gin/runs/a2.gin
  python -m hiermem_jax.describe --gin_file=gin/runs/a2.gin --topology=v5e:16x16 --num_slices=2 --json

Parameters of the anchor, of what a sequence fetches and of the bank; forward FLOPs per token with and without memory;
bytes per level of the bank in bfloat16 and in float32 with AdamW's two moments; tokens and FLOPs of the whole training.
For a TPU topology, or for a number of devices (--gin_bindings="describe.devices = 8"), also what each device holds of
parameters and optimizer state. The step is then traced for every length of sequences, so that what `compile_pod` and
`train` would refuse on such devices is refused here, too; a state that does not fit gives status 1. `compile_pod` says
what a step needs beyond the state.

  python -m hiermem_jax.describe --diff gin/runs/a2.gin runs/a2

What differs between two gin files or run directories, one line each: every setting after defaults, macros and scopes
are resolved; of two directories also what they record of code and data.

  python -m hiermem_jax.describe --params train

Every name that can be bound for a verb, with type, default and meaning. With --gin_file, what that file binds.
"""

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refused flag answer at once
  from hiermem_jax import cli

  cli.main("describe")

import dataclasses
import json
import sys
from typing import Any

from hiermem_jax.data.corpus.config import ONE_LENGTH, Prepared
from hiermem_jax.data.sources import Source
from hiermem_jax.models.config import ModelConfig
from hiermem_jax.parallel.mesh import AXES
from hiermem_jax.retrieval.build import TreeConfig
from hiermem_jax.training.config import TrainingRun


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clustered:
  """What `cluster` is bound to: the tree that a run's memory is over. Without a corpus nothing is clustered."""

  corpus: Source | None = None
  tree: TreeConfig = TreeConfig()
  tokenizer_vocab_size: int | None = None


def describe(
  *,
  run: TrainingRun,
  prepared: Prepared = ONE_LENGTH,
  clustered: Clustered = Clustered(),
  as_json: bool = False,
  context_length: int = 2048,
  topology: str | None = None,
  num_slices: int | None = None,
  devices: int | None = None,
) -> None:
  """Prints the sizes of a run, as text or JSON.

  Args:
    run: the run, with what is bound to `train`.
    prepared: the sequences that the run trains on. `TrainingRun.batch_size` counts sequences of the longest.
    clustered: the tree and the tokenizer that are to be made for the run.
    as_json: print JSON.
    context_length: positions that the attention FLOPs are averaged over.
    topology: TPU slice to lay the state out on, e.g. "v5e:16x16".
    num_slices: slices of it. None is the number that `MeshConfig.slices` says, or 1.
    devices: number of any other devices to lay the state out on.

  Raises:
    InputError: the warmup leaves no step, the tree or the tokenizer does not fit the model, there is no such topology,
      the state or the batch cannot be split over it, or the model cannot take sequences of these lengths.
  """
  run.transformation()  # which checks the schedule
  if clustered.corpus is not None:
    tree = clustered.tree
    run.model.check_data("cluster", clustered.tokenizer_vocab_size, tree.num_leaves)
    run.model.check_tree("cluster", (tree.branching, tree.depth))
  sizes = arithmetic(run.model, context_length)
  tokens = run.steps * run.batch_size * max(prepared.pack.lengths)
  per_token = run.flops_per_token(context_length)
  sizes["training"] = {"tokens": tokens, "flops_per_token": per_token, "flops": tokens * per_token}
  if topology is not None or devices is not None:
    sizes["device"] = per_device(run, prepared, topology=topology, num_slices=num_slices, devices=devices)
  print(json.dumps(sizes, indent=2) if as_json else as_text(sizes))
  if topology is not None and not sizes["device"]["fits"]:
    print(f"error: parameters and optimizer state do not fit {topology}; compile_pod names remedies", file=sys.stderr)
    sys.exit(1)


def arithmetic(model: ModelConfig, context_length: int) -> dict:
  """Sizes of a model (paper, Section 2.1 and Tables 1, 4-8). FLOPs are forward only; training costs 3x."""
  memory = model.memory
  levels = (
    []
    if memory is None
    else [
      {
        "level": level,
        "clusters": memory.clusters(level),
        "rows": memory.rows[level - 1],
        "block_params": model.block_params(level),
        "params": model.level_params(level),
        "bytes_bfloat16": 2 * model.level_params(level),
        "bytes_training": 12 * model.level_params(level),
      }
      for level in memory.levels
    ]
  )
  return {
    "anchor_params": model.anchor.params,
    "fetched_params": model.fetched_params,
    "bank_params": model.bank_params,
    "flops_per_token": model.flops_per_token(context_length),
    "flops_per_token_no_memory": model.anchor.flops_per_token(context_length),
    "context_length": context_length,
    "anchor_bytes_bfloat16": 2 * model.anchor.params,
    "fetched_bytes_bfloat16": 2 * model.fetched_params,
    "bank_bytes_bfloat16": 2 * model.bank_params,
    "levels": levels,
  }


def per_device(
  run: TrainingRun, prepared: Prepared, *, topology: str | None, num_slices: int | None, devices: int | None
) -> dict:
  """What one device of a mesh holds of a run's state, bytes; see `describe` for the arguments."""
  import jax

  from hiermem_jax.parallel.layout import bytes_per_device
  from hiermem_jax.parallel.mesh import abstract_mesh
  from hiermem_jax.pod.topology import GIB, has_libtpu, parse_topology, topology_devices
  from hiermem_jax.training.program import make_program

  jax.config.update("jax_platforms", "cpu")  # whose devices are not used, either
  slices, usable = num_slices or run.mesh.slices or 1, None
  if topology is not None:
    pod = parse_topology(topology, slices)
    devices, usable = pod.devices_per_slice * slices, int(pod.chip.usable_gib * GIB)
    if has_libtpu():  # it knows which shapes exist
      topology_devices(pod)
  assert devices is not None  # `describe` calls this with one of the two
  shape = dataclasses.replace(run.mesh, slices=slices).shape(devices)
  mesh: Any = abstract_mesh(shape)
  program = make_program(run, mesh)
  for length, sequences in prepared.batches(run.batch_size).items():
    dataclasses.replace(program, batch_size=sequences).trace(length)
  state = program.abstract_state
  parts = {"anchor": state.params["anchor"], "anchor optimizer": state.opt_state["anchor"]}
  for name, table in state.params.get("bank", {}).items():
    parts |= {name: table, f"{name} optimizer": state.opt_state["bank"][name]}
  parts = {name: bytes_per_device(tree) for name, tree in parts.items()}
  return {
    "devices": devices,
    "mesh": dict(zip(AXES, shape)),
    "bytes": parts,
    "state_bytes": sum(parts.values()),
    "usable_bytes": usable,
    "fits": None if usable is None else sum(parts.values()) <= usable,
  }


def as_text(sizes: dict) -> str:
  """The same as a readable page."""
  ratio = sizes["flops_per_token"] / sizes["flops_per_token_no_memory"]
  lines = [
    f"anchor parameters          {sizes['anchor_params']:>18,}   {_gb(sizes['anchor_bytes_bfloat16'])} in bfloat16",
    f"fetched parameters         {sizes['fetched_params']:>18,}   {_gb(sizes['fetched_bytes_bfloat16'])} per sequence",
    f"bank parameters            {sizes['bank_params']:>18,}   {_gb(sizes['bank_bytes_bfloat16'])} in bfloat16"
    " (generic memory not counted)",
    f"forward FLOPs per token    {sizes['flops_per_token']:>18,}   at context length {sizes['context_length']}",
    f"  without memory           {sizes['flops_per_token_no_memory']:>18,}   ratio {ratio:.3f}; training costs 3x",
  ]
  training = sizes["training"]
  lines.append(
    f"training tokens            {training['tokens']:>18,}   {training['flops']:.3g} FLOPs,"
    f" {training['flops_per_token']:,} per token"
  )
  if sizes["levels"]:
    lines.append("")
    lines.append("level  clusters   rows   block parameters   level parameters   bfloat16    float32 + AdamW moments")
    lines += [
      f"{level['level']:>5}  {level['clusters']:>8,}  {level['rows']:>5}  {level['block_params']:>17,}"
      f"  {level['params']:>17,}  {_gb(level['bytes_bfloat16'])}   {_gb(level['bytes_training'])}"
      for level in sizes["levels"]
    ]
  if "device" in sizes:
    device = sizes["device"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in device["mesh"].items())
    lines += ["", f"on each of {device['devices']} devices (mesh {mesh})"]
    lines += [f"  {name:<25}{_gb(count)}" for name, count in device["bytes"].items()]
    usable = device["usable_bytes"]
    of = "" if usable is None else f" of {_gb(usable).strip()} that a program may use"
    of += ": DOES NOT FIT" if device["fits"] is False else ""
    lines.append(f"  {'together':<25}{_gb(device['state_bytes'])}{of}; compile_pod tells what a step adds")
  return "\n".join(lines)


def _gb(count: int) -> str:
  return f"{count / 1e9:>7.3f} GB"
