"""Functions whose arguments are checked against their annotations, as gin calls them.

gin passes on whatever a line of a file says; without these checks a wrong type would show much later, or never.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, get_args, get_origin

from beartype import BeartypeConf
from beartype.door import is_bearable

from hiermem_jax.errors import InputError

_NUMBERS = BeartypeConf(is_pep484_tower=True)  # an int is welcome where a float is expected


def checked(target: Callable, name: str) -> Callable:
  """`target` behind a check of every argument.

  Args:
    target: a function or a class. A parameter without an annotation takes every value.
    name: what messages call it.

  Returns:
    A function of the same signature. It raises InputError when a required argument is missing or one has the wrong
    type.
  """
  signature = inspect.signature(target, eval_str=True)  # of modules that make annotations strings, too

  @functools.wraps(target, updated=())  # the methods of a class are none of a function's: a protocol would see them
  def call(*args, **kwargs):
    bound = signature.bind_partial(*args, **kwargs).arguments
    required = [p.name for p in signature.parameters.values() if p.default is p.empty]
    if missing := [f"{name}.{argument}" for argument in required if argument not in bound]:
      remedy = f'bind in a gin file or with --gin_bindings="{missing[0]} = ..."'
      raise InputError(f"{', '.join(missing)}: not bound; {remedy}")
    for argument, value in bound.items():
      if (hint := signature.parameters[argument].annotation) is not inspect.Parameter.empty:
        check_type(f"{name}.{argument}", value, hint)
    return target(*args, **kwargs)

  return _signed(call, signature)


def check_type(name: str, value: Any, hint: Any) -> None:
  """Raises InputError when a value is not of the type that an annotation asks for; `name` is what it is bound to."""
  parts = [value]
  if isinstance(value, tuple) and _of_any_length(hint):
    # beartype looks at one element of a tuple[X, ...], drawn at random. So each is looked at as a tuple of its own.
    parts += [(element,) for element in value]
  # A class has the methods of a protocol, and is not what the protocol is about.
  if all(is_bearable(part, hint, conf=_NUMBERS) and not isinstance(part, type) for part in parts):
    return
  shown = _with_members(hint)
  if callable(value):
    raise InputError(f"{name} = @{value.__name__}: must be {shown}; write @{value.__name__}() to construct one")
  raise InputError(f"{name} = {value!r}: must be {shown}; bind such a value")


def _of_any_length(hint: Any) -> bool:
  """Whether an annotation, or a member of a union, is tuple[X, ...]."""
  members = get_args(hint)
  return Ellipsis in members if get_origin(hint) is tuple else any(map(_of_any_length, members))


def type_name(hint: Any) -> str:
  """An annotation as a reader writes it, without the names of modules."""
  return hint.__name__ if isinstance(hint, type) else re.sub(r"\b(\w+\.)+(?=[A-Z])", "", str(hint))


def _with_members(hint: Any) -> str:
  """The name of a type; of a protocol, what an object must have as well."""
  members = [name for name in vars(hint) if not name.startswith("_")] if getattr(hint, "_is_protocol", False) else []
  return ", ".join([type_name(hint), *(f"with {name}" for name in members)])


def with_fields_of(function: Callable, argument: str) -> Callable:
  """`function` with the fields of one of its arguments, a dataclass, as arguments of its own.

  Of f(*, path: str, size: Size), where Size has the fields `width` and `height`, it makes f(*, path, width, height).
  """
  signature = inspect.signature(function)
  made = signature.parameters[argument].annotation
  fields = inspect.signature(made).parameters

  @functools.wraps(function)
  def call(**kwargs):
    values = {name: kwargs.pop(name) for name in tuple(kwargs) if name in fields}
    return function(**kwargs, **{argument: made(**values)})

  del call.__wrapped__  # gin would look through it, at the arguments of `function`
  rest = [parameter for name, parameter in signature.parameters.items() if name != argument]
  own = [field.replace(kind=inspect.Parameter.KEYWORD_ONLY) for field in fields.values()]
  return _signed(call, signature.replace(parameters=[*rest, *own]))


def _signed(function: Any, signature: inspect.Signature) -> Callable:
  """Says what the parameters of a wrapper are, which gin asks for."""
  function.__signature__ = signature
  return function
