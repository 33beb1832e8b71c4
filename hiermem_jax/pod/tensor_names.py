"""Readable names for the arrays of a compiled step: which weight, bank level or gradient a collective moves.

The compiler keeps jax's named scopes on most of what it was given and drops them from what it makes up (gathers of
weights, combined reductions, transfers between slices). Such an array is traced back: to the argument of the step that
it is a part of, or else to the nearest named computation that its values come from.
"""

import re
from collections import deque
from collections.abc import Iterator

from hiermem_jax.pod.hlo import Instruction, Module, matched

# Components of an op name that say how it came about and not where it belongs.
_NOISE = re.compile(
  r"while|body|cond|closed_call|checkpoint|rematted_computation|shard_map|scan|pjit|remat\d*|branch_\d+_fun"
  r"|jit\(.*\)|custom_[jv][vj]p_call\w*|Anchor|hidden|.*->.*"
)
_SCOPES = ("fetch", "push", "optimizer")
# Instructions that only move, slice or convert their first operand.
_MOVES = re.compile(
  r"copy(-start|-done)?|bitcast|convert|reshape|transpose|slice(-start|-done)?|dynamic-slice|opt-barrier|all-gather-done"
)
_DEPTH = 24


def scope_name(op_name: str) -> str:
  """A readable name from an op name; empty where the op name has no named scope.

  "jit(step)/jvp(Anchor)/while/body/closed_call/layers/attention/query/dot_general" is "layers/attention/query",
  "jit(step)/fetch/shard_map/level_2/all_to_all" is "fetch level_2"; a name from the backward pass ends in " gradient".
  """
  parts: list[str] = []
  for part in op_name.split("/")[1:-1]:  # without the jitted function and the primitive
    while wrapped := re.fullmatch(r"(?:jvp|transpose|vmap)\((.*)\)", part):
      part = wrapped[1]
    part = part.split(".")[0]
    if part and not _NOISE.fullmatch(part) and (not parts or parts[-1] != part):
      parts.append(part)
  for scope in _SCOPES:
    if scope in parts:
      return " ".join([scope, *parts[parts.index(scope) + 1 :]][:2])
  return "/".join(parts) + (" gradient" if parts and "transpose(" in op_name else "")


def _primitive_name(op_name: str) -> str:
  """A name for an operation outside all named scopes: its primitive. Empty where the operation only moves data."""
  primitive = op_name.split("/")[-1]
  if scope_name(op_name) or primitive not in ("dot_general", "scatter-add", "reduce_sum"):
    return ""
  return primitive + (" gradient" if "transpose(" in op_name else "")


def argument_name(op_name: str) -> str:
  r"""The name of an argument: "state.params[\'anchor\'][\'embed\'][\'embedding\']" is "embed/embedding"."""
  keys = re.findall(r"\[\\?'(\w+)\\?'\]", op_name)
  keys = [key for key in keys if key not in ("anchor", "kernel")]
  return "/".join(keys) or op_name


class Names:
  """Names the arrays of one module."""

  def __init__(self, module: Module):
    """Notes which loop runs which body, so that a value can be followed out of it."""
    self._module = module
    self._loops = {
      matched(r"body=%?([\w.\-]+)", instruction.attributes)[1]: (computation, instruction)
      for computation, body in module.computations.items()
      for instruction in body.values()
      if instruction.opcode == "while"
    }

  def of(self, computation: str, instruction: Instruction, operand: str) -> str:
    """The name of one operand of a collective (or of the fusion that performs it)."""
    own = scope_name(instruction.op_name) if len(instruction.operands) == 1 else ""
    if own.startswith(_SCOPES):
      return own
    array = self._module.computations[computation][operand].arrays
    shape = "[" + ",".join(map(str, array[0].dims if array else ())) + "]"
    if shape == "[]":
      return "scalars"
    if argument := self._argument(computation, operand):
      return argument
    if own:
      return own
    for source in (instruction, self._module.computations[computation][operand]):
      op_name = source.op_name if len(instruction.operands) == 1 or source is not instruction else ""
      if found := _primitive_name(op_name):
        return found + shape
    return self._origin(computation, operand) or shape

  def _argument(self, computation: str, name: str) -> str:
    """The step's argument that a value is a moved, sliced or converted part of; empty when it is none."""
    for _ in range(_DEPTH):
      instruction = self._module.computations[computation][name]
      if instruction.opcode == "parameter":
        return argument_name(instruction.op_name) if computation == self._module.entry else ""
      if _MOVES.fullmatch(instruction.opcode):
        name = instruction.operands[0]
      elif instruction.opcode == "dynamic-update-slice":  # an array of zeros, each device filling in its part
        name = instruction.operands[1]
      elif instruction.opcode == "custom-call" and "ConcatBitcast" in instruction.attributes:
        name = instruction.operands[0]
      elif instruction.opcode == "fusion" and self._only_moves(instruction):
        scope = self._module.computations[computation]
        name = max(instruction.operands, key=lambda operand: sum(a.bytes for a in scope[operand].arrays))
      elif instruction.opcode == "get-tuple-element":
        sources = list(self._elements(computation, instruction))
        if len(sources) != 1:
          return ""
        computation, name = sources[0]
      else:
        return ""
    return ""

  def _only_moves(self, fusion: Instruction) -> bool:
    """Whether a fusion does to its largest operand what `_MOVES` do; arithmetic on indices (integers) is welcome."""
    return all(
      _MOVES.fullmatch(i.opcode)
      or i.opcode in ("parameter", "constant", "broadcast", "select", "dynamic-update-slice")
      or not i.arrays[0].dtype.startswith(("f", "bf"))
      for i in self._module.computations[fusion.called].values()
    )

  def _elements(self, computation: str, element: Instruction) -> Iterator[tuple[str, str]]:
    """Where the value of a get-tuple-element comes from: into a loop, out of its result, through a tuple."""
    index = int(matched(r"index=(\d+)", element.attributes)[1])
    source = self._module.computations[computation][element.operands[0]]
    if source.opcode == "parameter" and computation in self._loops:
      outside, loop = self._loops[computation]
      unchanged = self._passes_through(computation, index)
      yield from self._tuple_element(outside, loop.operands[0], index)
      if not unchanged:
        yield from self._tuple_element(computation, self._module.root(computation).name, index)
    elif source.opcode == "while":
      body = matched(r"body=%?([\w.\-]+)", source.attributes)[1]
      if not self._passes_through(body, index):
        yield from self._tuple_element(body, self._module.root(body).name, index)
      yield from self._tuple_element(computation, source.operands[0], index)
    elif source.opcode == "tuple":
      yield computation, source.operands[index]
    elif source.opcode == "opt-barrier":
      yield from self._tuple_element(computation, source.operands[0], index)
    else:
      operands = source.operands
      yield from ((computation, o) for o in ([operands[index]] if len(operands) == len(source.arrays) else operands))

  def _tuple_element(self, computation: str, name: str, index: int) -> Iterator[tuple[str, str]]:
    instruction = self._module.computations[computation][name]
    if instruction.opcode == "tuple":
      yield computation, instruction.operands[index]

  def _passes_through(self, body: str, index: int) -> bool:
    """Whether a loop leaves element `index` of its tuple as it is."""
    scope, root = self._module.computations[body], self._module.root(body)
    if root.opcode != "tuple":
      return False
    value = scope[root.operands[index]]
    if value.opcode != "get-tuple-element" or scope[value.operands[0]].opcode != "parameter":
      return False
    return int(matched(r"index=(\d+)", value.attributes)[1]) == index

  def _origin(self, computation: str, name: str) -> str:
    """The name of the nearest computation that a value comes from."""
    queue, seen = deque([(computation, name, 0)]), {(computation, name)}
    while queue:
      computation, name, distance = queue.popleft()
      instruction = self._module.computations[computation][name]
      if instruction.op_name and instruction.opcode != "parameter":
        if found := scope_name(instruction.op_name):
          return found
        if found := _primitive_name(instruction.op_name):
          return found
      if distance == _DEPTH:
        continue
      if instruction.opcode == "get-tuple-element":
        sources = self._elements(computation, instruction)
      else:
        sources = ((computation, operand) for operand in instruction.operands)
      for source in sources:
        if source not in seen:
          seen.add(source)
          queue.append((*source, distance + 1))
    return ""
