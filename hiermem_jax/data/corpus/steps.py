"""What the pipelines of `cluster` and `prepare` share: passes over parts, inputs of directories, cached objects."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam

from hiermem_jax import files
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.sources import Source
from hiermem_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.encoders import Encoder, load_encoder
from hiermem_jax.retrieval.retriever import Retriever, load_retriever


def run_over(items: Sequence[Any], task: beam.DoFn, runner: BeamConfig) -> None:
  """Runs a task on each item, in parallel. The task writes files and yields nothing."""
  runner.run(lambda p: p | beam.Create(items) | beam.Reshuffle() | beam.ParDo(task), num_units=len(items))


def claim(directory: str, inputs: dict[str, Any], defaults: Mapping[str, Any] = {}) -> None:  # noqa: B006 (only read)
  """Marks a directory as holding unfinished work on these inputs.

  The first call writes `directory/inputs.json`; later calls compare with it, so that only work on equal inputs goes on.

  Args:
    directory: of the work.
    inputs: what it is a function of.
    defaults: see `require_same_inputs`.

  Raises:
    InputError: the directory holds work on other inputs.
    OSError: the file cannot be written.
  """
  path = files.as_path(directory) / "inputs.json"
  if path.exists():
    require_same_inputs(directory, files.read_json(path), inputs, defaults)
  else:
    files.write_json(path, inputs)


def require_same_inputs(
  directory: str,
  held: dict[str, Any],
  inputs: dict[str, Any],
  defaults: Mapping[str, Any] = {},  # noqa: B006 (only read)
) -> None:
  """Raises InputError naming the first input in which `held`, read from a file, and `inputs` differ.

  `defaults` are those of settings: what an earlier version wrote lacks the ones that it did not have.
  """
  held = {name: value for name, value in json.loads(json.dumps(dict(defaults))).items() if name in inputs} | held
  for name in sorted(held.keys() | inputs.keys()):
    if held.get(name) != inputs.get(name):
      raise InputError(
        f"{directory} was made with {name} {held.get(name)!r}, asked for is {inputs.get(name)!r}: give another"
        " directory or delete this one"
      )


def part_name(number: int, kind: str) -> str:
  """Name of a file of one part, e.g. part-00012.json."""
  return f"part-{number:05d}.{kind}"


def source_repr(source: Source) -> str:
  """The `repr` of a source, which stands for the documents in the records of what was made of them.

  Raises:
    InputError: the source's class has no `repr` of its own.
  """
  text = repr(source)
  if re.search(r" at 0x[0-9a-f]+>", text):
    name = type(source).__name__
    raise InputError(f"{name}: its repr does not say what it reads; make it a dataclass, or give it a __repr__")
  return text


@functools.lru_cache(maxsize=2)
def cached_encoder(directory: str) -> Encoder:
  """The encoder in a directory; each worker process loads it once."""
  return load_encoder(directory)


@functools.lru_cache(maxsize=2)
def cached_tokenizer(path: str) -> Tokenizer:
  """The tokenizer in a file; each worker process loads it once."""
  return load_tokenizer(path)


@functools.lru_cache(maxsize=2)
def cached_retriever(directory: str) -> Retriever:
  """The encoder and the tree in a directory; each worker process loads them once."""
  return load_retriever(directory)
