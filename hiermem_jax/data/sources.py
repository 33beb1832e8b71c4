"""Where records come from: JSON-lines files, TFDS datasets, the synthetic world.

A source is anything with `records() -> Iterator[dict]` of python values. Documents
need the field `text`; probes need `prompt`, `answer` and `count`. A source can be
read again and again, and gives the same records in the same order each time.
TensorFlow is loaded by the `records` of the TFDS sources only.
"""

import collections
import dataclasses
import glob
import gzip
import itertools
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from hiermem_jax.data.world import WorldConfig
from hiermem_jax.errors import InputError

Record = dict[str, Any]
_PLACES_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class BadRecord:
  """A malformed record: what is counted, where it stands, and what exactly is wrong."""

  kind: str
  place: str
  detail: str = ""


class _BadRecordError(Exception):
  """A line that is no record; `kind` is what is counted, the message what is shown."""

  def __init__(self, kind: str, detail: str = ""):
    super().__init__(kind + detail)
    self.kind = kind


def _check_limits(source: Any, *fields: str) -> None:
  for field in fields:
    value = getattr(source, field)
    if value is not None and value < 1:
      raise InputError(f"{type(source).__name__}.{field} = {value}: give 1 or more, or None for no limit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlSource:
  """JSON-lines files, one object per line, plain (.jsonl) or gzipped (.gz).

  `pattern` is a path or a glob (`**` matches folders); files are read in sorted
  order, the first `max_shards` of them, until `max_records` records are out. Each
  field of `required` must be a non-empty string. Blank lines are passed over.

  Raises (from `records`):
    InputError: no such file, an unreadable or damaged one, no records at all, or a
      bad record. With `skip_bad_records` bad records are left out instead, and one
      warning at the end says how many there were and where.
  """

  pattern: str
  required: tuple[str, ...] = ("text",)
  max_shards: int | None = None
  max_records: int | None = None
  skip_bad_records: bool = dataclasses.field(default=False, repr=False)  # not part of what is read

  def __post_init__(self):
    _check_limits(self, "max_shards", "max_records")

  def records(self) -> Iterator[Record]:
    """Yields the records, file by file."""
    empty = True
    skipped: collections.Counter[str] = collections.Counter()
    places: list[str] = []
    try:
      for record in itertools.islice(self._good_records(skipped, places), self.max_records):
        empty = False
        yield record
    finally:
      if skipped:
        kinds = ", ".join(f"{n} {kind}" for kind, n in skipped.most_common())
        dots = ", ..." if skipped.total() > len(places) else ""
        logging.warning("Skipped %d bad records (%s), first at %s%s", skipped.total(), kinds, ", ".join(places), dots)
    if empty:
      raise InputError(f"empty corpus: no records in {self.pattern}; check the pattern and the files")

  def files(self) -> list[str]:
    """The files that are read, in order.

    Raises:
      InputError: none matches.
    """
    pattern = os.path.expanduser(self.pattern)
    # A path with a bracket in its name is a path first.
    found = [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
    if not found:
      raise InputError(f"no file matches {self.pattern}; give an existing .jsonl or .jsonl.gz path or glob")
    return found[: self.max_shards]

  def _good_records(self, skipped: collections.Counter[str], places: list[str]) -> Iterator[Record]:
    for path in self.files():
      for number, line in enumerate(_lines(path), start=1):
        if line.isspace():
          continue
        try:
          yield self._parse(line)
        except _BadRecordError as error:
          if not self.skip_bad_records:
            raise InputError(f"{path}:{number}: {error}; fix or pass --skip_bad_records") from None
          skipped[error.kind] += 1
          if len(places) < _PLACES_SHOWN:
            places.append(f"{path}:{number}")

  def parts(self) -> list[str]:
    return self.files()

  def read(self, part: str) -> Iterator[Record | BadRecord]:
    for number, line in enumerate(_lines(part), start=1):
      if line.isspace():
        continue
      try:
        yield self._parse(line)
      except _BadRecordError as error:
        yield BadRecord(error.kind, f"{part}:{number}", str(error))

  def _parse(self, line: bytes) -> Record:
    try:
      record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
      raise _BadRecordError("not UTF-8", f" (byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
      raise _BadRecordError("malformed JSON", f" ({error.msg}, column {error.colno})") from None
    if not isinstance(record, dict):
      raise _BadRecordError("not a JSON object", f" ({type(record).__name__})")
    for field in self.required:
      if field not in record:
        raise _BadRecordError(f"field '{field}' missing")
      value = record[field]
      if not isinstance(value, str):
        raise _BadRecordError(f"field '{field}' not a string", f" ({type(value).__name__})")
      if not value.strip():
        raise _BadRecordError(f"field '{field}' empty")
      try:
        value.encode()  # JSON can spell half of a surrogate pair, which no tokenizer takes
      except UnicodeEncodeError:
        raise _BadRecordError(f"field '{field}' not UTF-8", " (a lone surrogate)") from None
    return record


def _lines(path: str) -> Iterator[bytes]:
  try:
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
      yield from file
  except EOFError:
    raise InputError(f"{path}: the gzip file is cut off; copy or download it again") from None
  except (gzip.BadGzipFile, zlib.error) as error:
    raise InputError(f"{path}: not a gzip file, or damaged ({error}); copy or download it again") from None
  except OSError as error:
    raise InputError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource:
  """A TFDS dataset, prepared on the first read: `name` as in "c4/en:3.1.0", `split` as in "train[:1%]".

  `data_dir` None is TFDS's own default folder.

  Raises (from `records`):
    InputError: no such dataset, config or split, or it could not be prepared.
  """

  name: str
  split: str
  data_dir: str | None = None
  max_records: int | None = None

  def __post_init__(self):
    _check_limits(self, "max_records")

  def records(self) -> Iterator[Record]:
    """Yields the examples in stored order: bytes become str, arrays become lists."""
    import tensorflow_datasets as tfds  # noqa: PLC0415

    if self.name.startswith("synthetic_world"):
      from hiermem_jax.data import world_tfds  # noqa: F401, PLC0415 (registers the dataset)
    try:
      builder = tfds.builder(self.name, data_dir=self.data_dir)
    except ValueError as error:  # also tfds's DatasetNotFoundError
      raise InputError(f"TFDS dataset {self.name}: {_first_line(error)}; check the name and data_dir") from error
    return _tfds_records(builder, self.split, self.max_records)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldSource:
  """The synthetic world drawn from `world`: `split` is "train", "validation" or "probes".

  Prepared by TFDS under `data_dir` in a folder of this config alone, on the first read.
  """

  world: WorldConfig
  split: str
  data_dir: str | None = None
  max_records: int | None = None

  def __post_init__(self):
    _check_limits(self, "max_records")
    if self.split not in ("train", "validation", "probes"):
      raise InputError(f"WorldSource.split = '{self.split}': give train, validation or probes")

  def records(self) -> Iterator[Record]:
    """Yields the documents, or the probes, of the world."""
    import tensorflow_datasets as tfds  # noqa: PLC0415

    from hiermem_jax.data import world_tfds  # noqa: PLC0415

    tfds.disable_progress_bar()  # a few seconds of work
    probes = self.split == "probes"
    builder_class = world_tfds.SyntheticWorldProbes if probes else world_tfds.SyntheticWorld
    builder = builder_class(config=world_tfds.custom_config(self.world), data_dir=self.data_dir)
    return _tfds_records(builder, "test" if probes else self.split, self.max_records)


def _tfds_records(builder: Any, split: str, max_records: int | None) -> Iterator[Record]:
  import tensorflow_datasets as tfds  # noqa: PLC0415

  offline = tfds.download.DownloadConfig(try_download_gcs=False)
  try:
    builder.download_and_prepare(download_config=offline)
  except OSError as error:
    place = f"TFDS dataset {builder.info.full_name} could not be prepared in {builder.data_dir}"
    raise InputError(f"{place}: {_first_line(error)}; check disk and network, or copy it there") from error
  # One file at a time: the stored order, whatever the number of shards.
  read_config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
  try:
    dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=read_config)
  except ValueError as error:
    known = ", ".join(builder.info.splits)
    raise InputError(f"TFDS dataset {builder.info.full_name} has no split {split}; it has {known}") from error
  for example in tfds.as_numpy(dataset.take(-1 if max_records is None else max_records)):
    yield {key: _python(value) for key, value in example.items()}


def _python(value: Any) -> Any:
  """Bytes to str, numpy to python, through dicts and lists."""
  if isinstance(value, dict):
    return {key: _python(v) for key, v in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, list):
    return [_python(v) for v in value]
  return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")


Source = JsonlSource | TfdsSource | WorldSource


def under(source: Source, directory: str) -> Source:
  """The same source with a relative `data_dir` taken to start in `directory`."""
  if getattr(source, "data_dir", None) is None:
    return source
  return dataclasses.replace(source, data_dir=os.path.join(directory, source.data_dir))
