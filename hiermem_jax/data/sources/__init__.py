"""Where records come from: files (JSON lines, Parquet, text), TFDS datasets, the synthetic world.

Every source has three methods:

  parts() -> list[str]                     units of work, in a stable order: files, or pieces of a TFDS split
  read(part) -> Iterator[dict | BadRecord] records of one part in order; a malformed one is named, and reading goes on
  records() -> Iterator[dict]              all parts in turn; the first malformed record is an InputError

Records are dicts of python values. Documents need the field `text`; probes need `prompt`, `answer` and `count`. A
source can be read again and again and gives the same each time, and its `repr` says what it reads. TensorFlow is
loaded by the TFDS sources only, when they are read.

  source_files.py   JsonlSource, ParquetSource, TextSource
  source_tfds.py    TfdsSource, WorldSource
"""

import dataclasses
import os

from hiermem_jax.data.sources.files import BadRecord, JsonlSource, ParquetSource, Record, TextSource
from hiermem_jax.data.sources.tfds import TfdsSource, WorldSource

Source = JsonlSource | ParquetSource | TextSource | TfdsSource | WorldSource

__all__ = ["BadRecord", "JsonlSource", "ParquetSource", "Record", "Source", "TextSource", "TfdsSource", "WorldSource",
           "resolve_data_dir"]  # fmt: skip


def resolve_data_dir(source: Source, directory: str) -> Source:
  """The same source with its `data_dir`, if that is a relative path, below `directory`."""
  if getattr(source, "data_dir", None) is None:
    return source
  return dataclasses.replace(source, data_dir=os.path.join(directory, source.data_dir))
