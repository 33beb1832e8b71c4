"""Every name that can be bound for a verb: of the verb itself, and of the objects that its arguments can be.

Types and defaults are read from signatures, and what a parameter means from the docstring that describes it.
"""

import dataclasses
import importlib
import inspect
import json
import re
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import gin

from hiermem_jax.arguments import type_name
from hiermem_jax.verbs import CONFIGURED

_GIVEN = {"run_dir", "as_json"}  # by the command line


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One bindable name.

  Attributes:
    name: as a gin file spells it, e.g. `train.steps`.
    type: of its value.
    default: as text, what is bound to it or the default of the code; None when it must be bound.
    help: the first sentence of its documentation.
  """

  name: str
  type: str
  default: str | None
  help: str


def parameters(verb: str, constructors: Mapping[str, Callable]) -> list[Parameter]:
  """All bindable names of a verb, its own first.

  Args:
    verb: its name. gin must have it: see `configuration.load`.
    constructors: what an argument can refer to, by name; see `configuration.constructors`.
  """
  own = getattr(importlib.import_module(CONFIGURED[verb].module), verb)
  documented = [own]
  if (fields := CONFIGURED[verb].takes_fields_of) is not None:
    documented.append(inspect.signature(own).parameters[fields].annotation)
  found = list(_of(verb, documented, skipped=_GIVEN | {name for name, _ in CONFIGURED[verb].reads}))
  pending, seen = [verb], {verb}
  while pending:
    for parameter in inspect.signature(gin.get_configurable(pending.pop(0))).parameters.values():
      for name, constructor in constructors.items():
        if name not in seen and _takes(parameter.annotation, constructor):
          seen.add(name)
          pending.append(name)
          found += _of(name, inspect.getmro(constructor) if inspect.isclass(constructor) else [constructor])
  return found


def text(verb: str, found: list[Parameter]) -> str:
  """The parameters as a page, and the verbs whose bindings this one reads beside them."""
  lines = []
  for parameter in found:
    default = "must be bound" if parameter.default is None else f"= {parameter.default}"
    lines.append(f"{parameter.name}: {parameter.type} {default}")
    if parameter.help:
      lines.append(f"    {parameter.help}")
  for _, source in CONFIGURED[verb].reads:
    lines.append(f"What is bound for {source} is read too: hiermem describe --params {source}")
  if any("Callable" in parameter.type for parameter in found):
    lines.append("A stage is a verb, and what is bound for it is read too: hiermem describe --params VERB")
  return "\n".join(lines)


def as_json(found: list[Parameter]) -> str:
  """The same as JSON."""
  return json.dumps([dataclasses.asdict(parameter) for parameter in found], indent=2)


def _of(owner: str, documented: Any, skipped: Collection[str] = ()) -> Iterator[Parameter]:
  """The parameters of one function or class, which the docstrings of `documented` describe."""
  meanings: dict[str, str] = {}
  for target in documented:
    meanings = _meanings(inspect.getdoc(target) or "") | meanings
  bound = gin.get_bindings(owner, resolve_references=False)
  for name, parameter in inspect.signature(gin.get_configurable(owner)).parameters.items():
    if name not in skipped:
      default = None if parameter.default is parameter.empty else repr(parameter.default)
      if name in bound:
        default = repr(bound[name])
      yield Parameter(f"{owner}.{name}", type_name(parameter.annotation), default, meanings.get(name, ""))


def _takes(hint: Any, constructor: Callable) -> bool:
  """Whether an argument so annotated can be what a class constructs."""
  if parts := typing.get_args(hint):
    return any(_takes(part, constructor) for part in parts)
  return inspect.isclass(hint) and inspect.isclass(constructor) and hint is not object and issubclass(constructor, hint)


def _meanings(docstring: str) -> dict[str, str]:
  """The first sentence about each name in the sections Args and Attributes of a docstring."""
  found = {}
  for section in re.findall(r"^(?:Args|Attributes):\n((?:  .*\n?|\n)+)", docstring, re.MULTILINE):
    for name, meaning in re.findall(r"^  (\w+): ((?:.*)(?:\n    .*)*)", section, re.MULTILINE):
      sentence = re.split(r"(?<!e\.g)(?<!i\.e)\. ", " ".join(meaning.split()), maxsplit=1)[0]
      found[name] = sentence.rstrip(".")
  return found
