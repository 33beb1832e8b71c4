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
import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import gin
from gin import config_parser

from hiermem_jax import config_files, config_reading
from hiermem_jax.arguments import check_type, checked, with_fields_of
from hiermem_jax.errors import InputError, Preempted
from hiermem_jax.plan import Planned, Record
from hiermem_jax.plugins import on_registration
from hiermem_jax.verbs import CONFIGURED, Stage

if TYPE_CHECKING:
  from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_BINDING = config_parser.BindingStatement
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
_planned: list[Planned] = []  # the stages of the last dry run
_registered: dict[str, Callable] = {}
_statements: list[config_files.Statement] = []  # of the loaded configuration


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
  from hiermem_jax.training.optimizer import OptimizerConfig, PartSettings

  gin.config.register_file_reader(config_files.opened, config_files.is_marked)
  models = (ModelConfig, AnchorConfig, MemoryConfig, MeshConfig)
  training = (OptimizerConfig, PartSettings, Objective, CheckpointConfig, ValidationConfig)
  corpus = (BeamConfig, PackConfig, ReadConfig, TreeConfig, WorldConfig)
  evaluation = (ModelFiles, ScoringConfig, RagConfig, FrequencyConfig, TaskSet)
  for constructor in (*models, *training, *corpus, *evaluation):
    _register(constructor)
  for room in ("data.sources", "retrieval.encoders"):
    importlib.import_module(f"hiermem_jax.{room}")  # registers its own
  on_registration(_register)  # sources and encoders; also those of a module that a gin file imports
  for verb in CONFIGURED.values():
    function = _unless_dry(getattr(importlib.import_module(verb.module), verb.name))
    if verb.takes_fields_of is not None:
      function = with_fields_of(function, verb.takes_fields_of)
    _register(function)


def constructors() -> dict[str, Callable]:
  """What this module has registered with gin beside the verbs, by name: what an argument of a verb can refer to."""
  register()
  return {name: target for name, target in _registered.items() if name not in CONFIGURED}


def _register(target: Callable) -> None:
  name = target.__name__
  gin.external_configurable(checked(target, name), name, module="hiermem_jax")  # refuses a name that is taken
  _registered[name] = target


def _unless_dry(verb: Callable) -> Callable:
  """A verb that in a dry run notes what it is called with, and otherwise in the run directory that it has finished.

  Numbers that a verb takes itself are positive, all of them.
  """
  parameters = inspect.signature(verb).parameters

  @functools.wraps(verb)
  def call(**arguments):
    for name, value in arguments.items():
      if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
        raise InputError(f"{verb.__name__}.{name} = {value}: bind a positive number")
    stage = None
    if "run_dir" in parameters and "stages" not in parameters:
      name = "/".join([*gin.current_scope(), verb.__name__])
      defaults = {argument: p.default for argument, p in parameters.items() if p.default is not p.empty}
      given = {argument: (defaults | arguments)[argument] for argument in parameters}
      stage = Planned(name, verb.__name__, given, defaults)
    if _dry:
      _planned.extend([stage] if stage else [])
      return None
    result = verb(**arguments)
    from hiermem_jax.parallel import distributed  # noqa: PLC0415 (imports jax)

    if stage and distributed.is_first():
      Record(arguments["run_dir"]).finish(stage.key)
    return result

  return call


def load(gin_files: Sequence[str], bindings: Sequence[str]) -> None:
  """Parses gin files and bindings on top of them.

  Args:
    gin_files: paths, relative to the working directory or to the root of the checkout; those that a file includes may
      also start in its own folder, which is looked at first.
    bindings: one statement each.

  Raises:
    InputError: a file is missing, a line cannot be parsed, a name is not known, a macro that is read is not
      bound, or nothing reads a macro or a scope that is bound.
  """
  global _statements
  register()
  references = config_files.References()
  statements = config_files.statements(gin_files, bindings, references)
  gin.clear_config()
  gin.parse_config(_DEFAULTS)
  for name in gin_files:
    path = config_files.find(name, f"--gin_file={name}")
    with config_files.one_line(path), _suggestion(), config_files.quiet():
      gin.parse_config_file(config_files.marked(path))
  for binding in bindings:
    with config_files.one_line(f"--gin_bindings={binding}"), _suggestion():
      gin.parse_config(binding)
  _check_names(statements, references)
  with config_files.one_line("gin"):
    gin.finalize()
  _statements = statements


def _did_you_mean(name: str, known: Iterable[str]) -> str:
  close = difflib.get_close_matches(name, list(known), 1)
  return f" did you mean {close[0]}?" if close else ""


@contextlib.contextmanager
def _suggestion() -> Iterator[None]:
  """Adds to gin's complaint about an unknown name the known name that is nearest."""
  try:
    yield
  except ValueError as error:
    message, meant = str(error), ""
    if found := re.search(r"Configurable '([^']+)' doesn't have a parameter named '([^']+)'", message):
      owner, parameter = found.groups()
      meant = _did_you_mean(f"{owner}.{parameter}", [f"{owner}.{name}" for name in _parameters(owner)])
    elif found := re.search(r"No configurable matching (?:reference )?'@?(?:[^'/]+/)*([^'(]+)", message):
      meant = _did_you_mean(found[1], _registered)
    if not meant:
      raise
    first, *rest = message.split("\n")
    place = "".join(f" {line.strip()}" for line in rest if line.strip().startswith("In file"))
    raise ValueError(f"{first.rstrip('.')}{place};{meant}") from None


def _check_names(statements: Sequence[config_files.Statement], references: config_files.References) -> None:
  """Raises InputError when a macro is read that is not bound, or a macro or a scope is bound that nothing refers to.

  gin itself would ignore the second. A macro whose readers have all been bound to something else is no mistake.

  Args:
    statements: all of the configuration.
    references: what they refer to, those too that later ones replace.
  """
  in_effect = config_files.References()
  bound = [s for s in config_parser.ConfigParser(gin.config_str(), in_effect) if isinstance(s, _BINDING)]
  macros = {s.selector: s.value for s in bound if not s.arg_name}
  if missing := sorted(in_effect.macros - macros.keys()):
    remedy = f'bind with --gin_bindings="{missing[0]} = ..."'
    raise InputError(f"gin macro {', '.join(missing)}: read and not bound; {remedy}")
  for name in sorted(macros.keys() - references.macros):
    known = ", ".join(sorted(references.macros)) or "none"
    meant = _did_you_mean(name, references.macros)
    raise InputError(f"gin macro {name} = {macros[name]!r}: nothing reads it;{meant} the macros that are read: {known}")
  # What a macro constructs is called in a scope of the macro's name.
  scopes = references.scopes | {name for name, value in macros.items() if "@" in str(value)}
  for statement in statements:
    scope = statement.parsed.scope if statement.is_binding and statement.parsed.arg_name else ""
    if scope not in scopes:
      _, selector, argument, *_ = statement.parsed
      known = ", ".join(sorted(scopes - {""})) or "none"
      raise InputError(
        f"gin binding {scope}/{selector}.{argument}: nothing refers to scope {scope}; the scopes in use: {known}"
      )


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
  """Strips what gin appends to an exception on its way up: where the call came from, on further lines."""
  try:
    yield
  except (InputError, Preempted, FloatingPointError) as error:
    kind = next(kind for kind in (InputError, Preempted, FloatingPointError) if isinstance(error, kind))
    raise kind(str(error).split("\n", 1)[0]) from error


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
  for argument, source in CONFIGURED[verb].reads:
    arguments.setdefault(argument, bound_arguments(source, inspect.signature(function).parameters[argument].annotation))
  with _cause_only():
    return function(**arguments)


def require_read(verb: str, given: Collection[str]) -> None:
  """Raises InputError when a binding of the loaded configuration changes nothing; see `config_reading.require_read`."""
  config_reading.require_read(verb, given, _statements)


def dry_run(verb: str, **arguments) -> str:
  """Resolves, constructs and type-checks everything that `verb` would be called with, and does not call it.

  Of a chain, every stage gets a dry run. Returns gin's operative configuration: every parameter in effect, defaults
  included.

  Raises:
    InputError: a value is missing or of the wrong type, or a binding changes nothing that the verb reads.
  """
  _planned.clear()
  with _dry_run(), _cause_only():
    call(verb, **arguments)
    for stage in gin.get_bindings(verb).get("stages", ()):
      stage(**arguments)
  require_read(verb, arguments)
  return gin.operative_config_str(max_line_length=110)


def planned() -> tuple[Planned, ...]:
  """What the last dry run would have run: the stages of a chain, or the one verb."""
  return tuple(_planned)


def chain() -> tuple[Stage, ...]:
  """The stages that are bound to `run`, each with its name."""
  references = gin.get_bindings("run", resolve_references=False).get("stages", ())
  functions = gin.get_bindings("run").get("stages", ())
  return tuple(
    Stage(name=reference.scoped_selector, call=function, number=number, total=len(functions))
    for number, (reference, function) in enumerate(zip(references, functions), start=1)
  )


def all_arguments(stage: str) -> dict[str, Any]:
  """What a stage, e.g. 'anchor/train', would be called with, the run directory excepted."""
  scope, _, verb = stage.rpartition("/")
  with gin.config_scope(scope or None):
    return {name: bound_argument(verb, name) for name in _parameters(verb) if name != "run_dir"}


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
