"""What a compiled training step needs of a TPU pod: memory, FLOPs, collectives, and which of them bounds its time."""

from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from hiermem_jax import compilation_cache
from hiermem_jax.models.bank import table_shapes
from hiermem_jax.models.config import ModelConfig
from hiermem_jax.parallel.layout import bytes_per_device
from hiermem_jax.parallel.mesh import CONTEXT_AXIS, DATA_AXIS, MODEL_AXIS, REPLICA_AXIS
from hiermem_jax.pod.collectives import Collective, collectives
from hiermem_jax.pod.cost import cost
from hiermem_jax.pod.least import least_bytes
from hiermem_jax.pod.topology import GIB, Topology, out_of_memory

_LARGEST = 10  # consumers of HBM bytes that a report lists


class StepProgram(Protocol):
  """What this module needs of a training program, e.g. of `training.program.Program`.

  Attributes:
    model: shapes of the anchor and of the memory.
    mesh: devices of the topology.
    batch_size: sequences of a global batch.
    abstract_state: shapes, types and shardings of the state; has `params` and `opt_state`.
  """

  @property
  def model(self) -> ModelConfig:
    """Shapes of the anchor and of the memory."""

  @property
  def mesh(self) -> Mesh:
    """Devices of the topology."""

  @property
  def batch_size(self) -> int:
    """Sequences of a global batch."""

  @property
  def microbatches(self) -> int:
    """Parts that a device's sequences are split into."""

  @property
  def abstract_state(self) -> Any:
    """Shapes, types and shardings of the state; has `params` and `opt_state`."""

  def abstract_batch(self, length: int) -> Any:
    """Shapes, types and shardings of a batch of sequences of `length` tokens."""

  def lower(self, length: int) -> jax.stages.Lowered:
    """The step lowered for abstract arguments, which needs no device."""


def pod_report(program: StepProgram, *, topology: Topology, length: int) -> dict:
  """Compiles a program's step and reports on it; all sizes are bytes per device, all counts per device and step.

  Args:
    program: on a mesh of the topology's devices.
    topology: what to compile for.
    length: tokens of a sequence.

  Returns:
    JSON values. Where the step does not fit, "fits" is False, "reason" says by how much, and "remedies" says what would
    make it fit; the values that only a compiled step can tell are then missing.
  """
  report: dict[str, Any] = {
    "topology": topology.name,
    "slices": topology.slices,
    "devices": program.mesh.size,
    "mesh": dict(program.mesh.shape),
    "batch_size": program.batch_size,
    "microbatches": program.microbatches,
    "length": length,
  }
  compiled, report["hbm"] = _compile(program, topology, length)
  report["fits"] = compiled is not None and report["hbm"]["peak"] <= report["hbm"]["usable"]
  report["reason"] = None if report["fits"] else _reason(report, program)
  report["remedies"] = [] if report["fits"] else remedies(report, program.model)
  if compiled is not None:
    report |= _traffic(compiled, report, program, topology)
  return report


def _compile(
  program: StepProgram, topology: Topology, length: int
) -> tuple[jax.stages.Compiled | None, dict[str, int]]:
  """The compiled step, None when it does not fit, and its bytes of HBM on each device."""
  chip = topology.chip
  arguments = bytes_per_device((program.abstract_state, program.abstract_batch(length)))
  hbm = {"arguments": arguments, "temporaries": 0, "peak": arguments, "usable": int(chip.usable_gib * GIB)}
  hbm["published"] = int(chip.hbm_gib * GIB) // chip.devices
  if arguments > hbm["usable"]:  # no need to ask the compiler, which may take very long over such arrays
    return None, hbm
  try:
    with compilation_cache.bypassed():
      compiled = program.lower(length).compile()
  except jax.errors.JaxRuntimeError as error:
    if (sizes := out_of_memory(error)) is None:
      raise
    needed, available = map(int, sizes)
    return None, hbm | {"temporaries": needed - arguments, "peak": needed, "usable": available}
  stats: Any = compiled.memory_analysis()
  arguments = stats.argument_size_in_bytes
  fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes  # outputs that reuse no argument
  temporaries = stats.temp_size_in_bytes + fresh
  return compiled, hbm | {"arguments": arguments, "temporaries": temporaries, "peak": arguments + temporaries}


def _reason(report: dict, program: StepProgram) -> str:
  """One line that says what does not fit."""
  hbm, devices = report["hbm"], report["devices"]
  limit = f"of each of {devices} devices, which give a program {hbm['usable'] / GIB:.2f} GiB"
  if hbm["arguments"] <= hbm["usable"]:
    return f"the step needs {hbm['peak'] / GIB:.2f} GiB {limit}"
  leaves = jax.tree_util.tree_leaves_with_path(program.abstract_state.params)
  path, largest = max(leaves, key=lambda leaf: bytes_per_device(leaf[1]))
  name = "/".join(key.key for key in path)
  return (
    f"parameters and optimizer state take {hbm['arguments'] / GIB:.2f} GiB {limit}; the largest array is"
    f" {name} {largest.shape}, {bytes_per_device(largest) / GIB:.2f} GiB without its moments"
  )


def _traffic(compiled: jax.stages.Compiled, report: dict, program: StepProgram, topology: Topology) -> dict:
  text, analysis, model = compiled.as_text() or "", dict(compiled.cost_analysis() or {}), program.model
  found, counted = collectives(text, topology.devices_per_slice), cost(text)
  tokens = report["batch_size"] * report["length"] / report["devices"]
  model_flops = 3 * model.flops_per_token(report["length"]) * tokens
  sizes = {name: report[name] for name in ("batch_size", "length", "microbatches")}
  least = least_bytes(model, program.mesh, program.abstract_state, **sizes)
  flops = max(model_flops, counted.flops)
  # Of a step so small that all of it stays on the chip, the compiled one moves less than `least_bytes` says.
  seconds = step_seconds(flops, min(sum(least.values()), counted.hbm_bytes), found, topology)
  compiled_seconds = step_seconds(flops, counted.hbm_bytes, found, topology)
  slowest = max(seconds, key=lambda name: seconds[name])
  model_seconds = model_flops / (topology.chip.peak_flops / topology.chip.devices)
  return {
    "flops": {
      "model": model_flops,  # forward, and twice that backward
      "compiled": counted.flops,  # matrix products of the compiled step, recomputation included, kernels not
      "cost_analysis": analysis["flops"],  # as XLA counts: the body of a loop once
      "kernels": counted.kernels,  # custom kernels that run, whose FLOPs nothing of this counts
    },
    "hbm_traffic": {
      "counted": counted.hbm_bytes,  # as `cost` reads the compiled step
      "least": least,
      "ratio": counted.hbm_bytes / sum(least.values()),
      "largest": [vars(consumer) for consumer in counted.consumers[:_LARGEST]],
    },
    "collectives": [vars(collective) for collective in found],
    "exchange": exchange_ratios(found, report, model),
    "seconds": seconds,
    "bound_by": slowest,
    "mfu_bound": model_seconds / seconds[slowest],
    "compiled_hbm_seconds": compiled_seconds["hbm"],
    "mfu_in_turn": model_seconds / sum(compiled_seconds.values()),  # if nothing overlapped; see experiments/pods
  }


def step_seconds(flops: float, hbm_bytes: float, found: list[Collective], topology: Topology) -> dict[str, float]:
  """How long a step would take if it did nothing but compute, use HBM, use ICI, or use DCN, each at its published peak.

  A collective can keep all links of a chip busy and its bytes go to a neighbour, except in an all-to-all of a whole
  slice, whose bytes cross as many links as two chips are apart on average.
  """
  chip = topology.chip
  sent = {"ICI": 0.0, "DCN": 0.0}
  for collective in found:
    far = collective.kind == "all-to-all" and collective.group == topology.devices_per_slice
    sent[collective.network] += collective.bytes * (topology.mean_hops() if far else 1)
  return {
    "flops": flops / (chip.peak_flops / chip.devices),
    "hbm": hbm_bytes / (chip.hbm_bandwidth / chip.devices),
    "ici": sent["ICI"] / (chip.ici_bandwidth / chip.devices),
    "dcn": sent["DCN"] / (chip.dcn_bandwidth / chip.devices),
  }


def exchange_bounds(model: ModelConfig, batch_size: int, mesh: dict[str, int]) -> dict[tuple[str, str], float]:
  """The least that a device must receive for the fetch, and for the return of its gradient, per (tensor, network).

  A row of level k has W_k = R_k * L * P parameters, where P is `ModelConfig.unit_params` (3 * D for an FFN memory). A
  device wants M_k = min(sequences per device, C_k + 1) rows of level k, each once. It holds 1 / data of each already,
  so it must receive

    M_k * W_k / model * wire * (data - 1) / data bytes,     wire = bytes of `anchor.dtype`

  The gradient is the same the other way. Every slice has copies of the tables, so a fetch stays in its slice. Of the
  gradient, a device must receive one sum for each row of its part, W_k / (data * model), that another slice has
  touched:

    min((slices - 1) * batch / slices, C_k + 1) * W_k / (data * model) * wire bytes

  An all-gather of every slice's sums reaches this bound where the slices touch different rows.
  """
  slices, data, parts = mesh[REPLICA_AXIS], mesh[DATA_AXIS], mesh[MODEL_AXIS]
  wire = 2 if model.anchor.dtype == "bfloat16" else 4
  bounds = {}
  for name, (table_rows, row) in table_shapes(model).items():
    wanted = min(batch_size // (slices * data), table_rows)
    inside = wanted * row / parts * wire * (data - 1) / data
    bounds[f"fetch {name}", "ICI"] = bounds[f"push {name}", "ICI"] = inside
    if slices > 1:
      elsewhere = min((slices - 1) * batch_size // slices, table_rows)
      bounds[f"push {name}", "DCN"] = elsewhere * row / (data * parts) * wire
  return bounds


def exchange_ratios(found: list[Collective], report: dict, model: ModelConfig) -> list[dict]:
  """What the compiled step sends for fetch and push of every level, beside `exchange_bounds`."""
  if model.memory is None:
    return []
  rows = []
  for (tensor, network), bound in exchange_bounds(model, report["batch_size"], report["mesh"]).items():
    sent = sum(c.bytes for c in found if (c.tensor, c.network) == (tensor, network) and c.dtype.startswith(("f", "bf")))
    ratio = sent / bound if bound else None
    rows.append({"tensor": tensor, "network": network, "bytes": sent, "bound": bound, "ratio": ratio})
  return rows


def remedies(report: dict, model: ModelConfig) -> list[str]:
  """What would make a step fit, by arithmetic: the state and the batch are split over the devices of a slice."""
  hbm, mesh = report["hbm"], report["mesh"]
  context, model_parts, shards = mesh[CONTEXT_AXIS], mesh[MODEL_AXIS], mesh[REPLICA_AXIS] * mesh[DATA_AXIS]
  split = mesh[DATA_AXIS] * context * model_parts
  anchor, remaining, advice = model.anchor, hbm["usable"] - hbm["arguments"], []
  devices = split
  while devices * hbm["usable"] < split * hbm["peak"]:
    devices *= 2
  sequences, larger = devices // (context * model_parts) * mesh[REPLICA_AXIS], ""
  if sequences > report["batch_size"]:
    parts, larger = context * sequences // report["batch_size"], f", with train.batch_size = {sequences}"
    larger += "" if model.anchor.num_heads % (parts * model_parts) else f" or MeshConfig.context = {parts}"
  advice.append(f"more chips: a slice of about {devices} devices holds this state and batch{larger}")
  if remaining <= 0:
    if model.memory is not None:
      advice.append(
        "a smaller state: MemoryConfig.dtype = 'bfloat16', OptimizerConfig.bank_moment_dtype = 'bfloat16', or fewer"
        f" MemoryConfig.rows; the state alone exceeds the device by {-remaining / GIB:.2f} GiB"
      )
    return advice
  if anchor.remat != "full":
    advice.append(f"remat: AnchorConfig.remat = 'full' (now {anchor.remat!r})")
  if anchor.logits_chunk is None:
    advice.append("fewer logits at a time: AnchorConfig.logits_chunk = 256")
  if anchor.attention != "splash":
    advice.append("attention without its matrix: AnchorConfig.attention = 'splash'")
  per_shard = report["batch_size"] // shards
  if per_shard > 1:
    # A step that the compiler gave up on is counted after it had saved what it could, so less than in proportion fits.
    fitting = max(1, int(0.75 * per_shard * remaining / hbm["temporaries"]))
    advice.append(f"a smaller batch: train.batch_size = {fitting * shards} (now {report['batch_size']})")
  return advice
