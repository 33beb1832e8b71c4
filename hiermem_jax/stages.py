"""Which stages of a chain a command runs: what --stages says."""

import dataclasses
import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hiermem_jax import files
from hiermem_jax.errors import InputError
from hiermem_jax.verbs import VERBS, Stage


def chosen(chain: Sequence[Stage], text: str | None) -> tuple[Stage, ...]:
  """The stages that `--stages=TEXT` names, in the order of the chain; all of them for None.

  TEXT is a list of stages with commas. A stage is named by its scope and verb ('cotrain/train'), or by one of the two
  where only one stage has it ('cotrain', 'prepare'). Two dots behind a name ('cotrain..') add all stages after it.

  Raises:
    InputError: a name is that of no stage, or of several.
  """
  if text is None:
    return tuple(chain)
  numbers: set[int] = set()
  for item in text.split(","):
    name = item.strip().removesuffix("..")
    number = chain.index(_named(chain, name, text))
    numbers.update(range(number, len(chain)) if item.strip().endswith("..") else (number,))
  return tuple(chain[number] for number in sorted(numbers))


def _named(chain: Sequence[Stage], name: str, text: str) -> Stage:
  found = [stage for stage in chain if stage.name == name] or [
    stage for stage in chain if name and name in (stage.verb, stage.name.rpartition("/")[0])
  ]
  if len(found) == 1:
    return found[0]
  names = [stage.name for stage in chain]
  if found:
    raise InputError(f"--stages={text}: {name} is {', '.join(stage.name for stage in found)}; name one of them")
  close = difflib.get_close_matches(name, [part for whole in names for part in (whole, *whole.split("/"))], 1)
  meant = f" did you mean {close[0]}?" if close else ""
  raise InputError(f"--stages={text}: {name!r} is no stage of this run;{meant} The stages are {', '.join(names)}")


def require_made(
  chain: Sequence[Stage], selected: Sequence[Stage], run_dir: str, arguments: Callable[[str], Mapping[str, Any]]
) -> None:
  """Checks that what the selected stages read of earlier ones that are left out is there and finished.

  Args:
    chain: all stages.
    selected: those that will run.
    run_dir: of the run.
    arguments: from the name of a stage to the arguments that it would be called with.

  Raises:
    InputError: something is missing.
  """
  for stage in selected:
    read = {os.path.normpath(path) for path in _strings(arguments(stage.name))}
    for other in chain[: chain.index(stage)]:
      if other in selected or not (made := VERBS[other.verb].made):
        continue
      given = arguments(other.name)
      directory = os.path.normpath(given["directory"])
      if not any(path == directory or path.startswith(directory + os.sep) for path in read):
        continue
      path = os.path.join(run_dir, directory)
      if not any((files.as_path(path) / name.format(**given)).exists() for name in made):
        raise InputError(
          f"{path}: {stage.name} reads it, and {other.name}, which makes it, has not finished here; add {other.name} to"
          " --stages"
        )


def _strings(value: Any) -> Iterator[str]:
  """Strings in an argument, also those in mappings, tuples and the fields of dataclasses."""
  if isinstance(value, str):
    yield value
  elif dataclasses.is_dataclass(value):
    for field in dataclasses.fields(value):
      yield from _strings(getattr(value, field.name))
  elif isinstance(value, Mapping):
    for item in value.values():
      yield from _strings(item)
  elif isinstance(value, tuple | list):
    for item in value:
      yield from _strings(item)
