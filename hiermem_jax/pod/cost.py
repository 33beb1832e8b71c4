"""FLOPs that a compiled step computes and bytes that it moves through HBM, every iteration of its loops counted.

`jax.stages.Compiled.cost_analysis()` counts the body of a loop once, however often it runs: of a model that scans its
layers it sees one. The counts here are taken from the same text as the collectives, with the loops' trip counts.

Bytes of HBM are those of the arrays that an instruction reads and writes, with the padding of their tiles. Arrays that
the compiler keeps in on-chip memory cost nothing; their way there and back costs what HBM has of it. What a kernel
reads more than once is counted once.
"""

import dataclasses
import math
import re
from collections import defaultdict

import numpy as np

from hiermem_jax.pod.hlo import Array, Computation, Instruction, Module, matched
from hiermem_jax.pod.tensor_names import Names, scope_name

# These touch no data, or (for loops and calls) others do it for them.
_FREE = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
  *("partition-id", "replica-id", "opt-barrier", "iota", "async-start", "async-update", "async-done"),
  *("send", "send-done", "recv", "recv-done", "add-dependency", "domain"),
}
# In a fusion: hands an operand on. What an asynchronous collective moves through HBM meanwhile is left out.
_PASSING = ("tuple", "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "custom-call")


@dataclasses.dataclass(frozen=True)
class Consumer:
  """Instructions of one kind that read or write HBM, of one device and step."""

  name: str  # where they belong, e.g. "layers/attention gradient" (see `tensor_names`), or a kernel's name
  kind: str  # the primitive, "kernel", or "copy" for ways to and from on-chip memory
  instructions: int
  bytes: float


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one device and step.

  Attributes:
    flops: of matrix products and convolutions, recomputation included; everything else is small beside them.
    kernels: custom kernels that run, whose FLOPs the text does not tell.
    consumers: what reads and writes HBM, largest first.
  """

  flops: float
  kernels: int
  consumers: tuple[Consumer, ...]

  @property
  def hbm_bytes(self) -> float:
    """Bytes read and written, all consumers together."""
    return sum(consumer.bytes for consumer in self.consumers)


def cost(text: str) -> Cost:
  """Counts a compiled program.

  Raises:
    ValueError: a loop that multiplies matrices has no number of iterations that can be told.
  """
  module = Module(text)
  names = Names(module)
  flops = kernels = 0
  consumers: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
  for computation, times in module.executions():
    for instruction in module.computations[computation].values():
      products = _flops(module, computation, instruction)
      if products and times is None:
        raise ValueError(f"{instruction.name} in {computation}: the loop around it has no known number of iterations")
      flops += products * (times or 1)
      kernels += (times or 1) * ("tpu_custom_call" in instruction.attributes)
      if size := _hbm_bytes(module, computation, instruction):
        found = consumers[_name(names, computation, instruction)]
        found[0] += times or 1
        found[1] += size * (times or 1)
  listed = [Consumer(*key, int(count), size) for key, (count, size) in consumers.items()]
  return Cost(flops, kernels, tuple(sorted(listed, key=lambda consumer: -consumer.bytes)))


def _name(names: Names, computation: str, instruction: Instruction) -> tuple[str, str]:
  """Name and kind of a consumer."""
  scope = scope_name(instruction.op_name)
  if "tpu_custom_call" in instruction.attributes:
    return instruction.name.split(".")[0], "kernel"
  if instruction.opcode in ("copy-start", "slice-start", "copy"):
    kind = "copy"
  else:
    kind = instruction.op_name.split("/")[-1] if scope else instruction.opcode.removesuffix("-start")
  if not scope and instruction.operands:
    scope = names.of(computation, instruction, instruction.operands[0])
  return scope, kind


def _flops(module: Module, computation: str, instruction: Instruction) -> int:
  if instruction.opcode == "fusion":
    return sum(_flops(module, instruction.called, inner) for inner in module.computations[instruction.called].values())
  scope = module.computations[computation]
  if instruction.opcode == "dot":
    left = scope[instruction.operands[0]].arrays[0]
    contracted = matched(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1]
    depth = math.prod(left.dims[int(axis)] for axis in contracted.split(",") if axis)
    return 2 * instruction.arrays[0].elements * depth
  if instruction.opcode == "convolution":
    left, right = (scope[name].arrays[0] for name in instruction.operands[:2])
    return _convolution_flops(instruction, left, right)
  return 0


def _convolution_flops(instruction: Instruction, left: Array, right: Array) -> int:
  """2 x batch x input features x output features x pairs of a window position and an input position that exists.

  The TPU compiler writes every matrix product as a convolution, batched ones with dilation and padding.
  """
  labels = matched(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
  sides = [dict(zip(label, array.dims)) for label, array in zip(labels.groups(), (left, right, instruction.arrays[0]))]
  groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
  count = 2 * sides[0]["b"] * sides[1]["i"] * sides[2]["f"] // int(groups[1] if groups else 1)
  settings = re.search(r"window=\{([^}]*)\}", instruction.attributes)
  window = dict(re.findall(r"(\w+)=([\w\-]+)", settings[1])) if settings else {}
  for position, axis in enumerate(sorted(label for label in sides[0] if label.isdigit())):

    def setting(name, default, position=position):
      return [int(number) for number in window[name].split("x")[position].split("_")] if name in window else default

    (size,), (stride,), low = setting("size", [1]), setting("stride", [1]), setting("pad", [0])[0]
    (spread,), (holes,) = setting("rhs_dilate", [1]), setting("lhs_dilate", [1])
    where = np.add.outer(np.arange(sides[2][axis]) * stride - low, np.arange(size) * spread)
    count *= int(((where >= 0) & (where % holes == 0) & (where < sides[0][axis] * holes)).sum())
  return count


def _hbm_bytes(module: Module, computation: str, instruction: Instruction) -> int:
  scope = module.computations[computation]
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith("-done"):
    return 0
  if opcode == "custom-call" and re.search(r"AllocateBuffer|ConcatBitcast|AssumeGather", instruction.attributes):
    return 0
  operands = [scope[name].arrays for name in instruction.operands]
  if opcode == "slice-start":  # its result lists the whole operand, too
    return _in_hbm(instruction.arrays[1:2]) + instruction.arrays[1].bytes * bool(_in_hbm(operands[0]))
  if opcode == "copy-start":  # its result lists destination and source
    return _in_hbm(instruction.arrays[:2])
  if opcode.endswith("-start"):
    return 2 * sum(_in_hbm(arrays) for arrays in operands)
  if opcode != "fusion":
    read, written = _touched(instruction, scope)
    return sum(_limited(arrays, limit) for arrays, limit in zip(operands, read)) + _limited(instruction.arrays, written)
  inside = [_read_inside(module, instruction.called, number) for number in range(len(operands))]
  results = _written_inside(module, instruction.called, module.root(instruction.called))
  return sum(_limited(arrays, limit) for arrays, limit in zip(operands, inside)) + sum(
    _limited((array,), limit) for array, limit in zip(instruction.arrays, results)
  )


def _in_hbm(arrays) -> int:
  return sum(array.bytes for array in arrays if array.space == 0)


def _limited(arrays, limit: int | None) -> int:
  return _in_hbm(arrays) if limit is None else min(_in_hbm(arrays), limit)


def _touched(instruction: Instruction, scope: Computation) -> tuple[list[int | None], int | None]:
  """Bytes that an instruction reads of each operand and writes of its result; None where it touches all of them."""
  read: list[int | None] = [None] * len(instruction.operands)
  size = sum(array.bytes for array in instruction.arrays)
  if instruction.opcode in ("dynamic-slice", "slice", "gather"):
    read[0] = size
  elif instruction.opcode in ("dynamic-update-slice", "scatter"):  # in place
    update = scope[instruction.operands[1 if instruction.opcode == "dynamic-update-slice" else 2]].arrays[0].bytes
    read[0] = 0 if instruction.opcode == "dynamic-update-slice" else update
    return read, update
  return read, None


def _read_inside(module: Module, fused: str, number: int) -> int | None:
  """Bytes that a fusion reads of its operand `number`; None: all of it."""
  inside = module.computations[fused]
  (name,) = (i.name for i in inside.values() if i.opcode == "parameter" and int(i.arguments) == number)
  return _read_of(module, fused, name)


def _read_of(module: Module, fused: str, name: str) -> int | None:
  inside = module.computations[fused]
  if inside[name].is_root:  # a fusion within a fusion that only renames it; read by whatever follows
    return None
  total = 0
  for instruction in inside.values():
    for position, operand in enumerate(instruction.operands):
      if operand != name or instruction.opcode in _PASSING:
        continue
      if instruction.opcode == "bitcast":
        part = _read_of(module, fused, instruction.name)
      elif instruction.opcode == "fusion":
        part = _read_inside(module, instruction.called, position)
      else:
        part = _touched(instruction, inside)[0][position]
      if part is None:
        return None
      total += part
  return total


def _written_inside(module: Module, fused: str, result: Instruction) -> list[int | None]:
  """Bytes that a fusion writes of each of its results; None: all of it."""
  inside = module.computations[fused]
  if result.opcode == "tuple":
    return [limit for name in result.operands for limit in _written_inside(module, fused, inside[name])]
  if result.opcode == "bitcast":
    return _written_inside(module, fused, inside[result.operands[0]])
  if result.opcode == "fusion":
    return _written_inside(module, result.called, module.root(result.called))
  if result.opcode == "parameter" or result.opcode in _PASSING:
    return [0] * len(result.arrays)
  return [_touched(result, inside)[1]] * len(result.arrays)
