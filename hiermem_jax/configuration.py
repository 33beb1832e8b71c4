"""gin at the edge: what can be bound, how a configuration is loaded and checked, and how a verb is called with it.

The library below is plain Python. This module registers its constructors and the verbs with gin, each wrapped so that
every bound value is checked against its annotation. A configuration is checked by a dry run of the verb: every argument
is resolved, constructed and type-checked, and the function itself is not called. After a dry run gin holds the
operative configuration: every parameter in effect, defaults included. That text is saved with the run, and the golden
files of the named runs hold it.
"""

import contextlib
import copy
import dataclasses
import functools
import importlib
import inspect
import os
import pathlib
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import gin
from gin import config_parser

from hiermem_jax.arguments import check_type, checked, with_fields_of
from hiermem_jax.errors import InputError
from hiermem_jax.plugins import on_registration
from hiermem_jax.verbs import VERBS

if TYPE_CHECKING:
  from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

# Where "gin/..." starts for who is elsewhere: a wheel has the folder in the package, a checkout beside it.
_PACKAGE = pathlib.Path(__file__).resolve().parent
_ROOT = str(_PACKAGE if (_PACKAGE / "gin").is_dir() else _PACKAGE.parent)
# Defaults that gin constructs, so that what is bound to them counts.
_DEFAULTS = """
train.model = @ModelConfig()
train.objective = @Objective()
train.checkpoints = @CheckpointConfig()
train.mesh = @MeshConfig()
merge.mesh = @MeshConfig()
cluster.encoder = @LsaEncoder()
cluster.tree = @TreeConfig()
cluster.read = @ReadConfig()
cluster.beam = @BeamConfig()
prepare.pack = @PackConfig()
prepare.read = @ReadConfig()
evaluate.model = @ModelFiles()
evaluate.scoring = @ScoringConfig()
evaluate_tasks.model = @ModelFiles()
evaluate_tasks.scoring = @ScoringConfig()
evaluate_tasks.tasks = @TaskSet()
prepare.beam = @BeamConfig()
"""
_dry = False  # whether a dry run is under way


@functools.cache
def register() -> None:
  """Makes the verbs and the constructors they take known to gin, by their own names, and `include` find the parts."""
  from hiermem_jax.data.corpus.config import PackConfig, ReadConfig
  from hiermem_jax.data.corpus.runner import BeamConfig
  from hiermem_jax.data.world.generate import WorldConfig
  from hiermem_jax.evaluation.config import FrequencyConfig, ModelFiles, RagConfig, ScoringConfig, TaskSet
  from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
  from hiermem_jax.parallel import MeshConfig
  from hiermem_jax.retrieval.build import TreeConfig
  from hiermem_jax.training.config import CheckpointConfig, Objective, ValidationConfig
  from hiermem_jax.training.optimizer import OptimizerConfig

  gin.add_config_file_search_path(_ROOT)
  models = (ModelConfig, AnchorConfig, MemoryConfig, MeshConfig)
  training = (OptimizerConfig, Objective, CheckpointConfig, ValidationConfig)
  corpus = (BeamConfig, PackConfig, ReadConfig, TreeConfig, WorldConfig)
  evaluation = (ModelFiles, ScoringConfig, RagConfig, FrequencyConfig, TaskSet)
  for constructor in (*models, *training, *corpus, *evaluation):
    _register(constructor)
  for room in ("data.sources", "retrieval.encoders"):
    importlib.import_module(f"hiermem_jax.{room}")  # registers its own
  on_registration(_register)  # sources and encoders; also those of a module that a gin file imports
  for verb in VERBS.values():
    function = _unless_dry(getattr(importlib.import_module(verb.module), verb.name))
    if verb.takes_fields_of is not None:
      function = with_fields_of(function, verb.takes_fields_of)
    _register(function)


def _register(target: Callable) -> None:
  name = target.__name__
  gin.external_configurable(checked(target, name), name, module="hiermem_jax")


def _unless_dry(verb: Callable) -> Callable:
  """A verb that does nothing in a dry run."""

  @functools.wraps(verb)
  def call(**arguments):
    return None if _dry else verb(**arguments)

  return call


@contextlib.contextmanager
def _one_line(place: str) -> Iterator[None]:
  """Turns what gin and its parser raise into an InputError of one line."""
  try:
    yield
  except tokenize.TokenError as error:  # an open bracket or quote; has no file
    message, (line, _) = error.args
    raise InputError(f"{place}, line {line}: {message}; close the bracket or quote") from None
  except SyntaxError as error:
    where = f"{error.filename or place}, line {error.lineno}: {(error.text or '').strip()!r}"
    raise InputError(f"{where}: {error.msg.rstrip('.')}; correct the line") from None
  except (ValueError, OSError, TypeError, AttributeError, ImportError) as error:
    message = str(error).split("\n  In bindings string", 1)[0]  # `place` says it
    raise InputError(f"{place}: {' '.join(message.split()).rstrip('.')}; correct the name or the line") from None


def load(gin_files: Sequence[str], bindings: Sequence[str]) -> None:
  """Parses gin files and bindings on top of them.

  Args:
    gin_files: paths; like those that they include, relative to the working directory or to the root of the checkout.
    bindings: one statement each.

  Raises:
    InputError: a file is missing, a line cannot be parsed, a name is not known, a macro that is read is not
      bound, or nothing reads a macro or a scope that is bound.
  """
  register()
  gin.clear_config()
  gin.parse_config(_DEFAULTS)
  for path in gin_files:
    if not any(os.path.isfile(os.path.join(start, path)) for start in ("", _ROOT)):
      raise InputError(f"--gin_file={path}: no such file; paths are relative to {os.getcwd()}")
    with _one_line(path):
      gin.parse_config_file(path)
  for binding in bindings:
    with _one_line(f"--gin_bindings={binding}"):
      gin.parse_config(binding)
  _check_names(gin.config_str())
  with _one_line("gin"):
    gin.finalize()


class _References(config_parser.ParserDelegate):
  """Collects the macros and the scopes that a configuration reads."""

  def __init__(self):
    self.macros = set()
    self.scopes = {""}

  def configurable_reference(self, scoped_configurable_name, evaluate):
    self.scopes.add(scoped_configurable_name.rpartition("/")[0])
    return scoped_configurable_name

  def macro(self, macro_name):
    self.macros.add(macro_name)
    return macro_name


def _check_names(text: str) -> None:
  """Raises InputError when `text` reads a macro that is not bound, or binds a macro or a scope that nothing reads.

  gin itself would ignore the second.
  """
  references = _References()
  statements = config_parser.ConfigParser(text, references)
  bindings = [s for s in statements if isinstance(s, config_parser.BindingStatement)]
  macros = {s.selector: s.value for s in bindings if not s.arg_name}
  if missing := sorted(references.macros - macros.keys()):
    remedy = f'bind with --gin_bindings="{missing[0]} = ..."'
    raise InputError(f"gin macro {', '.join(missing)}: read and not bound; {remedy}")
  for name in sorted(macros.keys() - references.macros):
    known = ", ".join(sorted(references.macros)) or "none"
    raise InputError(f"gin macro {name} = {macros[name]!r}: nothing reads it; the macros that are read: {known}")
  for binding in bindings:
    if binding.scope not in references.scopes:
      name = f"{binding.scope}/{binding.selector}.{binding.arg_name}"
      known = ", ".join(sorted(references.scopes - {""})) or "none"
      raise InputError(f"gin binding {name}: nothing refers to scope {binding.scope}; the scopes in use: {known}")


@contextlib.contextmanager
def _dry_run() -> Iterator[None]:
  global _dry
  _dry = True
  try:
    yield
  finally:
    _dry = False


@contextlib.contextmanager
def _cause_only() -> Iterator[None]:
  """Strips what gin appends to an InputError on its way up: where the call came from, on further lines."""
  try:
    yield
  except InputError as error:
    raise InputError(str(error).split("\n", 1)[0]) from error


def call(verb: str, **arguments):
  """Calls a verb with its bindings.

  Args:
    verb: its name.
    **arguments: given by the caller, as a rule from the command line. Those that the table of verbs says a verb reads
      from another verb (`Verb.reads`) are made by `bound_arguments`, of the class that the argument is annotated with.

  Raises:
    InputError: an argument is missing or of the wrong type, and whatever the verb raises.
  """
  function = gin.get_configurable(verb)
  for argument, source in VERBS[verb].reads:
    arguments.setdefault(argument, bound_arguments(source, inspect.signature(function).parameters[argument].annotation))
  with _cause_only():
    return function(**arguments)


def dry_run(verb: str, **arguments) -> str:
  """Resolves, constructs and type-checks everything that `verb` would be called with, and does not call it.

  Of a chain, every stage gets a dry run. Returns gin's operative configuration: every parameter in effect, defaults
  included.
  """
  with _dry_run(), _cause_only():
    gin.get_configurable(verb)(**arguments)
    for stage in gin.get_bindings(verb).get("stages", ()):
      stage(**arguments)
  return gin.operative_config_str(max_line_length=110)


def bound_argument(verb: str, argument: str) -> Any:
  """The value bound to a verb's argument, constructed and checked; its default, or else None, when nothing is bound."""
  bindings = gin.get_bindings(verb, resolve_references=False)
  parameter = _parameters(verb)[argument]
  if argument not in bindings:
    return None if parameter.default is parameter.empty else parameter.default
  with _cause_only():
    value = copy.deepcopy(bindings[argument])  # which is how gin constructs what a reference names
  check_type(f"{verb}.{argument}", value, parameter.annotation)
  return value


def bound_arguments(verb: str, into: type[T]) -> T:
  """What is bound to some arguments of a verb, as one object.

  Args:
    verb: its name.
    into: a dataclass whose fields have the names of arguments of the verb. An argument that is neither bound nor has a
      default in the verb takes the field's default.

  Raises:
    InputError: such an argument has no default in the dataclass either; or a value is of the wrong type.
  """
  bound, parameters = gin.get_bindings(verb, resolve_references=False), _parameters(verb)
  names = [f.name for f in dataclasses.fields(into)]
  given = [name for name in names if name in bound or parameters[name].default is not inspect.Parameter.empty]
  required = [f.name for f in dataclasses.fields(into) if f.default is dataclasses.MISSING]
  if missing := [f"{verb}.{name}" for name in required if name not in given]:
    raise InputError(f"{', '.join(missing)}: not bound; name a run with --gin_file, e.g. gin/runs/a2.gin")
  return into(**{name: bound_argument(verb, name) for name in given})


def _parameters(verb: str) -> Mapping[str, inspect.Parameter]:
  return inspect.signature(gin.get_configurable(verb)).parameters
