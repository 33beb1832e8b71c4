"""Where records come from: files (JSON lines, Parquet, text), TFDS datasets, the synthetic world.

  base.py    `Source`, what every source has: parts and records; `BadRecord`
  files.py   JsonlSource, ParquetSource, TextSource
  tfds.py    TfdsSource, WorldSource

Records are dicts of Python values. Documents need the field `text`; probes need `prompt`, `answer` and `count`.
TensorFlow is imported by the TFDS sources only, when they are read.

A new source is a subclass of `Source` and one more entry in `SOURCES`. A source of another package is registered with
`register_source` in a module that a gin file imports (`import mypkg.ext`, see plugins.py).
"""

import dataclasses
import os

from hiermem_jax.data.sources.base import BadRecord, Record, Source, register_source
from hiermem_jax.data.sources.files import JsonlSource, ParquetSource, TextSource
from hiermem_jax.data.sources.tfds import TfdsSource, WorldSource

# What can be bound in gin files.
SOURCES: tuple[type[Source], ...] = (JsonlSource, ParquetSource, TextSource, TfdsSource, WorldSource)

__all__ = ["SOURCES", "BadRecord", "JsonlSource", "ParquetSource", "Record", "Source", "TextSource", "TfdsSource",
           "WorldSource", "register_source", "resolve_data_dir"]  # fmt: skip

for _source in SOURCES:
  register_source(_source)


def resolve_data_dir(source: Source, directory: str) -> Source:
  """The same source with its `data_dir`, if that is a relative path, below `directory`."""
  if isinstance(source, TfdsSource | WorldSource) and source.data_dir is not None:
    return dataclasses.replace(source, data_dir=os.path.join(directory, source.data_dir))
  return source
