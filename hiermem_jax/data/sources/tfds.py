"""Sources that are TFDS datasets: any dataset by its name, and the synthetic world by its configuration.

A part is one shard of the split, in TFDS's notation ("train[3shard:4shard]"). All parts in order give the examples in
the order in which TFDS has stored them. TensorFlow is imported when a source is read.
"""

import abc
import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from hiermem_jax import console
from hiermem_jax.data.sources.base import BadRecord, Record, Source, check_limits
from hiermem_jax.data.world.generate import WorldConfig
from hiermem_jax.errors import InputError


class _Tfds(Source):
  """What both sources share."""

  max_records: int | None

  @abc.abstractmethod
  def _dataset(self) -> tuple[Any, str]:
    """TFDS's builder of the dataset, and the split."""

  def parts(self) -> list[str]:
    """The shards of the split. It is one part if `max_records` is set, or if it is a slice such as "train[:1%]"."""
    builder, split = _prepared(*self._dataset())
    if self.max_records is not None or split not in builder.info.splits:
      return [split]
    return [f"{split}[{n}shard:{n + 1}shard]" for n in range(builder.info.splits[split].num_shards)]

  def read(self, part: str) -> Iterator[Record | BadRecord]:
    """Yields the examples of one part, with bytes as str and arrays as lists; see `Source.read`."""
    import tensorflow_datasets as tfds  # noqa: PLC0415

    builder, _ = _prepared(*self._dataset())
    # One file at a time keeps the stored order.
    read_config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    dataset = builder.as_dataset(split=part, shuffle_files=False, read_config=read_config)
    for number, example in enumerate(tfds.as_numpy(dataset.take(-1 if self.max_records is None else self.max_records))):
      place = f"TFDS dataset {builder.info.full_name}, {part}: example {number}"
      try:
        record = {key: _python(value) for key, value in example.items()}
      except UnicodeDecodeError as error:
        yield BadRecord("not UTF-8", place, f"byte {error.start + 1}")
      else:
        yield self._finished(record)

  def _finished(self, record: Record) -> Record:
    return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource(_Tfds):
  """A TFDS dataset. TFDS downloads and prepares it when it is first read.

  Attributes:
    name: TFDS's name, e.g. "c4/en:3.1.0".
    split: TFDS's split, e.g. "train" or "train[:1%]".
    data_dir: folder of TFDS's datasets; None is TFDS's own default.
    max_records: number of examples to read; None for all.
    drop_markers: replaces the structure markers of wiki40b (_START_ARTICLE_ and the like) by line breaks.

  Raises:
    InputError: from `parts` and `read`: there is no such dataset, config or split, or it could not be prepared.
  """

  name: str
  split: str
  data_dir: str | None = dataclasses.field(default=None, repr=False)
  max_records: int | None = None
  drop_markers: bool = False

  def __post_init__(self):
    check_limits(self, "max_records")

  def _dataset(self) -> tuple[Any, str]:
    import tensorflow_datasets as tfds  # noqa: PLC0415

    if self.name.startswith("synthetic_world"):
      from hiermem_jax.data.world import tfds as world_tfds  # noqa: F401, PLC0415 (registers the dataset)
    try:
      return tfds.builder(self.name, data_dir=self.data_dir), self.split
    except ValueError as error:  # also tfds's DatasetNotFoundError
      raise InputError(f"TFDS dataset {self.name}: {_first_line(error)}; check the name and data_dir") from error

  def _finished(self, record: Record) -> Record:
    return {**record, "text": without_markers(record["text"])} if self.drop_markers and "text" in record else record


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldSource(_Tfds):
  """The synthetic world. TFDS draws it when it is first read, and keeps it in a folder of its own for each `world`.

  Attributes:
    world: sizes and frequencies of the world.
    split: "train", "validation" or "probes".
    data_dir: folder of TFDS's datasets; None is TFDS's own default.
    max_records: number of documents or probes to read; None for all.
  """

  world: WorldConfig
  split: str
  data_dir: str | None = dataclasses.field(default=None, repr=False)
  max_records: int | None = None

  def __post_init__(self):
    check_limits(self, "max_records")
    if self.split not in ("train", "validation", "probes"):
      raise InputError(f"WorldSource.split = '{self.split}': give train, validation or probes")

  def _dataset(self) -> tuple[Any, str]:
    import tensorflow_datasets as tfds  # noqa: PLC0415

    from hiermem_jax.data.world import tfds as world_tfds  # noqa: PLC0415

    tfds.disable_progress_bar()  # a few seconds of work
    probes = self.split == "probes"
    builder_class = world_tfds.SyntheticWorldProbes if probes else world_tfds.SyntheticWorld
    builder = builder_class(config=world_tfds.custom_config(self.world), data_dir=self.data_dir)
    return builder, "test" if probes else self.split


def without_markers(text: str) -> str:
  """Text of wiki40b with a line break in place of each marker: titles, headings and paragraphs are lines."""
  return re.sub(r"\s*_(?:START_(?:ARTICLE|SECTION|PARAGRAPH)|NEWLINE)_\s*", "\n", text).strip()


def _prepared(builder: Any, split: str) -> tuple[Any, str]:
  """Prepares the data of a TFDS builder; returns the builder and the split.

  Raises:
    InputError: the data could not be prepared, or there is no such split.
  """
  import tensorflow_datasets as tfds  # noqa: PLC0415

  offline = tfds.download.DownloadConfig(try_download_gcs=False)
  if not builder.is_prepared():
    console.say("TFDS dataset %s: is being prepared in %s", builder.info.name, builder.data_dir)
  try:
    with contextlib.redirect_stdout(sys.stderr):  # where TFDS's own messages belong
      builder.download_and_prepare(download_config=offline)
  except OSError as error:
    if not builder.is_prepared():
      place = f"TFDS dataset {builder.info.full_name} could not be prepared in {builder.data_dir}"
      raise InputError(f"{place}: {_first_line(error)}; check disk and network, or copy it there") from error
    builder.info.read_from_directory(builder.data_dir)  # another process has prepared it in the meantime
  try:
    builder.info.splits[split]
  except (KeyError, ValueError) as error:
    known = ", ".join(builder.info.splits)
    raise InputError(f"TFDS dataset {builder.info.full_name} has no split {split}; it has {known}") from error
  return builder, split


def _python(value: Any) -> Any:
  """The value with bytes as str and numpy arrays as lists, also within dicts and lists."""
  if isinstance(value, dict):
    return {key: _python(v) for key, v in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, list):
    return [_python(v) for v in value]
  return value.decode("utf-8") if isinstance(value, bytes) else value


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
