"""Sources that are files: JSON lines, Parquet, text; local, or anywhere fsspec reaches (gs://, s3://, ...).

`pattern` is a path, a URL or a glob of either (`**` matches folders). Files are read in sorted order, the first
`max_shards` of them; names ending in .gz and .zst are decompressed. A file is a part: many files give many workers
work. With `max_records` the source is one part that ends after so many good records, so that the limit is exact.
"""

import abc
import dataclasses
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from hiermem_jax.errors import InputError

Record = dict[str, Any]
_ALL = "*"  # the only part of a source with a limit on its records


@dataclasses.dataclass(frozen=True)
class BadRecord:
  """A malformed record.

  Attributes:
    kind: what is counted, e.g. "malformed JSON".
    place: where it stands, e.g. "data/x.jsonl:12".
    detail: what exactly is wrong.
  """

  kind: str
  place: str
  detail: str = ""

  def __str__(self) -> str:
    return f"{self.place}: {self.kind}{self.detail and f' ({self.detail})'}"


def check_limits(source: Any, *fields: str) -> None:
  """Raises InputError for a field of a source that is set and not positive."""
  for field in fields:
    value = getattr(source, field)
    if value is not None and value < 1:
      raise InputError(f"{type(source).__name__}.{field} = {value}: give 1 or more, or None for no limit")


def good_records(records: Iterator[Record | BadRecord]) -> Iterator[Record]:
  """The records; the first malformed one is an InputError."""
  for record in records:
    if isinstance(record, BadRecord):
      raise InputError(f"{record}; mend or remove it")
    yield record


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource(abc.ABC):
  """What the file sources share.

  Attributes:
    pattern: see the module's docstring.
    required: fields that must be non-empty strings.
    text_field: the field that becomes `text`.
    max_shards: files to read.
    max_records: good records to read.
    max_characters: longest text; a longer one is a malformed record.

  Raises:
    InputError: a limit is not positive. From `parts`: no such file, or its place cannot be reached. From `read`: the
      file is damaged or cannot be read.
  """

  pattern: str
  required: tuple[str, ...] = ("text",)
  text_field: str = "text"
  max_shards: int | None = None
  max_records: int | None = None
  max_characters: int | None = 10_000_000

  def __post_init__(self):
    check_limits(self, "max_shards", "max_records", "max_characters")

  @abc.abstractmethod
  def _read(self, path: str) -> Iterator[tuple[str, Any]]:
    """Place and content of each record of one file; what `_parse` takes."""

  def _parse(self, content: Any) -> Record:
    """The record; raises _MalformedError."""
    return content

  def parts(self) -> list[str]:
    """The files in order, or one part of all of them where records are limited."""
    files = self.files()
    return files if self.max_records is None else [_ALL]

  def read(self, part: str) -> Iterator[Record | BadRecord]:
    """Yields the records of one part, malformed ones as `BadRecord`."""
    records = (record for path in (self.files() if part == _ALL else [part]) for record in self._checked(path))
    left = self.max_records
    for record in records:
      yield record
      if left is not None and not isinstance(record, BadRecord):
        left -= 1
        if not left:
          return

  def records(self) -> Iterator[Record]:
    """Yields the records of all parts, which must be good ones, and at least one."""
    records = good_records(itertools.chain.from_iterable(map(self.read, self.parts())))
    first = next(records, None)
    if first is None:
      raise InputError(f"empty corpus: no records in {self.pattern}; check the pattern and the files")
    yield from itertools.chain([first], records)

  def files(self) -> list[str]:
    """The files that are read, in order.

    Raises:
      InputError: none matches, or the place cannot be reached.
    """
    pattern = os.path.expanduser(self.pattern)
    if os.path.isfile(pattern):  # a path with a bracket in its name is a path first
      return [pattern]
    system, path = _file_system(pattern)
    with _one_line(pattern):
      found = sorted(name for name, info in system.glob(path, detail=True).items() if info["type"] == "file")
    if not found:
      raise InputError(f"no file matches {self.pattern}; give an existing path, URL or glob")
    local = "://" not in pattern
    return [name if local else system.unstrip_protocol(name) for name in found][: self.max_shards]

  def _checked(self, path: str) -> Iterator[Record | BadRecord]:
    with _one_line(path):
      for place, content in self._read(path):
        try:
          yield self._with_text(self._parse(content))
        except _MalformedError as error:
          yield BadRecord(error.kind, place, error.detail)

  def _with_text(self, record: Record) -> Record:
    """The record with its text under `text`, after a check of the required fields."""
    if self.text_field != "text" and self.text_field in record:
      record = {**record, "text": record[self.text_field]}
    for field in self.required:
      if field not in record:
        raise _MalformedError(f"field '{field}' missing")
      value = record[field]
      if not isinstance(value, str):
        raise _MalformedError(f"field '{field}' not a string", type(value).__name__)
      if not value.strip():
        raise _MalformedError(f"field '{field}' empty")
      if self.max_characters is not None and len(value) > self.max_characters:
        raise _MalformedError(f"field '{field}' over {self.max_characters} characters", f"{len(value)}")
      try:
        value.encode()  # JSON can spell half of a surrogate pair, which no tokenizer takes
      except UnicodeEncodeError:
        raise _MalformedError(f"field '{field}' not UTF-8", "a lone surrogate") from None
    return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlSource(FileSource):
  """JSON-lines files, one object per line. Blank lines are passed over."""

  def _read(self, path: str) -> Iterator[tuple[str, bytes]]:
    with _opened(path) as file:
      yield from ((f"{path}:{number}", line) for number, line in enumerate(file, start=1) if not line.isspace())

  def _parse(self, content: bytes) -> Record:
    try:
      record = json.loads(_decoded(content))
    except json.JSONDecodeError as error:
      raise _MalformedError("malformed JSON", f"{error.msg}, column {error.colno}") from None
    except RecursionError:
      raise _MalformedError("malformed JSON", "nested too deeply") from None
    if not isinstance(record, dict):
      raise _MalformedError("not a JSON object", type(record).__name__)
    return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParquetSource(FileSource):
  """Parquet files, one record per row; only the text field and the required fields are read."""

  def _read(self, path: str) -> Iterator[tuple[str, Record]]:
    import pyarrow
    from pyarrow import parquet

    with _opened(path) as file:
      try:
        table = parquet.ParquetFile(file)
        wanted = [name for name in dict.fromkeys((self.text_field, *self.required)) if name in table.schema_arrow.names]
        rows = (row for batch in table.iter_batches(batch_size=1024, columns=wanted) for row in batch.to_pylist())
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows))
      except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a Parquet file, or damaged ({error}); copy or download it again") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource(FileSource):
  """Plain text files: each is one document, or each line where `one_per_line`. Blank lines are passed over then."""

  one_per_line: bool = False

  def _read(self, path: str) -> Iterator[tuple[str, bytes]]:
    with _opened(path) as file:
      if self.one_per_line:
        yield from ((f"{path}:{number}", line) for number, line in enumerate(file, start=1) if not line.isspace())
      else:
        yield path, file.read()

  def _parse(self, content: bytes) -> Record:
    text = _decoded(content)
    return {"text": text.rstrip("\r\n") if self.one_per_line else text}


class _MalformedError(Exception):
  """Content that is no record."""

  def __init__(self, kind: str, detail: str = ""):
    super().__init__(kind)
    self.kind, self.detail = kind, detail


def _decoded(content: bytes) -> str:
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise _MalformedError("not UTF-8", f"byte {error.start + 1}") from None


def _file_system(url: str) -> Any:
  import fsspec

  try:
    return fsspec.url_to_fs(url)
  except ImportError as error:
    remedy = "pip install gcsfs" if url.startswith("gs://") else "install the package that it names"
    raise InputError(f"{url}: {str(error).rstrip('.')}; {remedy}") from error
  except ValueError as error:
    raise InputError(f"{url}: {str(error).rstrip('.')}; give a path or a URL that fsspec knows") from error


def _opened(path: str) -> BinaryIO:
  """The file's content, decompressed; a compressed file that is cut off raises when its end is reached."""
  import fsspec
  import pyarrow

  system, name = _file_system(path)
  if not path.endswith(".zst"):
    return fsspec.core.OpenFile(system, name, mode="rb", compression="gzip" if path.endswith(".gz") else None).open()
  content = pyarrow.PythonFile(system.open(name, "rb"), mode="r")
  return io.BufferedReader(pyarrow.CompressedInputStream(content, "zstd"))


class _one_line:  # noqa: N801 (used as a function)
  """Turns what reading a file or a bucket raises into an InputError of one line that names it."""

  def __init__(self, place: str):
    self._place = place

  def __enter__(self):
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
    del kind, traceback
    if isinstance(error, InputError) or not isinstance(error, Exception) or isinstance(error, GeneratorExit):
      return
    raise InputError(f"{self._place}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
  name = type(error).__name__
  if isinstance(error, EOFError):
    return "the compressed file is cut off; copy or download it again"
  if isinstance(error, zlib.error | gzip.BadGzipFile) or (isinstance(error, OSError) and error.errno is None):
    return f"not a compressed file, or damaged ({error}); copy or download it again"
  if isinstance(error, OSError):
    return f"cannot be read ({error.strerror or error or name}); check the place and its permissions"
  first = (str(error).strip().splitlines() or [""])[0]
  return f"cannot be read ({name}{first and f': {first}'}); check the place and the credentials"
