"""Where parts of other packages plug in: constructors for gin files, and names of the form "module:attribute".

A gin file says `import mypkg.ext`, and that module registers what it adds:

  register_encoder  hiermem_jax.retrieval.encoders   an encoder's settings, for gin
  register_source   hiermem_jax.data.sources         a source of records, for gin
  register_task     hiermem_jax.data.tasks.table     a question set, for `TaskSet.names`

A memory kind is not registered: `MemoryConfig.kind` names it as 'mypkg.ext:KIND', and so does a checkpoint that has it.
An encoder's directory names the encoder's class in the same way. So both load in processes that read no gin file.
"""

import importlib
from collections.abc import Callable

from hiermem_jax.errors import InputError

_CONSTRUCTORS: list[type] = []
_LISTENERS: list[Callable[[type], None]] = []


def register_constructor(constructor: type) -> None:
  """Lets gin files construct objects of a class, by its own name: `@Name()`, `Name.field = ...`.

  Every bound value is checked against the class's annotations.
  """
  if constructor not in _CONSTRUCTORS:
    for listener in _LISTENERS:
      listener(constructor)
    _CONSTRUCTORS.append(constructor)


def on_registration(listener: Callable[[type], None]) -> None:
  """Calls `listener` with every constructor that is registered, and with every one that will be."""
  for constructor in _CONSTRUCTORS:
    listener(constructor)
  _LISTENERS.append(listener)


def import_attribute(name: str, what: str) -> object:
  """What "module:attribute" names.

  Args:
    name: of that form.
    what: what has this name, for the message.

  Raises:
    InputError: there is no such module, or it cannot be imported, or it has no such attribute.
  """
  module, _, attribute = name.partition(":")
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, ValueError) as error:
    remedy = "install its package or add its folder to PYTHONPATH"
    raise InputError(f"{what} is {name!r}: {error}; {remedy}") from error
