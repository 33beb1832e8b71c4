"""Every name that gin can bind takes a legal value through gin, and refuses an illegal one in one line that names it.

The names and their types are read from the signatures. tests/bindings.gin makes every verb and constructor complete.
"""

import inspect
import re
import types
import typing

import gin
import pytest

from hiermem_jax import configuration
from hiermem_jax.data.sources import Source
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.encoders import EncoderConfig
from hiermem_jax.verbs import CONFIGURED

GIN_FILE = "tests/bindings.gin"
GIVEN = {"run_dir", "as_json"}  # by the command line
# By a constructor that is no source and no encoder, a verb that calls it, and what must be bound for that.
USERS: dict[str, tuple[str, tuple[str, ...]]] = {
  **dict.fromkeys(("ModelConfig", "AnchorConfig", "MemoryConfig", "MeshConfig", "OptimizerConfig"), ("train", ())),
  "PartSettings": ("train", ("OptimizerConfig.bank = @PartSettings()",)),
  **dict.fromkeys(("Objective", "CheckpointConfig", "ValidationConfig"), ("train", ())),
  **dict.fromkeys(("BeamConfig", "ReadConfig", "TreeConfig"), ("cluster", ())),
  "PackConfig": ("prepare", ()),
  "WorldConfig": ("train_tokenizer", ("train_tokenizer.corpus = @WorldSource()",)),
  **dict.fromkeys(("ModelFiles", "ScoringConfig", "RagConfig"), ("evaluate", ())),
  **dict.fromkeys(("FrequencyConfig", "TaskSet"), ("evaluate_tasks", ())),
}
# Legal values, as gin reads them: by name where the name asks for one, and otherwise by type.
LEGAL = {
  "train.profile_steps": "(100, 105)",
  "run.stages": "(@train,)",
  "AnchorConfig.attention": "'splash'",
  "AnchorConfig.splash_blocks": "(256, 256, 128, 256, 256, 128)",
  "MemoryConfig.kind": "'kv'",
  "MemoryConfig.rows": "(4, 2, 1)",
  "MemoryConfig.layers": "(0,)",
  "MeshConfig.rules": "(('batch', ('replica', 'data')),)",
  "PackConfig.tails": "'drop'",
  "SentenceTransformer.dtype": "'float32'",
  "SentenceTransformer.batch_word_pieces": "4096",
  "TreeConfig.batch_size": "512",
  "TreeConfig.balance": "2.0",
  "ValidationConfig.others": "(('code', 'packed/code'),)",
  "WorldConfig.max_mentions": "64",
  "WorldConfig.mean_mentions": "4.0",
  "WorldSource.split": "'probes'",
}
BY_TYPE = {
  **{bool: "True", int: "4", float: "0.5", str: "'text'"},
  **{Source: "@TextSource()", EncoderConfig: "@LsaEncoder()"},
}
PRINTED = ("describe", "compile_pod", "run")  # which plan no stage of their own


def _names() -> dict[str, typing.Any]:
  """Every bindable name, and its annotation; without what other tests have registered."""
  configuration.register()
  own = {name for name, made in configuration.constructors().items() if made.__module__.startswith("hiermem_jax")}
  return {
    f"{owner}.{name}": parameter.annotation
    for owner in (*CONFIGURED, *sorted(own))
    for name, parameter in inspect.signature(gin.get_configurable(owner)).parameters.items()
    if name not in GIVEN and (owner, name) not in {(o, n) for o, v in CONFIGURED.items() for n, _ in v.reads}
  }


NAMES = _names()


OWNERS = list(dict.fromkeys(name.partition(".")[0] for name in NAMES))


def kinds(hint):
  """The types that an annotation is a union of, None left out."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return [kind for part in typing.get_args(hint) for kind in kinds(part)]
  return [] if hint is type(None) else [hint]


def example(hint) -> str:
  """A value of a type, as gin reads it: of a union one of the first type."""
  kind, *_ = kinds(hint)
  if typing.get_origin(kind) is typing.Literal:
    return repr(typing.get_args(kind)[-1])
  if typing.get_origin(kind) is tuple:
    return f"({example(typing.get_args(kind)[0])},)"
  return BY_TYPE.get(kind, f"@{kind.__name__}()")


def user(owner: str) -> tuple[str, tuple[str, ...]]:
  """A verb that reads what is bound to an owner of names, and what must be bound for that."""
  if owner in CONFIGURED:
    return owner, ()
  made = configuration.constructors()[owner]
  if issubclass(made, Source):
    return "train_tokenizer", (f"train_tokenizer.corpus = @{owner}()",)
  return ("cluster", (f"cluster.encoder = @{owner}()",)) if issubclass(made, EncoderConfig) else USERS[owner]


def resolved(owner: str, *bindings: str) -> str:
  """The configuration of such a verb."""
  verb, needed = user(owner)
  configuration.load([GIN_FILE], [*needed, *bindings])
  return configuration.dry_run(verb, **({"run_dir": ""} if CONFIGURED[verb].has_run_dir else {"as_json": True}))


@pytest.mark.parametrize("owner", OWNERS)
def test_legal_values_reach_the_object(owner):
  values = {name: LEGAL.get(name) or example(hint) for name, hint in NAMES.items() if name.startswith(f"{owner}.")}
  text = " ".join(resolved(owner, *(f"{name} = {value}" for name, value in values.items())).split())
  assert not [name for name, value in values.items() if f"{name} = {value}" not in text], text
  found = {name: setting.value for stage in configuration.planned() for name, setting in stage.settings().items()}
  known = {name: found[name] for name in values if name in found and "@" not in values[name]}
  assert known == {name: values[name] for name in known} and (known or owner in PRINTED or "@" in str(values))


@pytest.mark.parametrize("name", NAMES)
def test_illegal_values_are_refused_in_one_line_that_names_the_binding(name):
  """One of a type that none has and, where a number is bound, a negative one."""
  owner = name.partition(".")[0]
  for value in ["{'of': 'no type'}", *(["-1"] if {int, float} & set(kinds(NAMES[name])) else [])]:
    with pytest.raises(InputError, match=re.escape(name)) as caught:
      resolved(owner, f"{name} = {value}")
    assert "\n" not in str(caught.value)
