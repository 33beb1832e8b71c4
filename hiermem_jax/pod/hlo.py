"""Reads the text of a compiled program (`jax.stages.Compiled.as_text()`): instructions, and how often each runs.

Understands what XLA prints for CPU and TPU: scheduled modules, fusions, asynchronous `-start` and `-done` pairs, and
layouts with tiles and memory spaces. What is counted from it is in `collectives` and `cost`.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

# Instructions that run other computations as part of the program's control flow, and the attributes that name them.
_CALLERS = {
  "while": r"body=%?([\w.\-]+)",
  "conditional": r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))",
  "call": r"(?:to_apply|calls)=%?([\w.\-]+)",
  "async-start": r"calls=%?([\w.\-]+)",
}
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*-> .*\{$")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\](\{[^{}]*\})?")


@dataclasses.dataclass(frozen=True)
class Array:
  """Type and layout of one array.

  Attributes:
    dtype: element type.
    dims: dimensions.
    space: the memory it lives in; 0: HBM, 1: on-chip vector memory.
    order: numbers of the dimensions, the one whose elements lie beside each other first; empty: the last one first.
    tiles: of the layout. The last dimensions in memory are cut into the first tile, and that into the second. A tile at
      an edge is as large as the others.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int = 0
  order: tuple[int, ...] = ()
  tiles: tuple[tuple[int, ...], ...] = ()

  @property
  def elements(self) -> int:
    """Number of elements."""
    return math.prod(self.dims)

  @property
  def data_bytes(self) -> int:
    """Size of the elements alone."""
    return self._bytes(self.elements)

  @property
  def bytes(self) -> int:
    """Size in memory, with what the tiles pad: bf16[4,100,32] in tiles of 8 x 128 takes as much as bf16[4,104,128]."""
    sizes = [self.dims[axis] for axis in reversed(self.order)] if self.order else list(self.dims)
    for tile in self.tiles:
      sizes = [1] * (len(tile) - len(sizes)) + sizes
      split = len(sizes) - len(tile)
      sizes = sizes[:split] + [-(-size // part) for size, part in zip(sizes[split:], tile)] + list(tile)
    return self._bytes(math.prod(sizes))

  def _bytes(self, elements: int) -> int:
    bits = 8 if self.dtype == "pred" else int((re.search(r"\d+", self.dtype) or ["0"])[0])
    return elements * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation. `arrays` are the results, tuples flattened; `operands` are names."""

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  arguments: str  # what stands between the parentheses: operands, or a constant's value
  attributes: str
  is_root: bool = False

  @property
  def op_name(self) -> str:
    """Path of named scopes that jax gave the instruction; empty when the compiler made it up."""
    found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
    return found[1] if found else ""

  @property
  def called(self) -> str:
    """The fused computation of a fusion."""
    return matched(r"calls=%?([\w.\-]+)", self.attributes)[1]


Computation = dict[str, Instruction]


def matched(pattern: str, text: str) -> re.Match[str]:
  """The first match of a pattern in a text. Raises ValueError where there is none."""
  found = re.search(pattern, text)
  if found is None:
    raise ValueError(f"nothing matches {pattern} in {text[:200]!r}")
  return found


class Module:
  """A parsed program."""

  def __init__(self, text: str):
    """Parses `text`; raises ValueError when it is not the text of an HLO module."""
    self.computations: dict[str, Computation] = {}
    self.entry = ""
    found = re.search(r"num_partitions=(\d+)", text.split("\n", 1)[0])
    self.num_partitions = int(found[1]) if found else 1
    current: Computation = {}
    for line in text.splitlines():
      if header := _COMPUTATION.match(line):
        current = self.computations.setdefault(header[2], {})
        self.entry = header[2] if header[1] else self.entry
      elif instruction := _parse(line):
        current[instruction.name] = instruction
    if not self.entry:
      raise ValueError("not the text of an HLO module: it has no ENTRY computation")

  def root(self, computation: str) -> Instruction:
    """The instruction whose result the computation returns."""
    return next(i for i in self.computations[computation].values() if i.is_root)

  def executions(self) -> Iterator[tuple[str, int | None]]:
    """Every computation of the control flow, with the number of times that one step runs it.

    The number is None inside a loop whose number of iterations is not known.

    Fused computations are not among them: they belong to the instruction that calls them. Each branch of a conditional
    counts as taken.
    """
    counts: dict[str, int | None] = defaultdict(int)
    order = []

    def visit(name: str, times: int | None):
      if name not in counts:
        order.append(name)
      before = counts[name]
      counts[name] = None if times is None or before is None else before + times
      for instruction in self.computations[name].values():
        if instruction.opcode in _CALLERS:
          trips = self.trip_count(name, instruction) if instruction.opcode == "while" else 1
          for match in re.finditer(_CALLERS[instruction.opcode], instruction.attributes):
            for callee in re.findall(r"[\w.\-]+", ",".join(group for group in match.groups() if group)):
              visit(callee, None if times is None or trips is None else times * trips)

    visit(self.entry, 1)
    return ((name, counts[name]) for name in order)

  def trip_count(self, computation: str, loop: Instruction) -> int | None:
    """How often a `while` of `computation` runs its body; None where that cannot be told.

    As the compiler has noted it, or else from a counter that starts at a constant, grows by a constant in the body and
    is compared with a constant in the condition.
    """
    if known := re.search(r'known_trip_count":?=?\{"?n"?[:=]"?(\d+)', loop.attributes):
      return int(known[1])
    condition, body = (matched(rf"{key}=%?([\w.\-]+)", loop.attributes)[1] for key in ("condition", "body"))
    test = self.root(condition)
    scope = condition
    if test.opcode == "fusion":  # the comparison alone; its parameters are the fusion's operands
      scope, outer = test.called, test
      test = self.root(scope)
      operands = tuple(self._outside(scope, name, outer) for name in test.operands)
    else:
      operands = test.operands
    if test.opcode != "compare":
      return None
    index, limit = self._element(condition, operands[0]), self._constant(condition, operands[1])
    if limit is None and (carried := self._element(condition, operands[1])) is not None:
      limit = self._initial(computation, loop, carried)
    if index is None or limit is None or (start := self._initial(computation, loop, index)) is None:
      return None
    step = self._step(body, index)
    if not step:
      return None
    direction = matched(r"direction=(\w+)", test.attributes)[1]
    if direction not in ("LT", "LE", "GT", "GE", "NE"):
      return None
    distance = (limit - start) * (1 if step > 0 else -1) + (1 if direction in ("LE", "GE") else 0)
    return max(0, -(-distance // abs(step)))

  def _outside(self, fused: str, name: str, fusion: Instruction) -> str:
    """The operand of `fusion` that a parameter of its computation stands for; other names stay."""
    instruction = self._source(fused, name)
    return fusion.operands[int(instruction.arguments)] if instruction.opcode == "parameter" else name

  def _source(self, computation: str, name: str) -> Instruction:
    """The instruction that made a value, through those that only move it."""
    instruction = self.computations[computation][name]
    while instruction.opcode in ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"):
      instruction = self.computations[computation][instruction.operands[0]]
    return instruction

  def _constant(self, computation: str, name: str) -> int | None:
    if name not in self.computations[computation]:
      return next((self._constant(c, name) for c, body in self.computations.items() if name in body), None)
    instruction = self._source(computation, name)
    value = instruction.arguments.strip()
    return int(value) if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", value) else None

  def _element(self, computation: str, name: str) -> int | None:
    """Which element of the loop's tuple a value is."""
    if name not in self.computations[computation]:
      return None
    instruction = self._source(computation, name)
    if instruction.opcode != "get-tuple-element":
      return None
    return int(matched(r"index=(\d+)", instruction.attributes)[1])

  def _initial(self, computation: str, loop: Instruction, index: int) -> int | None:
    start = self._source(computation, loop.operands[0])
    return self._constant(computation, start.operands[index]) if start.opcode == "tuple" else None

  def _step(self, body: str, index: int) -> int | None:
    """What the body adds to element `index` of the loop's tuple."""
    result = self.root(body)
    if result.opcode != "tuple":
      return None
    added, scope, fusion = self._source(body, result.operands[index]), body, None
    if added.opcode == "fusion":
      scope, fusion = added.called, added
      added = self.root(scope)
    if added.opcode not in ("add", "subtract"):
      return None
    step = None
    for name in added.operands:
      value = self._constant(scope, name)
      if value is None and fusion is not None and (outer := self._outside(scope, name, fusion)) != name:
        value = self._constant(body, outer)
      step = value if value is not None else step
    return -step if step is not None and added.opcode == "subtract" else step


def _parse(line: str) -> Instruction | None:
  head = _INSTRUCTION.match(line)
  if not head:
    return None
  start = head.end()
  end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
  types = line[start:end]
  opening = line.index("(", end)
  opcode = line[end:opening].strip()
  close = _closing(line, opening)
  arguments = line[opening + 1 : close - 1]
  arrays = tuple(Array(dtype, _numbers(dims), *_layout(layout)) for dtype, dims, layout in _ARRAY.findall(types))
  operands = () if opcode in ("constant", "parameter") else tuple(re.findall(r"%([\w.\-]+)", arguments))
  return Instruction(head[2], opcode, arrays, operands, arguments, line[close:], bool(head[1]))


def _layout(text: str) -> tuple[int, tuple[int, ...], tuple[tuple[int, ...], ...]]:
  """Memory space, order and tiles of "{1,0:T(8,128)(2,1)S(1)}"."""
  space = re.search(r"S\((\d+)\)", text)
  tiles = re.search(r"T((?:\([\d,]+\))+)", text)
  return (
    int(space[1]) if space else 0,
    _numbers(text.strip("{}").split(":")[0]),
    tuple(_numbers(tile) for tile in re.findall(r"\(([\d,]+)\)", tiles[1])) if tiles else (),
  )


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(number) for number in text.split(",") if number)


def _closing(line: str, opening: int) -> int:
  """Position after the parenthesis that closes the one at `opening`."""
  depth = 0
  for position in range(opening, len(line)):
    depth += (line[position] == "(") - (line[position] == ")")
    if depth == 0:
      return position + 1
  raise ValueError(f"unbalanced parentheses in {line[:80]!r}")
