"""What differs between two runs: their configurations, and where directories record it, their code and their data.

A side is a gin file or a run directory. Configurations are compared after everything is resolved: defaults are filled
in, macros replaced, and each scope has its own lines. So a run directory equals the gin file that it was made from.
"""

import dataclasses
import hashlib
import inspect
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gin

from hiermem_jax import config_files, config_reading, run_record
from hiermem_jax.errors import InputError
from hiermem_jax.verbs import CONFIGURED

Values = dict[str, str]
_GIVEN = "run_dir"  # by the command line, to every verb


@dataclasses.dataclass(frozen=True)
class Side:
  """One of the two.

  Attributes:
    path: as it was given.
    files: of a run directory, verb -> its complete configuration; of a gin file, "" -> the file.
  """

  path: str
  files: Mapping[str, str]

  @classmethod
  def of(cls, path: str) -> "Side":
    """Finds the configurations of a run directory or of a gin file.

    Raises:
      InputError: there are none.
    """
    if not os.path.isdir(path):
      return cls(path, {"": config_files.find(path, f"--diff {path}")})
    found = {}
    for verb in CONFIGURED.values():
      file = os.path.join(path, verb.saved_as)
      if verb.has_run_dir and os.path.isfile(file):
        name = ("run" if _binds_stages(file) else "train") if verb.trains else verb.name
        found[name] = file
    if not found:
      raise InputError(f"--diff {path}: no config.gin and no VERB.config.gin there; name a run directory or a gin file")
    return cls(path, found)

  @property
  def is_directory(self) -> bool:
    """Whether it is a run directory."""
    return "" not in self.files

  def file(self, verb: str) -> str:
    """The configuration of a verb."""
    return self.files.get(verb) or self.files[""]


def differences(a: Side, b: Side, load: Callable[[list[str]], None]) -> dict[str, list[tuple[str, str, str]]]:
  """What differs.

  Args:
    a: one side.
    b: the other.
    load: loads gin files; imports what they import.

  Returns:
    "configuration", "code" and "data", each a list of (name, value of a, value of b). A value that one side does not
    have is "". An object that one side does not have at all is one entry, "present" on the other.
  """
  configuration = [
    (verb, "present" if verb in a.files else "", "present" if verb in b.files else "")
    for verb in sorted(set(a.files) ^ set(b.files))
    if a.is_directory and b.is_directory
  ]
  for verb in _verbs(a, b):
    values = []
    for side in (a, b):
      load([side.file(verb)])
      values.append(_resolved(verb))
    configuration += _compare(*map(_with_owners, values))
  found = {"configuration": list(dict.fromkeys(configuration)), "code": [], "data": []}
  if a.is_directory and b.is_directory:
    found["code"] = _compare(_code(a.path), _code(b.path))
    found["data"] = _compare(_data(a.path), _data(b.path))
  return found


def text(a: Side, b: Side, found: Mapping[str, Iterable[tuple[str, str, str]]]) -> str:
  """The differences as a page, one line each."""
  lines: list[str] = []
  for section, entries in found.items():
    entries = list(entries)
    if entries:
      lines += [*([""] if lines else []), f"{section}: {a.path} -> {b.path}"]
    for name, before, after in entries:
      if before and after:
        lines.append(f"  {name}: {before} -> {after}")
      else:
        value = "" if "present" in (before, after) else f" ({before or after})"
        lines.append(f"  {name}{value}: only in {a.path if before else b.path}")
  return "\n".join(lines) or "no difference"


def as_json(a: Side, b: Side, found: Mapping[str, Iterable[tuple[str, str, str]]]) -> str:
  """The same as JSON."""
  sections = {
    section: [{"name": name, "a": before or None, "b": after or None} for name, before, after in entries]
    for section, entries in found.items()
  }
  return json.dumps({"a": a.path, "b": b.path, **sections}, indent=2)


def _verbs(a: Side, b: Side) -> list[str]:
  """The verbs whose configurations are compared."""
  for side, other in ((a, b), (b, a)):
    if side.is_directory:
      return [verb for verb in side.files if not other.is_directory or verb in other.files]
  if any(_binds_stages(side.file("")) for side in (a, b)):
    return ["run"]
  return [verb.name for verb in CONFIGURED.values() if verb.has_run_dir and verb.name != "run"]


def _binds_stages(file: str) -> bool:
  """Whether a gin file is of a chain."""
  found = config_files.statements([file], [], config_files.References())
  return any(s.is_binding and s.parsed.selector == "run" and s.parsed.arg_name == "stages" for s in found)


def _resolved(verb: str) -> Values:
  """The value of every argument of everything that a verb calls, as text."""
  values = {}
  for (scope, name), bound in config_reading.read_by(verb, (_GIVEN,)).calls.items():
    if name.startswith("gin."):
      continue
    owner = "/".join(filter(None, (scope, name.rpartition(".")[2])))
    for argument, parameter in inspect.signature(gin.get_configurable(name)).parameters.items():
      if argument in bound:
        values[f"{owner}.{argument}"] = _plain(bound[argument][1])
      elif parameter.default is not parameter.empty:
        values[f"{owner}.{argument}"] = repr(parameter.default)
      elif argument != _GIVEN:
        values[f"{owner}.{argument}"] = "not bound"
  return values


def _plain(value: Any) -> str:
  """A bound value as text, with what its macros stand for."""
  if isinstance(value, tuple | list):
    inside = ", ".join(map(_plain, value))
    return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
  if isinstance(value, gin.config.ConfigurableReference) and value.configurable.selector == config_reading.MACRO:
    name = "/".join(value.scopes)
    return _plain(gin.query_parameter(f"{name}/{config_reading.MACRO}.value"))
  return repr(value)


def _with_owners(values: Values) -> Values:
  """The values, and a line for each object that is constructed."""
  return {name.rpartition(".")[0]: "present" for name in values} | values


def _compare(a: Values, b: Values) -> list[tuple[str, str, str]]:
  differing = []
  for name in sorted(a.keys() | b.keys()):
    before, after = a.get(name, ""), b.get(name, "")
    owner = name.rpartition(".")[0]
    if before != after and (owner in a) == (owner in b):  # otherwise the owner's line says it
      differing.append((name, before, after))
  return differing


def _code(directory: str) -> Values:
  """What the newest start in a run directory recorded of the code."""
  records = run_record.read(directory)
  if not records:
    return {}
  newest = records[-1]
  facts = {name: newest.get(name) for name in ("version", "code", "commit", "dirty", "python")}
  return {name: str(value) for name, value in (facts | newest.get("packages", {})).items() if value is not None}


def _data(directory: str) -> Values:
  """Fingerprints of the packed datasets in a run directory, and of what its newest checkpoints were trained on."""
  root, values = pathlib.Path(directory), {}
  for depth in ("*", "*/*", "*/*/*"):
    for path in sorted(root.glob(f"{depth}/manifest.json")):
      content = path.read_bytes()
      values[f"{path.parent.relative_to(root)} dataset"] = hashlib.sha256(content).hexdigest()[:16]
      values |= _fingerprints(path.parent.relative_to(root), json.loads(content))
  for checkpoints in sorted([*root.glob("checkpoints"), *root.glob("*/checkpoints")]):
    steps = [path for path in checkpoints.glob("*/metadata/metadata") if path.parts[-3].isdigit()]
    if steps:
      newest = max(steps, key=lambda path: int(path.parts[-3]))
      values |= _fingerprints(checkpoints.relative_to(root), json.loads(newest.read_text()))
  return values


def _fingerprints(place: pathlib.Path, found: Mapping[str, Any]) -> Values:
  """The entries of a JSON object that are fingerprints, under the place where it stands."""
  kinds = ("tree", "tokenizer")
  return {f"{place} {kind}": str(found[f"{kind}_fingerprint"]) for kind in kinds if found.get(f"{kind}_fingerprint")}
