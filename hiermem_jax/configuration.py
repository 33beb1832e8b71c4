"""gin at the edge: what can be bound, how a configuration is loaded, checked and written down.

The library below is plain Python; this module registers its constructors and the verbs with gin, wrapped so that every
bound value is checked against its annotation. A configuration is checked by *rehearsing* the verb: every argument is
resolved, constructed and type-checked, and the body is not run. What the rehearsal leaves behind is gin's operative
configuration, which is saved with the run, and is the text that the golden files of the named runs hold.
"""

import contextlib
import functools
import inspect
import os
import re
from collections.abc import Callable, Sequence

import gin
from beartype import BeartypeConf
from beartype.door import is_bearable
from gin import config_parser

from hiermem_jax.errors import InputError

_NUMBERS = BeartypeConf(is_pep484_tower=True)  # an int is welcome where a float is expected
_rehearsing = False


def _checked(target: Callable, name: str, is_verb: bool = False) -> Callable:
  """`target` behind a check of every argument against its annotation; a verb's body is skipped in a rehearsal."""
  signature = inspect.signature(target)

  @functools.wraps(target)
  def wrapper(*args, **kwargs):
    try:
      bound = signature.bind(*args, **kwargs)
    except TypeError as error:
      raise InputError(f"{name}: {error}; bind it in a gin file or with --gin_bindings=\"{name}.ARGUMENT = …\"") from None
    for argument, value in bound.arguments.items():
      hint = signature.parameters[argument].annotation
      if not is_bearable(value, hint, conf=_NUMBERS):
        shown = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint)
        raise InputError(f"{name}.{argument} = {value!r}: is a {type(value).__name__}, must be {shown}; bind such a value")
    return None if is_verb and _rehearsing else target(*args, **kwargs)

  wrapper.__signature__ = signature
  return wrapper


@functools.cache
def register() -> None:
  """Makes the verbs and the constructors they take known to gin, by their own names."""
  from hiermem_jax import cluster, describe, evaluate, prepare, quickstart, train
  from hiermem_jax.data.sources import JsonlSource, TfdsSource, WorldSource
  from hiermem_jax.data.world import WorldConfig
  from hiermem_jax.models.config import AnchorConfig, MemoryConfig
  from hiermem_jax.retrieval.encoder import LsaEncoder
  from hiermem_jax.training.optimizer import OptimizerConfig

  constructors = (AnchorConfig, MemoryConfig, OptimizerConfig, LsaEncoder, WorldConfig)
  constructors += (JsonlSource, TfdsSource, WorldSource)
  for constructor in constructors:
    name = constructor.__name__
    gin.external_configurable(_checked(constructor, name), name, module="hiermem_jax")
  for module in (cluster, describe, evaluate, prepare, quickstart, train):
    name = module.__name__.rsplit(".", 1)[-1]
    verb = _checked(getattr(module, name), name, is_verb=True)
    gin.external_configurable(verb, name, module="hiermem_jax")


def _one_line(error: BaseException) -> str:
  return re.sub(r"\s+", " ", str(error)).strip()


def load(gin_files: Sequence[str], bindings: Sequence[str]) -> None:
  """Parses gin files and bindings on top of them.

  Raises:
    InputError: a file is missing, a line cannot be parsed, a name is not known, or a macro is bound and never read.
  """
  register()
  gin.clear_config()
  for path in gin_files:
    if not os.path.isfile(path):
      raise InputError(f"--gin_file={path}: no such file; paths are relative to {os.getcwd()}")
  try:
    gin.parse_config_files_and_bindings(list(gin_files), list(bindings))
  except (ValueError, SyntaxError, OSError, TypeError, AttributeError) as error:
    raise InputError(f"gin: {_one_line(error)}; correct the name or the line") from None
  _check_macros(gin.config_str())


class _References(config_parser.ParserDelegate):
  """Collects the macros that a configuration reads."""

  def __init__(self):
    self.macros = set()

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return scoped_configurable_name

  def macro(self, macro_name):
    self.macros.add(macro_name)
    return macro_name


def _check_macros(text: str) -> None:
  """Raises InputError when `text` binds a macro that nothing in it reads (gin itself would ignore the misspelling)."""
  references = _References()
  bound = {}
  for statement in config_parser.ConfigParser(text, references):
    if isinstance(statement, config_parser.BindingStatement) and not statement.arg_name:
      bound[statement.selector] = statement.value
  for name, value in bound.items():
    if name not in references.macros:
      known = ", ".join(sorted(references.macros)) or "none"
      raise InputError(f"gin macro {name} = {value!r}: nothing reads it; the macros that are read: {known}")


@contextlib.contextmanager
def _rehearsal():
  global _rehearsing
  _rehearsing = True
  try:
    yield
  finally:
    _rehearsing = False


def call(verb: str, **arguments):
  """Calls a verb with its bindings; `arguments` come from the command line."""
  try:
    return gin.get_configurable(verb)(**arguments)
  except (InputError, TypeError, ValueError) as error:
    # gin appends where the call came from to the message, on further lines; the cause is the first.
    cause = str(error).split("\n", 1)[0]
    if isinstance(error, InputError):
      raise InputError(cause) from error
    raise


def rehearse(verb: str, **arguments) -> str:
  """Resolves, constructs and type-checks everything that `verb` would be called with, without running it.

  For a chain, every stage is rehearsed. Returns gin's operative configuration: every parameter in effect, defaults
  included.
  """
  with _rehearsal():
    call(verb, **arguments)
    stages = gin.get_bindings(verb).get("stages", ())
    for stage in stages:
      stage(**arguments)
  return gin.operative_config_str(max_line_length=110)


def bound_argument(verb: str, argument: str):
  """The value bound to a verb's argument, constructed; None when nothing is bound."""
  return gin.get_bindings(verb).get(argument)


def save(path: str, text: str) -> None:
  """Writes a run's configuration, or checks that the one already there is the same.

  Raises:
    InputError: the directory belongs to a run of another configuration.
  """
  if os.path.exists(path):
    with open(path, encoding="utf-8") as file:
      stored = file.read()
    if stored != text:
      before, now = _first_difference(stored, text)
      raise InputError(
        f"{path}: this directory is of a run with another configuration (there: {before!r}, now: {now!r}); use another"
        " --run_dir or delete this one"
      )
    return
  os.makedirs(os.path.dirname(path), exist_ok=True)
  temporary = f"{path}.tmp"
  with open(temporary, "w", encoding="utf-8") as file:
    file.write(text)
  os.replace(temporary, path)


def _first_difference(stored: str, text: str) -> tuple[str, str]:
  old, new = stored.splitlines(), text.splitlines()
  removed = [line for line in old if line not in new]
  added = [line for line in new if line not in old]
  return (removed[0] if removed else "nothing", added[0] if added else "nothing")
