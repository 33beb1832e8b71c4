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
import pathlib
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence

import gin
from beartype import BeartypeConf
from beartype.door import is_bearable
from gin import config_parser

from hiermem_jax.errors import InputError

# Where "gin/..." starts for who is not in the checkout's root.
_ROOT = str(pathlib.Path(__file__).resolve().parent.parent)
_NUMBERS = BeartypeConf(is_pep484_tower=True)  # an int is welcome where a float is expected
# Defaults that gin constructs, so that what is bound to them counts.
_DEFAULTS = """
cluster.encoder = @LsaEncoder()
cluster.beam = @BeamConfig()
prepare.beam = @BeamConfig()
"""
_rehearsing = False


def _checked(target: Callable, name: str, is_verb: bool = False) -> Callable:
  """`target` behind a check of every argument against its annotation; a verb's body is skipped in a rehearsal."""
  signature = inspect.signature(target)

  @functools.wraps(target)
  def wrapper(*args, **kwargs):
    bound = signature.bind_partial(*args, **kwargs).arguments
    required = [p.name for p in signature.parameters.values() if p.default is p.empty]
    if missing := [f"{name}.{argument}" for argument in required if argument not in bound]:
      remedy = f'bind in a gin file or with --gin_bindings="{missing[0]} = ..."'
      raise InputError(f"{', '.join(missing)}: not bound; {remedy}")
    for argument, value in bound.items():
      _check_type(f"{name}.{argument}", value, signature.parameters[argument].annotation)
    return None if is_verb and _rehearsing else target(*args, **kwargs)

  wrapper.__signature__ = signature
  return wrapper


def _check_type(name: str, value: object, hint: object) -> None:
  # beartype looks at one element of a tuple, drawn at random: so at each as a tuple[X, ...] of its own.
  parts = [value, *((element,) for element in value)] if isinstance(value, tuple) else [value]
  if all(is_bearable(part, hint, conf=_NUMBERS) for part in parts):
    return
  shown = hint.__name__ if isinstance(hint, type) else re.sub(r"\b(\w+\.)+(?=[A-Z])", "", str(hint))
  if callable(value):
    raise InputError(f"{name} = @{value.__name__}: must be {shown}; write @{value.__name__}() to construct one")
  raise InputError(f"{name} = {value!r}: must be {shown}; bind such a value")


@functools.cache
def register() -> None:
  """Makes the verbs and the constructors they take known to gin, by their own names, and `include` find the parts."""
  from hiermem_jax import (
    cluster,
    compile_pod,
    describe,
    evaluate,
    evaluate_tasks,
    merge,
    prepare,
    quickstart,
    train,
    train_tokenizer,
  )
  from hiermem_jax.data.corpus.runner import BeamConfig
  from hiermem_jax.data.sources import JsonlSource, ParquetSource, TextSource, TfdsSource, WorldSource
  from hiermem_jax.data.world.generate import WorldConfig
  from hiermem_jax.models.config import AnchorConfig, MemoryConfig
  from hiermem_jax.parallel import MeshConfig
  from hiermem_jax.retrieval.encoders import LsaEncoder, SentenceTransformer
  from hiermem_jax.training.optimizer import OptimizerConfig

  gin.add_config_file_search_path(_ROOT)
  constructors = (AnchorConfig, MemoryConfig, MeshConfig, OptimizerConfig, LsaEncoder, WorldConfig)
  constructors += (BeamConfig, SentenceTransformer, JsonlSource, ParquetSource, TextSource, TfdsSource, WorldSource)
  for constructor in constructors:
    name = constructor.__name__
    gin.external_configurable(_checked(constructor, name), name, module="hiermem_jax")
  verbs = (cluster, compile_pod, describe, evaluate, evaluate_tasks, merge, prepare, quickstart, train, train_tokenizer)
  for module in verbs:
    name = module.__name__.rsplit(".", 1)[-1]
    verb = _checked(getattr(module, name), name, is_verb=True)
    gin.external_configurable(verb, name, module="hiermem_jax")


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
def _rehearsal():
  global _rehearsing
  _rehearsing = True
  try:
    yield
  finally:
    _rehearsing = False


@contextlib.contextmanager
def _cause_only() -> Iterator[None]:
  """Strips what gin appends to an InputError on its way up: where the call came from, on further lines."""
  try:
    yield
  except InputError as error:
    raise InputError(str(error).split("\n", 1)[0]) from error


def call(verb: str, **arguments):
  """Calls a verb with its bindings; `arguments` come from the command line."""
  with _cause_only():
    return gin.get_configurable(verb)(**arguments)


def rehearse(verb: str, **arguments) -> str:
  """Resolves, constructs and type-checks everything that `verb` would be called with, without running it.

  For a chain, every stage is rehearsed. Returns gin's operative configuration: every parameter in effect, defaults
  included.
  """
  with _rehearsal(), _cause_only():
    gin.get_configurable(verb)(**arguments)
    for stage in gin.get_bindings(verb).get("stages", ()):
      stage(**arguments)
  return gin.operative_config_str(max_line_length=110)


def bound_argument(verb: str, argument: str):
  """The value bound to a verb's argument, constructed and checked; its default, or else None, when nothing is bound."""
  with _cause_only():
    bindings = gin.get_bindings(verb)
  parameter = inspect.signature(gin.get_configurable(verb)).parameters[argument]
  if argument not in bindings:
    return None if parameter.default is parameter.empty else parameter.default
  _check_type(f"{verb}.{argument}", bindings[argument], parameter.annotation)
  return bindings[argument]


def save(path: str, text: str, replace: bool = False) -> None:
  """Writes a run's configuration, or checks that the one already there is the same; with `replace` writes in any case.

  Of several processes the first writes, and the others check that they were given the same.

  Raises:
    InputError: the directory belongs to a run of another configuration, or the processes do not share it.
  """
  from hiermem_jax.parallel import distributed

  distributed.on_first(lambda: _write_or_compare(path, text, replace))
  distributed.together(lambda: _require_same(path, text))


def _write_or_compare(path: str, text: str, replace: bool) -> None:
  if os.path.exists(path) and not replace:
    _require_same(path, text)
    return
  os.makedirs(os.path.dirname(path), exist_ok=True)
  temporary = f"{path}.tmp"
  with open(temporary, "w", encoding="utf-8") as file:
    file.write(text)
  os.replace(temporary, path)


def _require_same(path: str, text: str) -> None:
  if not os.path.exists(path):
    raise InputError(f"{path}: written by the first process and not here; --run_dir must be a directory that all share")
  with open(path, encoding="utf-8") as file:
    stored = file.read()
  if stored != text:
    before, now = _first_difference(stored, text)
    raise InputError(
      f"{path}: this directory is of a run with another configuration (there: {before!r}, now: {now!r}); use another"
      " --run_dir or delete this one"
    )


def discard(path: str) -> None:
  """Removes a run's configuration where it is all that the run has written, so that a corrected one may follow."""
  directory, name = os.path.split(path)
  if os.listdir(directory) == [name]:
    os.remove(path)


def _first_difference(stored: str, text: str) -> tuple[str, str]:
  old, new = stored.splitlines(), text.splitlines()
  removed = [line for line in old if line not in new]
  added = [line for line in new if line not in old]
  return (removed[0] if removed else "nothing", added[0] if added else "nothing")
