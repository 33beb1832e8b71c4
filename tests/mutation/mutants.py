"""Which mutants there are: operators of cosmic-ray and three of our own, without what no test should look at.

A mutant is one small change of one place. Left out are type annotations, decorators, everything inside a `raise` or a
call of `logging` (wording), `if __name__ == "__main__"`, aliases of types, and the arguments named in `_UNSEEN`.
"""

import ast
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator

import parso
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator

# Replacements that make another number or another truth of the same type; of `a + b`, `a >> b` would only be an error.
_BINARY = "Add_Sub Sub_Add Mul_Div Mul_Add Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul RShift_LShift LShift_RShift"
_BINARY += " BitOr_BitAnd BitAnd_BitOr BitXor_BitOr"
_COMPARISON = "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is"
_OTHERS = (
  "AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd ReplaceBreakWithContinue"
  " ReplaceContinueWithBreak ExceptionReplacer NumberReplacer ZeroIterationForLoop ReplaceUnaryOperator_Delete_USub"
  " ReplaceUnaryOperator_Delete_Not ReplaceUnaryOperator_Delete_Invert"
)
_UNSEEN = ("encoding", "check")  # UTF-8 is this platform's encoding; `check=False` is subprocess's default
_FUNCTIONS = "isinstance len open range enumerate zip getattr type iter next super print"
_METHODS = "astype reshape get set add join format split startswith endswith"  # their subject is not the argument
_NOT_PASSED_THROUGH = f"{_FUNCTIONS} {_METHODS}".split()


class LeaveOutArgument(Operator):
  """Leaves out one keyword argument of a call, so that its default holds."""

  def mutation_positions(self, node):
    """Every `name=value` among the arguments of a call."""
    if node.type == "argument" and len(node.children) == 3 and node.children[1].value == "=":
      name, parent = node.children[0].value, node.parent
      if name not in _UNSEEN and parent.type in ("arglist", "trailer"):
        yield node.start_pos, node.end_pos

  def mutate(self, node, index):
    """Removes the argument and the comma before or after it."""
    siblings = node.parent.children
    place = siblings.index(node)
    commas = [i for i in (place + 1, place - 1) if i < len(siblings) and getattr(siblings[i], "value", "") == ","]
    if commas:
      siblings[commas[0]].value = ""

  @classmethod
  def examples(cls):
    """None: `tests/mutation/test_operators.py` has them."""
    return ()


class LeaveOutStatement(Operator):
  """Leaves out a statement that is a call."""

  def mutation_positions(self, node):
    """Calls whose value nothing uses."""
    if node.type == "simple_stmt" and _is_call(node.children[0]):
      yield node.children[0].start_pos, node.children[0].end_pos

  def mutate(self, node, index):
    """Puts `pass` in its place."""
    node.children[0] = parso.parse(node.get_first_leaf().prefix + "pass")
    return node

  @classmethod
  def examples(cls):
    """None: `tests/mutation/test_operators.py` has them."""
    return ()


class PassThrough(Operator):
  """Puts a call's first argument in place of the call: `stop_gradient(x)` becomes `x`."""

  def mutation_positions(self, node):
    """Calls with a positional argument, other than those of classes and those in `_NOT_PASSED_THROUGH`."""
    if _is_call(node) and node.parent.type != "simple_stmt" and _first_argument(node) is not None:
      name = node.children[-2].get_last_leaf().value
      if name not in _NOT_PASSED_THROUGH and not name[:1].isupper():
        yield node.start_pos, node.end_pos

  def mutate(self, node, index):
    """The argument in parentheses."""
    return parso.parse(f"{node.get_first_leaf().prefix}({_first_argument(node).get_code().strip()})")

  @classmethod
  def examples(cls):
    """None: `tests/mutation/test_operators.py` has them."""
    return ()


def _is_call(node) -> bool:
  last = node.children[-1] if node.type in ("atom_expr", "power") else None
  return last is not None and last.type == "trailer" and last.children[0].value == "("


def _first_argument(call):
  inside = call.children[-1].children[1]
  first = inside.children[0] if inside.type == "arglist" else inside
  return None if first.type in ("operator", "argument") else first


OPERATORS: dict[str, Operator] = {
  name: plugins.get_operator(f"core/{name}")()
  for name in (
    *(f"ReplaceBinaryOperator_{pair}" for pair in _BINARY.split()),
    *(f"ReplaceComparisonOperator_{pair}" for pair in _COMPARISON.split()),
    *_OTHERS.split(),
  )
} | {operator.__name__: operator() for operator in (LeaveOutArgument, LeaveOutStatement, PassThrough)}


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an operator applies in the present text of a file."""

  module: str  # path of the file, from the root of the repository
  operator: str  # key of `OPERATORS`
  occurrence: int  # as cosmic-ray counts
  start: tuple[int, int]  # line (from 1), column
  end: tuple[int, int]
  function: str  # qualified name of the innermost function or class around it; empty at module level


@dataclasses.dataclass(frozen=True)
class Mutant:
  """A mutant, named so that it is found again after lines have moved.

  Attributes:
    module: path of the file, from the root of the repository.
    function: as of its place.
    operator: key of `OPERATORS`.
    before: the line, without its indentation; several lines are joined.
    after: what becomes of it.
    number: counts mutants of a function that are otherwise the same.
  """

  module: str
  function: str
  operator: str
  before: str
  after: str
  number: int = 0


def places(root: pathlib.Path, module: str) -> list[Place]:
  """Everywhere in a file that it may be mutated."""
  source = (root / module).read_text(encoding="utf-8")
  left_out, functions, nodes = list(_left_out(source)), list(_functions(source)), list(ast_nodes(get_ast(source)))
  result = []
  for name, operator in OPERATORS.items():
    positions = ((node, *position) for node in nodes for position in operator.mutation_positions(node))
    for occurrence, (node, start, end) in enumerate(positions):
      of_signature = node.type == "operator" and node.parent.type == "parameters"  # the star of keyword-only arguments
      if not of_signature and not any(low <= start and end <= high for low, high in left_out):
        within = [function for first, last, function in functions if first <= start[0] <= last]
        result.append(Place(module, name, occurrence, start, end, within[-1] if within else ""))
  return result


def mutate(root: pathlib.Path, place: Place) -> str | None:
  """The text of the mutated file; None where it is the same or is not Python."""
  source = (root / place.module).read_text(encoding="utf-8")
  mutated = mutate_code(source, OPERATORS[place.operator], place.occurrence)
  try:
    return mutated if mutated is not None and ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(source)) else None
  except SyntaxError:
    return None


def name(root: pathlib.Path, place: Place) -> Mutant | None:
  """The mutant of a place; None where it has none."""
  mutated = mutate(root, place)
  if mutated is None:
    return None
  source = (root / place.module).read_text(encoding="utf-8")
  mutant = Mutant(place.module, place.function, place.operator, *_difference(source.split("\n"), mutated.split("\n")))
  before = [p for p in _alike(root, mutant) if p.occurrence < place.occurrence]
  return dataclasses.replace(mutant, number=sum(_outcome(root, p) == (mutant.before, mutant.after) for p in before))


def find(root: pathlib.Path, mutant: Mutant) -> Place | None:
  """Where a named mutant is now; None when its code has gone."""
  held = (p for p in _alike(root, mutant) if _outcome(root, p) == (mutant.before, mutant.after))
  return next(itertools.islice(held, mutant.number, None), None)


def _alike(root: pathlib.Path, mutant: Mutant) -> list[Place]:
  everywhere = places(root, mutant.module) if (root / mutant.module).exists() else []
  return [p for p in everywhere if (p.operator, p.function) == (mutant.operator, mutant.function)]


def _outcome(root: pathlib.Path, place: Place) -> tuple[str, str] | None:
  mutated = mutate(root, place)
  if mutated is None:
    return None
  return _difference((root / place.module).read_text(encoding="utf-8").split("\n"), mutated.split("\n"))


def _difference(old: list[str], new: list[str]) -> tuple[str, str]:
  """The lines that differ, of both, without indentation."""
  first = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
  last = 0
  while last < min(len(old), len(new)) - first and old[-1 - last] == new[-1 - last]:
    last += 1
  return tuple(" ".join(line.strip() for line in text[first : len(text) - last]) for text in (old, new))


def _functions(source: str) -> Iterator[tuple[int, int, str]]:
  """First line, last line and qualified name of every function and class, outer ones first."""

  def visit(node, prefix):
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        name = f"{prefix}{child.name}"
        yield child.lineno, child.end_lineno, name
        yield from visit(child, f"{name}.")
      else:
        yield from visit(child, prefix)

  return visit(ast.parse(source), "")


def _left_out(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
  """Starts and ends of what is not mutated, in lines from 1 and columns in characters."""
  lines, tree = source.split("\n"), ast.parse(source)

  def span(node):
    return tuple(
      (line, len(lines[line - 1].encode()[:column].decode()))
      for line, column in ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
    )

  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      yield from (span(decorator) for decorator in node.decorator_list)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
      yield span(node.returns)
    if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
      yield span(node.annotation)
    if isinstance(node, ast.Raise):
      yield span(node)
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in ("logging", "warnings"):
      yield span(node)
  for node in tree.body:
    if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
      yield span(node)
    if isinstance(node, ast.Assign) and _is_type(node.value):
      yield span(node)


def _is_type(value: ast.expr) -> bool:
  if isinstance(value, ast.BinOp):
    return isinstance(value.op, ast.BitOr) and _is_type(value.left)
  names = ("tuple", "list", "dict", "Callable", "Iterator", "Iterable", "Mapping", "Sequence", "Literal")
  return isinstance(value, ast.Subscript) and ast.unparse(value.value).split(".")[-1] in names
