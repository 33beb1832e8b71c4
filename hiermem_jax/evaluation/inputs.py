"""What an evaluation was made of, so that it is not made again of the same."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from hiermem_jax import files
from hiermem_jax.data.sources import Source
from hiermem_jax.data.sources.files import FileSource
from hiermem_jax.evaluation.config import ModelFiles
from hiermem_jax.parallel import distributed, hosts
from hiermem_jax.training.checkpoint import DIRECTORY

_NAME = "inputs.json"
# Of a directory, the files that hold digests of everything else in it.
_DESCRIBING = ("manifest.json", "tree.json", "encoder/encoder.json")


def describe(run_dir: str, model: ModelFiles, directories: Mapping[str, str | None], **settings: Any) -> dict[str, Any]:
  """The inputs of an evaluation, JSON.

  Args:
    run_dir: where relative paths start.
    model: with its tree and its tokenizer.
    directories: what else is read, by name: trainings and packed datasets; None: nothing.
    **settings: all other arguments of the verb; sources are among them.
  """
  read = {"model": model.directory, "tree": model.tree, "tokenizer": model.tokenizer, **directories}
  return {
    "code": hosts.facts()["hiermem_jax"],
    "read": {name: None if path is None else _contents(os.path.join(run_dir, path)) for name, path in read.items()},
    "settings": {name: repr(value) for name, value in settings.items()}
    | {"read": read, "bank_dtype": model.bank_dtype},
    "sources": {name: source_state(value) for name, value in settings.items() if isinstance(value, Source)},
  }


def source_state(source: Source) -> list[Any]:
  """What says that a source still gives the same records, JSON: its settings; of local files also size and time."""
  found = source.files() if isinstance(source, FileSource) else []
  stats = {path: os.stat(path) for path in found if "://" not in path}
  return [repr(source), *([path, *_size_and_time(stats.get(path))] for path in found)]


def _size_and_time(stat: os.stat_result | None) -> tuple[int, ...]:
  return () if stat is None else (stat.st_size, stat.st_mtime_ns)


def _contents(path: str) -> dict[str, str]:
  """Digests of the files at a path that stand for all that is there: a file, a dataset, a tree, a newest checkpoint."""
  names = list(_DESCRIBING)
  checkpoints = files.as_path(path) / DIRECTORY
  if steps := [entry.name for entry in checkpoints.iterdir() if entry.name.isdigit()] if checkpoints.is_dir() else []:
    names.append(f"{DIRECTORY}/{max(steps, key=int)}/metadata/metadata")  # which holds a digest of every item
  found = {"": files.as_path(path)} | {name: files.as_path(path) / name for name in names}
  return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in found.items() if file.is_file()}


def is_made_of(directory: str, inputs: Mapping[str, Any]) -> bool:
  """Whether the report in a directory was made of these inputs; every process must ask, the first one looks."""

  def same() -> bool:
    there = all(os.path.exists(os.path.join(directory, name)) for name in (_NAME, "report.json", "report.png"))
    return there and files.read_json(os.path.join(directory, _NAME)) == inputs

  found: list[bool] = []
  distributed.on_first(lambda: found.append(same()))
  return bool(distributed.from_first(int(any(found))))


def forget(directory: str) -> None:
  """Comes before a report is replaced."""
  files.as_path(os.path.join(directory, _NAME)).unlink(missing_ok=True)


def remember(directory: str, inputs: Mapping[str, Any]) -> None:
  """Comes after a report has been written."""
  files.write_json(os.path.join(directory, _NAME), inputs, indent=1)
