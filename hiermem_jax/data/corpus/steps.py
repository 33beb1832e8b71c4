"""What the pipelines of both verbs share: a pass over the parts of a source, directories that know their inputs."""

import functools
import re
from collections.abc import Sequence
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
  """Runs a task that yields nothing over the items, each on whichever worker is free."""
  runner.run(lambda p: p | beam.Create(items) | beam.Reshuffle() | beam.ParDo(task), num_units=len(items))


def claim(directory: str, inputs: dict[str, Any]) -> None:
  """Writes `directory/inputs.json`, or compares with the one there: half-finished work goes on with equal inputs only.

  Raises:
    InputError: the directory holds the work of other inputs.
    OSError: it cannot be written.
  """
  path = files.as_path(directory) / "inputs.json"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, inputs)
    return
  require_same_inputs(directory, files.read_json(path), inputs)


def require_same_inputs(directory: str, held: dict[str, Any], inputs: dict[str, Any]) -> None:
  """Raises InputError naming the first input in which `held`, read from a file, and `inputs` differ."""
  for name in sorted(held.keys() | inputs.keys()):
    if held.get(name) != inputs.get(name):
      raise InputError(
        f"{directory} was made with {name} {held.get(name)!r}, asked for is {inputs.get(name)!r}: give another"
        " directory or delete this one"
      )


def part_name(number: int, kind: str) -> str:
  """Name of a file of one part."""
  return f"part-{number:05d}.{kind}"


def describe(source: Source) -> str:
  """What a source reads, for the records of what was made of it."""
  description = repr(source)
  if re.search(r" at 0x[0-9a-f]+>", description):
    raise TypeError(f"{type(source).__name__} needs a __repr__ that says what it reads, for the manifest")
  return description


@functools.lru_cache(maxsize=2)
def cached_encoder(directory: str) -> Encoder:
  """The encoder in a directory, loaded once per worker."""
  return load_encoder(directory)


@functools.lru_cache(maxsize=2)
def cached_tokenizer(path: str) -> Tokenizer:
  """A tokenizer, loaded once per worker."""
  return load_tokenizer(path)


@functools.lru_cache(maxsize=2)
def cached_retriever(directory: str) -> Retriever:
  """The encoder and the tree in a directory, loaded once per worker."""
  return load_retriever(directory)
