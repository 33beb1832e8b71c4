"""Sources that are TFDS datasets: any by its name, and the synthetic world by its configuration.

A part is a shard of the dataset's split as TFDS has stored it, named as TFDS names it ("train[3shard:4shard]"), so the
parts in turn give the stored order. TensorFlow is loaded when records are read.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from hiermem_jax.data.sources.files import BadRecord, Record, check_limits, good_records
from hiermem_jax.data.world.generate import WorldConfig
from hiermem_jax.errors import InputError


class _TfdsParts:
  """What both sources share; they have `max_records` and give their builder and its split."""

  def _dataset(self) -> tuple[Any, str]:
    raise NotImplementedError

  def parts(self) -> list[str]:
    """The shards of the split; the split as a whole where it is a part of one already or records are limited."""
    builder, split = _prepared(*self._dataset())
    if self.max_records is not None or split not in builder.info.splits:
      return [split]
    return [f"{split}[{n}shard:{n + 1}shard]" for n in range(builder.info.splits[split].num_shards)]

  def read(self, part: str) -> Iterator[Record | BadRecord]:
    """Yields the examples of one part: bytes become str, arrays become lists."""
    import tensorflow_datasets as tfds  # noqa: PLC0415

    builder, _ = _prepared(*self._dataset())
    # One file at a time: the stored order, whatever the number of shards.
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

  def records(self) -> Iterator[Record]:
    """Yields the examples of all parts, which must be good ones."""
    yield from good_records(itertools.chain.from_iterable(map(self.read, self.parts())))

  def _finished(self, record: Record) -> Record:
    return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource(_TfdsParts):
  """A TFDS dataset, prepared on the first read.

  Attributes:
    name: as in "c4/en:3.1.0".
    split: as in "train" or "train[:1%]".
    data_dir: where TFDS keeps it; None is TFDS's own default folder.
    max_records: examples to read.
    drop_markers: removes wiki40b's structure markers (_START_ARTICLE_ and the like) and makes its _NEWLINE_ a line
      break.

  Raises:
    InputError: from `parts` and `read`: no such dataset, config or split, or it could not be prepared.
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
    return {**record, "text": without_markers(record["text"])} if self.drop_markers else record


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldSource(_TfdsParts):
  """The synthetic world drawn from `world`, prepared by TFDS under `data_dir` in a folder of this config alone.

  Attributes:
    world: what is drawn.
    split: "train", "validation" or "probes".
    data_dir: where TFDS keeps it; None is TFDS's own default folder.
    max_records: documents, or probes, to read.
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
  """Text of wiki40b without its markers: one line for a title, a section's heading and each paragraph."""
  return re.sub(r"\s*_(?:START_(?:ARTICLE|SECTION|PARAGRAPH)|NEWLINE)_\s*", "\n", text).strip()


def _prepared(builder: Any, split: str) -> tuple[Any, str]:
  """The builder with its data in place, and the split, which it has."""
  import tensorflow_datasets as tfds  # noqa: PLC0415

  offline = tfds.download.DownloadConfig(try_download_gcs=False)
  try:
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
  """Bytes to str, numpy to python, through dicts and lists."""
  if isinstance(value, dict):
    return {key: _python(v) for key, v in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, list):
    return [_python(v) for v in value]
  return value.decode("utf-8") if isinstance(value, bytes) else value


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
