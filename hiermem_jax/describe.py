r"""Prints the arithmetic of a run without touching a device.

  python -m hiermem_jax.describe --gin_file=gin/runs/a2.gin [--topology=v5e:16x16 [--num_slices=2]] [--json]

Parameters of the anchor, of what a sequence fetches and of the bank; forward FLOPs per token with and without memory;
bytes per level of the bank in bfloat16 and in float32 with AdamW's two moments; tokens and FLOPs of the whole training;
and, for a TPU topology or for a number
of devices (--gin_bindings="describe.devices = 8"), what each device holds of parameters and optimizer state. What a
step needs beyond that, `compile_pod` tells.
"""

import dataclasses
import json

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, MemoryConfig
from hiermem_jax.parallel.mesh import AXES, MeshConfig
from hiermem_jax.training.optimizer import OptimizerConfig


def describe(
  *,
  as_json: bool = False,
  context_length: int = 2048,
  topology: str | None = None,
  num_slices: int | None = None,
  devices: int | None = None,
) -> None:
  """Prints the sizes bound to `train.anchor` and `train.memory`, as text or JSON.

  Args:
    as_json: print JSON.
    context_length: positions that the attention FLOPs are averaged over.
    topology: TPU slice to lay the state out on, e.g. "v5e:16x16".
    num_slices: slices of it; as `MeshConfig.slices` says where not given, else 1.
    devices: the same for any other devices.

  Raises:
    InputError: nothing to describe is bound, there is no such topology, or the state cannot be split over it.
  """
  from hiermem_jax import configuration

  anchor = configuration.bound_argument("train", "anchor")
  if anchor is None:
    raise InputError("train.anchor is not bound: name a run with --gin_file, e.g. gin/runs/a2.gin")
  memory = configuration.bound_argument("train", "memory")
  sizes = arithmetic(anchor, memory, context_length)
  training = {name: configuration.bound_argument("train", name) for name in ("steps", "batch_size", "frozen_anchor")}
  if training["steps"] and training["batch_size"]:
    pack = configuration.bound_argument("prepare", "pack")
    tokens = training["steps"] * training["batch_size"] * max(pack.lengths)
    sizes["training"] = whole_training(anchor, memory, tokens, context_length, training["frozen_anchor"])
  if topology is not None or devices is not None:
    names = ("optimizer", "steps", "batch_size", "mesh", "frozen_anchor")
    run = {name: configuration.bound_argument("train", name) for name in names}
    if missing := [f"train.{name}" for name, value in run.items() if value is None]:
      raise InputError(f"{', '.join(missing)}: not bound, and the layout on devices depends on it; name a whole run")
    sizes["device"] = per_device(anchor, memory, **run, topology=topology, num_slices=num_slices, devices=devices)
  print(json.dumps(sizes, indent=2) if as_json else as_text(sizes))


def arithmetic(anchor: AnchorConfig, memory: MemoryConfig | None, context_length: int) -> dict:
  """Sizes of a run (paper, Section 2.1 and Tables 1, 4-8). FLOPs are forward only; training costs three times them."""
  plain = anchor.flops_per_token(context_length)
  levels = [
    {
      "level": level,
      "clusters": memory.clusters(level),
      "rows": memory.rows[level - 1],
      "block_params": memory.block_params(anchor, level),
      "params": memory.level_params(anchor, level),
      "bytes_bfloat16": 2 * memory.level_params(anchor, level),
      "bytes_training": 12 * memory.level_params(anchor, level),
    }
    for level in (memory.levels if memory else ())
  ]
  return {
    "anchor_params": anchor.params,
    "fetched_params": memory.fetched_params(anchor) if memory else 0,
    "bank_params": memory.bank_params(anchor) if memory else 0,
    "flops_per_token": plain + (memory.flops_per_token(anchor) if memory else 0),
    "flops_per_token_no_memory": plain,
    "context_length": context_length,
    "anchor_bytes_bfloat16": 2 * anchor.params,
    "fetched_bytes_bfloat16": 2 * memory.fetched_params(anchor) if memory else 0,
    "bank_bytes_bfloat16": 2 * memory.bank_params(anchor) if memory else 0,
    "levels": levels,
  }


def whole_training(
  anchor: AnchorConfig, memory: MemoryConfig | None, tokens: int, context_length: int, frozen_anchor: bool
) -> dict:
  """Model FLOPs of a whole training, forward and backward; `context_length` is the mean of its sequences."""
  from hiermem_jax.training.recorder import training_flops

  per_token = training_flops(anchor, memory, frozen_anchor=frozen_anchor)(context_length)
  return {"tokens": tokens, "flops_per_token": per_token, "flops": tokens * per_token}


def per_device(
  anchor: AnchorConfig,
  memory: MemoryConfig | None,
  *,
  optimizer: OptimizerConfig,
  steps: int,
  batch_size: int,
  mesh: MeshConfig,
  frozen_anchor: bool,
  topology: str | None,
  num_slices: int | None,
  devices: int | None,
) -> dict:
  """What one device of a mesh holds of a run's state, bytes; see `describe` for the arguments."""
  from hiermem_jax.parallel.mesh import abstract_mesh
  from hiermem_jax.pod.topology import GIB, parse_topology
  from hiermem_jax.training.program import abstract_train_state, bytes_per_device

  slices, usable = num_slices or mesh.slices or 1, None
  if topology is not None:
    pod = parse_topology(topology, slices)
    devices, usable = pod.devices_per_slice * slices, int(pod.chip.usable_gib * GIB)
  shape = dataclasses.replace(mesh, slices=slices).shape(devices)
  transformation = optimizer.build(steps, memory, batch_size, frozen_anchor=frozen_anchor)
  state = abstract_train_state(anchor, memory, transformation, abstract_mesh(shape), mesh.rules)
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
  if "training" in sizes:
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
    lines.append(f"  {'together':<25}{_gb(device['state_bytes'])}{of}; compile_pod tells what a step adds")
  return "\n".join(lines)


def _gb(count: int) -> str:
  return f"{count / 1e9:>7.3f} GB"


if __name__ == "__main__":
  from hiermem_jax import cli

  cli.main("describe")
