"""The collectives of a compiled step: how often each runs, how many bytes it sends, and over which network.

Bytes are those that one device sends over the wire, for n bytes of operand and groups of g devices, with the best
algorithm for each kind:

  all-gather            n (g - 1)       every other member needs this device's part
  reduce-scatter        n (g - 1) / g   each other member's part of the sum
  all-reduce          2 n (g - 1) / g   a reduce-scatter and an all-gather of the result
  all-to-all            n (g - 1) / g   everything but the device's own part
  collective-permute    n               to one neighbour

A collective inside a loop counts once per iteration.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hiermem_jax.pod.hlo import Array, Instruction, Module, matched
from hiermem_jax.pod.tensor_names import Names, scope_name

_BYTES = {
  "all-gather": lambda n, g: n * (g - 1),
  "reduce-scatter": lambda n, g: n * (g - 1) / g,
  "all-reduce": lambda n, g: 2 * n * (g - 1) / g,
  "all-to-all": lambda n, g: n * (g - 1) / g,
  "collective-permute": lambda n, g: n,
}
_OPCODES = {kind + suffix: kind for kind in _BYTES for suffix in ("", "-start")} | {"ragged-all-to-all": "all-to-all"}
# How the TPU compiler names the transfers between slices, which it writes as sends to the host.
_MEGASCALE = {
  "ALL_GATHER": "all-gather",
  "REDUCE_SCATTER": "reduce-scatter",
  "ALL_REDUCE": "all-reduce",
  "ALL_TO_ALL": "all-to-all",
  "ONE_TO_ONE": "collective-permute",
}


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of one kind, element type, tensor and network."""

  kind: str
  dtype: str
  tensor: str  # readable name, e.g. "fetch level_2" (see `tensor_names`)
  network: str  # "ICI" inside a slice, "DCN" where the group spans slices
  count: int  # per device and step; one for every tensor where XLA has combined several
  bytes: float  # per device and step, all of them together
  group: int  # devices that take part; the largest, where they differ


def collectives(text: str, devices_per_slice: int | None = None) -> list[Collective]:
  """The collectives of a compiled program, largest first.

  Args:
    text: of the compiled program.
    devices_per_slice: of the machine, whose partitions are numbered slice by slice; None: all in one slice.

  Raises:
    ValueError: a loop with a collective inside has no count that can be told, or a replica group cannot be read.
  """
  module = Module(text)
  names = Names(module)
  started = _started(module)
  rows: dict[tuple[str, str, str, str], tuple[int, float, int]] = {}
  for computation, times in module.executions():
    for found in _found(module, names, started, computation, devices_per_slice or module.num_partitions):
      if times is None:
        raise ValueError(f"{found.kind} in {computation}: the loop around it has no known number of iterations")
      for array, name in found.tensors:
        key = (found.kind, array.dtype, name, found.network)
        count, size, group = rows.get(key, (0, 0.0, 0))
        size += times * _BYTES[found.kind](array.data_bytes, found.group)
        rows[key] = (count + times, size, max(group, found.group))
  result = [Collective(*key, count, size, group) for key, (count, size, group) in rows.items() if group > 1]
  return sorted(result, key=lambda c: (-c.bytes, c.kind, c.tensor))


class _Found(NamedTuple):
  """One collective as one run of its computation performs it."""

  kind: str
  group: int
  network: str
  tensors: list[tuple[Array, str]]  # operands with their names


def _channel(instruction: Instruction) -> str | None:
  return matched(r"channel_id=(\d+)|$", instruction.attributes)[1]


def _starts(module: Module, fusion: Instruction) -> bool:
  """Whether a fusion begins an asynchronous collective."""
  return any("AsyncCollectiveStart" in i.attributes for i in module.computations[fusion.called].values())


def _started(module: Module) -> set[str | None]:
  """Channels of the asynchronous collectives that some computation begins with a fusion."""
  fusions = (i for scope in module.computations.values() for i in scope.values() if i.opcode == "fusion")
  begun = (module.computations[fusion.called].values() for fusion in fusions if _starts(module, fusion))
  return {_channel(inner) for scope in begun for inner in scope if inner.opcode in _OPCODES}


def _found(
  module: Module, names: Names, begun: set[str | None], computation: str, devices_per_slice: int
) -> Iterator[_Found]:
  chains: dict[tuple, _Found] = {}
  starts: Counter = Counter()
  scope = module.computations[computation]
  for instruction in scope.values():
    if instruction.opcode in _OPCODES:
      tensors = [
        (array, names.of(computation, instruction, operand))
        for operand in instruction.operands
        for array in scope[operand].arrays
      ]
      yield _Found(_OPCODES[instruction.opcode], *_group(instruction, module, devices_per_slice), tensors)
    elif instruction.opcode == "send" and "megascale" in instruction.attributes:
      yield _between_slices(names, computation, instruction)
    elif instruction.opcode == "fusion":
      for inner, found in _fused(module, names, computation, instruction, devices_per_slice):
        # The TPU compiler spreads one asynchronous collective over a chain of fusions that all quote it; it is
        # performed as often as the chain is started. One that is in no chain is performed by its fusion.
        chain = re.search(r'chain_id="(\d+)"', inner.attributes)
        if chain is None:
          yield found
          continue
        key = chain[1], found.kind, _channel(inner)
        started = _starts(module, instruction)
        starts[key] += started
        if started or key not in chains:
          chains[key] = found
  for key, found in chains.items():
    # A chain may go on in a loop that comes after its start, which is where it is counted.
    for _ in range(starts[key] or key[2] not in begun):
      yield found


def _fused(module, names, computation, fusion, devices_per_slice) -> Iterator[tuple[Instruction, _Found]]:
  """The collectives inside a fusion."""
  fused = module.computations[fusion.called]
  for inner in fused.values():
    if inner.opcode not in _OPCODES:
      continue
    kind = _OPCODES[inner.opcode]
    if kind == "all-reduce" and module.root(fusion.called).opcode == "dynamic-slice":
      kind = "reduce-scatter"  # each device keeps its part only
    tensors = []
    for operand in inner.operands:
      source = fused[operand]
      outside = fusion.operands[int(source.arguments)] if source.opcode == "parameter" else fusion.operands[0]
      name = scope_name(inner.op_name) or names.of(computation, fusion, outside)
      tensors += [(array, name) for array in source.arrays]
    yield inner, _Found(kind, *_group(inner, module, devices_per_slice), tensors)


def _between_slices(names: Names, computation: str, send: Instruction) -> _Found:
  """A transfer over DCN: its target is "{slices}x{devices}", lists of ids, or pairs."""
  transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)
  if not transfer or transfer[1] not in _MEGASCALE:
    raise ValueError(f"{send.name}: a transfer between slices of an unknown type {transfer and transfer[1]}")
  kind = _MEGASCALE[transfer[1]]
  target = matched(r'_xla_megascale_target="?\{+([^}]*)\}', send.attributes)[1]
  group = 2 if "->" in target else sum(_span(part) for part in target.split(","))
  name = names.of(computation, dataclasses.replace(send, operands=send.operands[:1]), send.operands[0])
  return _Found(kind, group, "DCN", [(send.arrays[0], name)])


def _span(part: str) -> int:
  """How many ids "5" or "5:7" names."""
  ends = part.split(":")
  return int(ends[-1]) - int(ends[0]) + 1


def _group(instruction: Instruction, module: Module, devices_per_slice: int) -> tuple[int, str]:
  """Size of a collective's groups, and the network they need.

  For several slices the TPU compiler writes a program for one of them, and what crosses is a transfer of its own.
  """
  groups = replica_groups(instruction.attributes, module.num_partitions)
  crosses = any(len({device // devices_per_slice for device in group}) > 1 for group in groups)
  return max(map(len, groups)), "DCN" if crosses else "ICI"


def replica_groups(attributes: str, partitions: int) -> list[list[int]]:
  """The groups of a collective, or the pairs of a permute, as lists of partition numbers.

  Reads all of XLA's notations: lists {{0,1},{2,3}}, iota [2,2]<=[2,2]T(1,0), and mesh axes
  mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b':(1)2}.
  """
  if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
    return [[int(i) for i in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
  if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
    return _iota(iota[2]).reshape(_numbers(iota[1])).tolist()
  if mesh := re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\(((?:[^()]|\([\d,]*\))*)\))? \{([^}]*)\}", attributes
  ):
    sizes = {part.split("=")[0]: int(part.split("=")[1]) for part in mesh[1].split(",")}
    order = mesh[2] or f"[{math.prod(sizes.values())}]"
    devices = _iota(order) if "[" in order else np.array(_numbers(order))
    return _along(devices.reshape(list(sizes.values())), list(sizes), mesh[3].split(",")).tolist()
  if lists := re.search(r"replica_groups=\{(\{[\d,{}]*\})?\}", attributes):
    if not lists[1]:
      return [list(range(partitions))]
    return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", lists[1])]
  raise ValueError(f"replica groups cannot be read: {attributes[:200]}")


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]


def _iota(text: str) -> np.ndarray:
  """The numbers 0..7 of "[4,2]T(1,0)" in that shape, transposed and flattened."""
  shape, transpose = matched(r"^\[([\d,]+)\](?:T\(([\d,]+)\))?$", text).groups()
  numbers = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
  return (numbers.transpose(_numbers(transpose)) if transpose else numbers).reshape(-1)


def _along(devices: np.ndarray, names: list[str], axes: list[str]) -> np.ndarray:
  """Groups of an array of devices along axes; "'a':(2)4" is the part of size 4 of axis a that has size 2 before it."""
  shape, chosen = [], {}
  for name, size in zip(names, devices.shape):
    parts = sorted((int(pre), int(n)) for pre, n in re.findall(rf"{re.escape(name)}:\((\d+)\)(\d+)", ",".join(axes)))
    if name in axes:
      parts = [(1, size)]
    before = 1
    for pre, n in parts:
      if pre > before:
        shape.append(pre // before)
      chosen[len(shape)] = n
      shape.append(n)
      before = pre * n
    if before < size:
      shape.append(size // before)
  devices = devices.reshape(shape)
  inside = list(chosen)
  rest = [axis for axis in range(len(shape)) if axis not in chosen]
  return devices.transpose(rest + inside).reshape(-1, math.prod(chosen.values()))
