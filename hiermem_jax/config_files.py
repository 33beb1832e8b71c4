"""gin files as text: where they are, what they say, what they include and import; read without running anything.

gin files are programs: gin imports the modules that they name and calls what they refer to. What is asked here is known
before that happens.
"""

import contextlib
import dataclasses
import io
import logging
import os
import pathlib
import re
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

from gin import config_parser

from hiermem_jax.errors import InputError

# Where "gin/..." starts for who is elsewhere: a wheel has the folder in the package, a checkout beside it.
_PACKAGE = pathlib.Path(__file__).resolve().parent
ROOT = str(_PACKAGE if (_PACKAGE / "gin").is_dir() else _PACKAGE.parent)
_FOUND = "hiermem_jax-found:"  # what `opened` puts before the path of an include
_NOT_A_VALUE = "malformed node or string"  # how Python's literal_eval puts it


@dataclasses.dataclass(frozen=True)
class Statement:
  """One statement of a configuration.

  Attributes:
    place: the file and the line, or the flag, for messages.
    parsed: what gin's parser makes of it.
    on_command_line: whether it was given with --gin_bindings.
  """

  place: str
  parsed: Any
  on_command_line: bool = False

  @property
  def is_binding(self) -> bool:
    """Whether it binds an argument or a macro."""
    return isinstance(self.parsed, config_parser.BindingStatement)


class References(config_parser.ParserDelegate):
  """Collects the macros and the scopes that statements refer to, while they are parsed.

  A value then holds, for every reference, its text.
  """

  def __init__(self) -> None:
    self.macros: set[str] = set()
    self.scopes = {""}

  def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> str:
    """Notes the scope and the scopes around it."""
    parts = scoped_configurable_name.split("/")[:-1]
    self.scopes |= {"/".join(parts[: depth + 1]) for depth in range(len(parts))}
    return f"@{scoped_configurable_name}{'()' if evaluate else ''}"

  def macro(self, macro_name: str) -> str:
    """Notes the macro."""
    self.macros.add(macro_name)
    return f"%{macro_name}"


@contextlib.contextmanager
def one_line(place: str) -> Iterator[None]:
  """Turns what gin and its parser raise into an InputError of one line."""
  try:
    yield
  except InputError:
    raise
  except tokenize.TokenError as error:  # an open bracket or quote; has no file
    message, (line, _) = error.args
    raise InputError(f"{place}, line {line}: {message}; close the bracket or quote") from None
  except SyntaxError as error:
    where = f"{error.filename or place}, line {error.lineno}: {(error.text or '').strip()!r}"
    if _NOT_A_VALUE in error.msg or "Unable to parse value" in error.msg:
      raise InputError(
        f"{where}: not a value; text stands in quotes ('text'), a reference is @name or @name(), a macro is %NAME"
      ) from None
    raise InputError(f"{where}: {error.msg.rstrip('.')}; correct the line") from None
  except (ValueError, OSError, TypeError, AttributeError, ImportError) as error:
    message = str(error).split("\n  In bindings string", 1)[0]  # `place` says it
    remedy = "correct the name or the line"
    if isinstance(error, ImportError):
      remedy += ", install the package, or add the folder that it is in to PYTHONPATH"
    if found := re.match(
      r"A different configurable matching '(\S+)' already exists\.", message
    ):  # then advice for notebooks
      message, remedy = f"{found[1]} is there already", "give the class another name"
    message = " ".join(message.split()).rstrip(".")
    raise InputError(f"{place}: {message}{'' if message[-1:] == '?' else ';'} {remedy}") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Silences gin's note, at each file, that the file is not in a Python package."""
  root = logging.getLogger()

  def is_other(record: logging.LogRecord) -> bool:
    return record.module != "resource_reader"

  root.addFilter(is_other)
  try:
    yield
  finally:
    root.removeFilter(is_other)


def find(name: str, what: str, beside: str | None = None) -> str:
  """The path of a gin file.

  Args:
    name: as it was given.
    what: names it, for messages.
    beside: path of the file that includes it, if one does.

  Returns:
    The first that is there of: the path from the includer's folder, from the working directory, from the checkout.

  Raises:
    InputError: there is none.
  """
  folders = [""] if beside is None else [os.path.dirname(beside), ""]
  paths = [os.path.join(folder, name) for folder in (*folders, ROOT)]  # of an absolute name, three times the name
  for path in paths:
    if os.path.isfile(path):
      return path
  places = list(dict.fromkeys(os.path.abspath(path) for path in paths))
  raise InputError(f"{what}: no such file; looked for {', '.join(places)}; correct the path")


def portable(path: str) -> str:
  """The path of a gin file for an `include` that is to hold elsewhere: from the checkout for its files, or absolute."""
  path = os.path.abspath(path)
  inside = os.path.relpath(path, ROOT)
  return path if inside.startswith(os.pardir) else inside


def statements(gin_files: Sequence[str], bindings: Sequence[str], references: References) -> list[Statement]:
  """Every statement of gin files, of what they include, and of bindings on top of them: of two, the later one holds.

  Raises:
    InputError: a file is missing or includes itself, or a statement cannot be parsed.
  """
  found = [
    statement for name in gin_files for statement in _read(find(name, f"--gin_file={name}"), references, above=())
  ]
  for binding in bindings:
    place = f"--gin_bindings={binding}"
    with one_line(place):
      given = [Statement(place, parsed, True) for parsed in config_parser.ConfigParser(binding, references)]
    if any(isinstance(statement.parsed, config_parser.IncludeStatement) for statement in given):
      raise InputError(f"{place}: a file is not given as a binding; give it with --gin_file")
    found += given
  return found


def imports(gin_files: Sequence[str], bindings: Sequence[str] = ()) -> list[str]:
  """The modules that a configuration would import, one line each, with the place that says so."""
  lines = []
  for statement in statements(gin_files, bindings, References()):
    parsed = statement.parsed
    if isinstance(parsed, config_parser.ImportStatement) and not parsed.module.startswith("__gin__"):
      lines.append(f"{statement.place}: imports {parsed.module}")
  return list(dict.fromkeys(lines))


def _read(path: str, references: References, above: tuple[str, ...]) -> Iterator[Statement]:
  """Yields the statements of a file and of what it includes; `above` are the files that include it."""
  for parsed in _parse(path, references):
    place = f"{path}, line {parsed.location.line_num}"
    if not isinstance(parsed, config_parser.IncludeStatement):
      yield Statement(place, parsed)
      continue
    included = find(parsed.filename, f"{place}: include {parsed.filename!r}", beside=path)
    chain = {os.path.realpath(file) for file in (*above, path)}
    if os.path.realpath(included) in chain:
      raise InputError(f"{place}: include {parsed.filename!r}: this file includes itself; take the line out")
    yield from _read(included, references, (*above, path))


def _parse(path: str, references: References) -> list[Any]:
  with one_line(path), open(path, encoding="utf-8") as file:
    return list(config_parser.ConfigParser(file, references))


class _Opened(io.StringIO):
  """A file's text under the file's name."""

  def __init__(self, text: str, name: str):
    super().__init__(text)
    self.name = name


def marked(path: str) -> str:
  """What gin is to open instead of `path`, so that it reads the file through `opened`."""
  return _FOUND + path


def is_marked(path: str) -> bool:
  """Whether `opened` opens it."""
  return path.startswith(_FOUND)


def opened(path: str) -> io.StringIO:
  """A gin file as gin is to read it: every include by the path where `find` finds it. `path` is marked."""
  path = path.removeprefix(_FOUND)
  with open(path, encoding="utf-8") as file:
    lines = file.readlines()
  for parsed in _parse(path, References()):
    if isinstance(parsed, config_parser.IncludeStatement):
      place = f"{path}, line {parsed.location.line_num}: include {parsed.filename!r}"
      lines[parsed.location.line_num - 1] = f"include {marked(find(parsed.filename, place, beside=path))!r}\n"
  return _Opened("".join(lines), path)
