"""Which bindings of the loaded configuration a verb reads, followed from reference to reference without a call.

gin resolves an argument when the function is called: the binding of the innermost scope wins. Here the same is worked
out beforehand, so that it is also known of a configuration that is not complete.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import gin

from hiermem_jax.config_files import Statement
from hiermem_jax.errors import InputError
from hiermem_jax.verbs import CONFIGURED

Key = tuple[str, str, str]  # scope, full name of the function or class ("gin.macro" for a macro), argument
MACRO = "gin.macro"


@dataclasses.dataclass(frozen=True)
class Reads:
  """What a verb reads.

  Attributes:
    keys: the bindings that decide the value of an argument.
    calls: for every function and class that is called, by (scope, full name), the deciding binding's scope and value of
      each bound argument.
  """

  keys: set[Key]
  calls: dict[tuple[str, str], dict[str, tuple[str, Any]]]


def full_name(verb: str) -> str:
  """The name of a verb among all that gin knows."""
  return f"hiermem_jax.{verb}"


def read_by(verb: str, given: Collection[str] = ()) -> Reads:
  """Follows a verb's references.

  Args:
    verb: its name. A verb that is given what is bound to another one reads all of the other's bindings.
    given: arguments that the caller gives, to the verb and to the stages of a chain; their bindings are not read.
  """
  reads = Reads(set(), {})
  pending = [("", full_name(name)) for name in (verb, *(source for _, source in CONFIGURED[verb].reads))]
  verbs = {full_name(name) for name in CONFIGURED}
  while pending:
    scope, name = pending.pop()
    if (scope, name) in reads.calls:
      continue
    bound = _deciding(scope, name)
    if name in verbs:
      bound = {argument: found for argument, found in bound.items() if argument not in given}
    reads.calls[scope, name] = bound
    for argument, (outer, value) in bound.items():
      reads.keys.add((outer, name, argument))
      for reference in gin.config.iterate_references(value):
        pending.append(("/".join(reference.scopes) or scope, reference.configurable.selector))
  return reads


def _deciding(scope: str, name: str) -> dict[str, tuple[str, Any]]:
  """For each bound argument of what is called in a scope, the scope of the binding that wins, and its value."""
  parts, bound = scope.split("/") if scope else [], {}
  for depth in range(len(parts) + 1):
    outer = "/".join(parts[:depth])
    selector = f"{outer}/{name}" if outer else name
    values = gin.get_bindings(selector, resolve_references=False, inherit_scopes=False)
    bound.update({argument: (outer, value) for argument, value in values.items()})
  return bound


def require_read(verb: str, given: Collection[str], statements: Sequence[Statement]) -> None:
  """Checks that a configuration changes what it says it changes.

  Args:
    verb: that is about to run.
    given: see `read_by`.
    statements: of the loaded configuration, in the order in which they hold.

  Raises:
    InputError: a binding of the command line decides nothing that the verb reads; or a binding, of a file too, comes
      after the bindings of narrower scopes that leave nothing to it.
  """
  reads = read_by(verb, given)
  last = {key: index for index, statement in enumerate(statements) if (key := _key(statement)) is not None}
  for key, index in last.items():
    if key in reads.keys:
      continue
    statement, (scope, name, argument) = statements[index], key
    text = _text(statement)
    inside = [other for other in reads.keys if other[1:] == (name, argument) and _is_within(other[0], scope)]
    if inside and index > max(last.get(other, -1) for other in inside):
      names = ", ".join(sorted(_name(other) for other in inside))
      place = "" if statement.on_command_line else f"{statement.place}: "
      raise InputError(f"{place}{text}: every scope that reads it binds its own: {names}; bind that instead")
    if statement.on_command_line and not inside and (reason := _unread(verb, given, reads, key)):
      raise InputError(f"{text}: {reason}")


def _unread(verb: str, given: Collection[str], reads: Reads, key: Key) -> str:
  """Why nothing of a verb reads a binding, and what to do; "" where that is as it should be.

  A macro may be read by other verbs: all verbs of a configuration need the macros that it leaves open.
  """
  scope, name, argument = key
  short = _short(name)
  if name == MACRO:
    if any(key in read_by(other).keys for other in CONFIGURED):
      return ""
    return "nothing reads it: what did is bound to another value; leave it out"
  if argument in given and name in map(full_name, CONFIGURED):
    return f"the command line gives {short}.{argument} itself; leave it out"
  if elsewhere := sorted("/".join(filter(None, (other, short))) for other, called in reads.calls if called == name):
    return f"{verb} reads it outside this scope, of {', '.join(elsewhere)}; bind {elsewhere[0]}.{argument}"
  if takers := [other for other, taker in CONFIGURED.items() if taker.has_run_dir and key in read_by(other).keys]:
    return f"{verb} does not read it, only {', '.join(takers)}; leave it out"
  return f"nothing that {verb} reads constructs {short}; bind a reference @{short}() to what takes one, or leave it out"


def _key(statement: Statement) -> Key | None:
  """What a statement binds; None when it binds nothing, or under a name that only the file's own imports explain."""
  if not statement.is_binding:
    return None
  scope, selector, argument, *_ = statement.parsed
  if not argument:
    return ("/".join(filter(None, (scope, selector))), MACRO, "value")
  try:
    return gin.config.ParsedBindingKey.parse((scope, selector, argument)).scope_selector_arg
  except ValueError:
    return None


def _text(statement: Statement) -> str:
  scope, selector, argument, value, _ = statement.parsed
  name = "/".join(filter(None, (scope, selector))) + (f".{argument}" if argument else "")
  return f"{name} = {_shown(value)}"


def _name(key: Key) -> str:
  scope, name, argument = key
  return "/".join(filter(None, (scope, _short(name)))) + f".{argument}"


def _short(name: str) -> str:
  return name.rpartition(".")[2]


def _is_within(inner: str, outer: str) -> bool:
  return not outer or inner.startswith(f"{outer}/")


def _shown(value: Any) -> str:
  """A value as a gin file shows it; references are texts that start with @ or %, as `References` keeps them."""
  if isinstance(value, str) and value[:1] in ("@", "%"):
    return value
  return repr(value)
