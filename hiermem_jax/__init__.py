"""Language models with hierarchical parametric memories, in JAX.

  import hiermem_jax as hm

  model = hm.load("runs/quickstart/cotrain")
  print(model.generate("The capital of", max_new_tokens=8))

The public names are those of `__all__`. Each is imported when it is first used, so that importing the package loads
neither jax nor numpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from hiermem_jax.errors import InputError
  from hiermem_jax.evaluation.modes import Mode
  from hiermem_jax.evaluation.topics import Topic
  from hiermem_jax.language_model import LanguageModel, Route, load
  from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig

__version__ = "0.2.0"

_MODULES = {
  "AnchorConfig": "models.config",
  "InputError": "errors",
  "LanguageModel": "language_model",
  "MemoryConfig": "models.config",
  "Mode": "evaluation.modes",
  "ModelConfig": "models.config",
  "Route": "language_model",
  "Topic": "evaluation.topics",
  "load": "language_model",
}

__all__ = [
  "AnchorConfig",
  "InputError",
  "LanguageModel",
  "MemoryConfig",
  "Mode",
  "ModelConfig",
  "Route",
  "Topic",
  "load",
]


def __getattr__(name: str) -> Any:
  """A public name (PEP 562); kept, so that the next access is an ordinary one."""
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  """The public names, and what is loaded."""
  return sorted({*globals(), *__all__})
