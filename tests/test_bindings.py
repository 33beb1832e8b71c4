"""Every name that gin can bind takes a legal value through gin, and refuses an illegal one in one line that names it.

The names and their types are read from the signatures. tests/bindings.gin makes every verb and constructor complete.
"""

import inspect
import types
import typing
from collections.abc import Callable

import gin
import pytest

from hiermem_jax import configuration
from hiermem_jax.errors import InputError
from hiermem_jax.verbs import CONFIGURED

GIN_FILE = "tests/bindings.gin"
GIVEN = {"run_dir", "as_json"}  # by the command line
# A verb that constructs it, and what must be bound for that.
USERS = {
  **dict.fromkeys(("ModelConfig", "AnchorConfig", "MemoryConfig", "MeshConfig", "OptimizerConfig"), ("train", ())),
  **dict.fromkeys(("Objective", "CheckpointConfig", "ValidationConfig"), ("train", ())),
  **dict.fromkeys(("BeamConfig", "ReadConfig", "TreeConfig", "LsaEncoder", "JsonlSource"), ("cluster", ())),
  "SentenceTransformer": ("cluster", ("cluster.encoder = @SentenceTransformer()",)),
  "PackConfig": ("prepare", ()),
  **{
    name: ("train_tokenizer", (f"train_tokenizer.corpus = @{name}()",))
    for name in ("ParquetSource", "TextSource", "TfdsSource", "WorldSource")
  },
  "WorldConfig": ("train_tokenizer", ("train_tokenizer.corpus = @WorldSource()",)),
  **dict.fromkeys(("ModelFiles", "ScoringConfig", "RagConfig"), ("evaluate", ())),
  **dict.fromkeys(("FrequencyConfig", "TaskSet"), ("evaluate_tasks", ())),
}
# Legal values, as gin reads them: by name where the name asks for one, and otherwise by type.
LEGAL = {
}
BY_TYPE = {bool: "True", int: "4", float: "0.5", str: "'text'"}
# Numbers may not be negative, but for these.
NEGATIVE = {
}


def _names() -> dict[str, inspect.Parameter]:
  """Every bindable name, and its parameter; without what other tests have registered."""
  configuration.register()
  own = {name for name, made in configuration.constructors().items() if made.__module__.startswith("hiermem_jax")}
  return {
    f"{owner}.{name}": parameter
    for owner in (*CONFIGURED, *sorted(own))
    for name, parameter in inspect.signature(gin.get_configurable(owner)).parameters.items()
    if name not in GIVEN and (owner, name) not in {(o, n) for o, v in CONFIGURED.items() for n, _ in v.reads}
  }


NAMES = _names()
def _kinds(hint):
  """The types that an annotation is a union of, None left out."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return [kind for part in typing.get_args(hint) for kind in _kinds(part)]
  return [] if hint is type(None) else [hint]


def legal(name: str) -> str:
  """A legal value of a name, as gin reads it."""
  if name in LEGAL:
    return LEGAL[name]
  kind = _kinds(NAMES[name].annotation)[0]
  if typing.get_origin(kind) is typing.Literal:
    return repr(typing.get_args(kind)[-1])
  if typing.get_origin(kind) is tuple:
    return f"({BY_TYPE[typing.get_args(kind)[0]]},)"
  if kind in BY_TYPE:
    return BY_TYPE[kind]
  if kind.__name__ in ("Source", "EncoderConfig"):
    return {"Source": "@TextSource()", "EncoderConfig": "@LsaEncoder()"}[kind.__name__]
  return f"@{kind.__name__}()"


def resolved(name: str, value: str) -> str:
  """The configuration of a verb that reads a name, with the name bound to a value."""
  owner = name.partition(".")[0]
  verb, needed = (owner, ()) if owner in CONFIGURED else USERS[owner]
  configuration.load([GIN_FILE], [*needed, f"{name} = {value}"])
  return configuration.dry_run(verb, **({"run_dir": ""} if CONFIGURED[verb].has_run_dir else {}))


@pytest.mark.parametrize("name", NAMES)
def test_a_legal_value_reaches_the_object(name):
  value = legal(name)
  text = resolved(name, value)
  assert f"{name} = {value}" in " ".join(text.split()), text
  arrived = [found for stage in configuration.planned() if (found := stage.settings().get(name))]
  assert all(setting.value == value for setting in arrived)


@pytest.mark.parametrize("name", NAMES)
def test_an_illegal_value_is_refused_in_one_line_that_names_it(name):
  with pytest.raises(InputError, match=f"{name}") as caught:
    resolved(name, "{'of': 'no type'}")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in NAMES if {int, float} & set(_kinds(NAMES[name].annotation)) and name not in NEGATIVE])
def test_a_negative_number_is_refused_in_one_line_that_names_it(name):
  with pytest.raises(InputError, match=f"{name}") as caught:
    resolved(name, "-1")
  assert "\n" not in str(caught.value)
