"""What a command is going to do in a run directory: its stages, what they read and make, and with which settings.

`stages.json` in the directory remembers them. A stage that has finished, or a training that has a checkpoint, keeps the
settings that decide its result (see `run_identity`); a stage that has not started or that failed may be given others.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hiermem_jax import files, run_identity
from hiermem_jax.errors import InputError
from hiermem_jax.run_identity import Setting
from hiermem_jax.verbs import VERBS

NAME = "stages.json"


@dataclasses.dataclass(frozen=True)
class Planned:
  """A stage that a command is going to run: a verb with all of its arguments, defaults included.

  Attributes:
    name: the verb, behind its scope where it has one, e.g. 'cotrain/train'.
    verb: name of the verb.
    arguments: by name.
    defaults: of the arguments that have one.
  """

  name: str
  verb: str
  arguments: Mapping[str, Any]
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def key(self) -> str:
    """Names what it makes: the verb and where it goes, relative to the run directory, e.g. 'train cotrain'."""
    place = self.arguments["tokenizer" if self.verb == "train_tokenizer" else "directory"]
    return f"{self.verb} {os.path.normpath(place)}"

  def outputs(self) -> tuple[str, ...]:
    """Files and directories that it makes, as bound: the one that says whether there is a result comes first."""
    given = self.arguments
    directory = given.get("directory", "")
    if self.verb == "train_tokenizer":
      return (given["tokenizer"],)
    if self.verb == "cluster":
      return (directory, given["tokenizer"])
    if self.verb in ("train", "merge"):
      return (os.path.join(directory, "checkpoints"), os.path.join(directory, "best"))
    return (directory,)

  def inputs(self) -> tuple[str, ...]:
    """Files and directories that it reads, as bound; sources of records are not among them."""
    return tuple(path for _, path in self.named_inputs())

  def named_inputs(self) -> Iterator[tuple[str, str]]:
    """(the name that it is bound to, path) of each input."""
    given = self.arguments
    if self.verb == "prepare":
      yield from ((f"prepare.{name}", given[name]) for name in ("tokenizer", "tree") if given[name] is not None)
    elif self.verb == "cluster" and given["tokenizer_vocab_size"] is None:
      yield "cluster.tokenizer", given["tokenizer"]
    elif self.verb == "train":
      yield "train.dataset", given["dataset"]
      if given["validation"] is not None:
        yield from given["validation"].datasets
      for name in ("init_from", "init_bank_from"):
        if getattr(given["run"], name) is not None:
          yield f"train.{name}", getattr(given["run"], name)
    elif self.verb == "merge":
      yield from (("merge.subtrees", name) for name in given["subtrees"])
      if given["generic"] is not None:
        yield "merge.generic", given["generic"]
    elif self.verb in ("evaluate", "evaluate_tasks"):
      yield "ModelFiles.directory", given["model"].directory
      yield "ModelFiles.tokenizer", given["model"].tokenizer
      if self.verb == "evaluate":
        yield "evaluate.validation", given["validation"]
        if given["baseline"] is not None:
          yield "evaluate.baseline", given["baseline"]

  def settings(self) -> dict[str, Setting]:
    """All settings by the names that they are bound to; an object comes before what is in it."""
    found: dict[str, Setting] = {}
    for name, value in self.arguments.items():
      if name != "run_dir":
        default = _text(self.defaults[name]) if name in self.defaults else None
        _flatten(found, f"{self.verb}.{name}", Setting(_text(value), default, "", (name,)), value)
    return found


def _flatten(found: dict[str, Setting], name: str, setting: Setting, value: Any, place: str = "") -> None:
  """Adds a value to `found`; of a dataclass its fields, by its class and, where that is taken, also by its place."""
  found[f"{place}{name}"] = setting
  parts: Iterable[tuple[str | int, Any]] = enumerate(value) if isinstance(value, tuple) else [("", value)]
  for number, part in parts:
    if not _is_object(part):
      continue
    kind, path = type(part).__name__, setting.path if number == "" else (*setting.path, number)
    whole = VERBS.get(name.partition(".")[0])
    own = whole is not None and whole.takes_fields_of == name.partition(".")[2]
    for field in dataclasses.fields(part):
      short = f"{whole.name}.{field.name}" if own and whole else f"{kind}.{field.name}"
      inside = f"{place}{name}{number if number == '' else f'[{number}]'}: " if short in found else place
      held = getattr(part, field.name)
      _flatten(found, short, Setting(_text(held), _default(field), f"{place}{name}", (*path, field.name)), held, inside)


def _text(value: Any) -> str:
  """A value as the record has it."""
  if isinstance(value, tuple) and any(map(_is_object, value)):
    return f"({', '.join(map(_text, value))},)"
  return f"@{type(value).__name__}()" if _is_object(value) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _is_object(value: Any) -> bool:
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _default(field: dataclasses.Field) -> str | None:
  if field.default_factory is not dataclasses.MISSING:
    return _text(field.default_factory())
  return None if field.default is dataclasses.MISSING else _text(field.default)


def is_below(path: str, directory: str) -> bool:
  """Whether a path is a directory or in it; both as bound, so relative to the run directory or absolute."""
  path, directory = os.path.normpath(path), os.path.normpath(directory)
  return path == directory or path.startswith(directory + os.sep) or directory == "."


def makes(stage: Planned, path: str) -> bool:
  """Whether a stage makes what another one reads at `path`: a file, a dataset, or the directory of a training."""
  if stage.verb in ("train", "merge"):
    made = {os.path.normpath(os.path.dirname(output)) for output in stage.outputs()}
    return os.path.normpath(path) in {*made, os.path.normpath(os.path.join(*made, "best"))}
  return any(is_below(path, output) for output in stage.outputs())


class Record:
  """What `stages.json` of a run directory says."""

  def __init__(self, run_dir: str):
    """Reads it; a directory without one has no stages."""
    self._run_dir, self._path = run_dir, os.path.join(run_dir, NAME)
    self._held: dict[str, dict[str, Any]] = files.read_json(self._path) if os.path.exists(self._path) else {}

  def covers(self, stages: Sequence[Planned]) -> bool:
    """Whether the settings are known of all that is there of these stages' results."""
    making = [stage for stage in stages if not VERBS[stage.verb].replaces]
    return all(stage.key in self._held or not self._is_there(stage.outputs()[0]) for stage in making)

  def check(self, stages: Sequence[Planned]) -> None:
    """Raises InputError when what one of the stages has made here does not follow from its settings any more."""
    for stage in stages:
      self._require_same(stage, stages)

  def changes(self, stages: Sequence[Planned]) -> dict[str, dict[str, tuple[str, str]]]:
    """By the names of stages that have been begun here before, what is bound to another value now, and both values."""
    found = {stage.name: self._changed(stage) for stage in stages if stage.key in self._held}
    return {name: changed for name, changed in found.items() if changed}

  def begin(self, stages: Sequence[Planned]) -> None:
    """Writes down the stages that a command is about to run, after `check`."""
    for stage in stages:
      settings = {name: setting.value for name, setting in stage.settings().items()}
      finished = self._is_done(stage) and not any(map(run_identity.is_past, self._changed(stage)))
      about = {"name": stage.name, "made": stage.outputs()[0], "settings": settings}
      self._held[stage.key] = about | {"finished": finished}
    self._write()

  def finish(self, key: str) -> None:
    """Writes down that a stage has finished."""
    if key in self._held:
      self._held[key]["finished"] = True
      self._write()

  def discard(self) -> None:
    """Removes the file where no stage has left anything."""
    if os.path.exists(self._path) and not any(self._is_there(entry["made"]) for entry in self._held.values()):
      os.remove(self._path)

  def _write(self) -> None:
    files.write_text(self._path, json.dumps(self._held, indent=1) + "\n")

  def _is_there(self, made: str) -> bool:
    path = os.path.join(self._run_dir, made)
    if os.path.isdir(path):
      return any(name[0] != "." and "orbax-checkpoint-tmp" not in name for name in os.listdir(path))
    return os.path.exists(path)

  def _is_done(self, stage: Planned) -> bool:
    return self._held.get(stage.key, {}).get("finished", False) and self._is_there(stage.outputs()[0])

  def _changed(self, stage: Planned) -> dict[str, tuple[str, str]]:
    return run_identity.changed(self._held[stage.key]["settings"], stage.settings()) if stage.key in self._held else {}

  def _require_same(self, stage: Planned, stages: Sequence[Planned]) -> None:
    if stage.key not in self._held or VERBS[stage.verb].replaces:
      return
    if not (self._is_done(stage) or (stage.verb == "train" and self._is_there(stage.outputs()[0]))):
      return
    changed = self._changed(stage)
    decisive = next((name for name in changed if not run_identity.is_operation(name)), None)
    if decisive is not None:
      reason = f"{run_identity.short(decisive)} decides what it makes"
    elif past := {name: values[0] for name, values in changed.items() if run_identity.is_past(name)}:
      decisive, reason = next(iter(past)), self._other_past(stage, stages, past)
    if decisive is None or not reason:
      return
    before, after = (value if value == "nothing" else f"{decisive} = {value}" for value in changed[decisive])
    again = [path for path in self._made_of(stage, stages) if os.path.exists(os.path.join(self._run_dir, path))]
    raise InputError(
      f"{self._run_dir}: {stage.name} has been run here with another configuration (there: {before!r}, now: {after!r}):"
      f" {reason}; bind that again, use another --run_dir, or delete {', '.join(again)} there, which would be made"
      " again"
    )

  def _other_past(self, stage: Planned, stages: Sequence[Planned], past: Mapping[str, str]) -> str:
    """Why a training cannot go on with another schedule; "" where it can.

    Args:
      stage: the training.
      stages: all that a command is about to run.
      past: the names of its schedule that are changed, with the values that they had.
    """
    run, done, settings = stage.arguments["run"], self._steps(stage), stage.settings()
    if run.steps < done:
      return f"{done} steps are done"
    if other := run_identity.other_rate(run, {settings[name].path[1:]: text for name, text in past.items()}, done):
      return "step {} had the learning rate {:.6g} and would have {:.6g}".format(*other)
    for later in self._readers_of(stage, stages)[1:]:
      if run.steps != done and not VERBS[later.verb].replaces and self._is_there(later.outputs()[0]):
        return f"{later.name} has begun with what it made"
    return ""

  def _steps(self, stage: Planned) -> int:
    """Steps that a training has done: those of its newest checkpoint."""
    path = os.path.join(self._run_dir, stage.outputs()[0])
    return max((int(name) for name in os.listdir(path) if name.isdigit()), default=0) if os.path.isdir(path) else 0

  def _made_of(self, stage: Planned, stages: Sequence[Planned]) -> list[str]:
    """What a stage makes, and what later ones make of that."""
    paths: Iterable[str] = (path for each in self._readers_of(stage, stages) for path in each.outputs())
    return list(dict.fromkeys(map(os.path.normpath, paths)))

  def _readers_of(self, stage: Planned, stages: Sequence[Planned]) -> list[Planned]:
    """A stage, and the later ones that read what it makes, or what those make."""
    chosen = [stage]
    for other in stages[stages.index(stage) + 1 :]:
      if any(makes(earlier, path) for path in other.inputs() for earlier in chosen):
        chosen.append(other)
    return chosen
