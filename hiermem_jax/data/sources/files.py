"""Sources that are files: JSON lines, Parquet, text; local, or in any store that fsspec can read (gs://, s3://, ...).

`pattern` is a path, a URL, or a glob of either (`**` matches folders). Files are read in sorted order, the first
`max_shards` of them. Files whose names end in .gz or .zst are decompressed. Each file is a part. With `max_records` the
source has only one part, which ends after so many well-formed records, so that the limit is exact.
"""

import abc
import dataclasses
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from hiermem_jax.data.sources.base import BadRecord, Record, Source, check_limits
from hiermem_jax.errors import InputError, listed

_ALL = "*"  # name of the only part of a source with max_records


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource(Source):
  """What the file sources share.

  Attributes:
    pattern: path, URL or glob of the files; see the module's docstring.
    required: fields that must be non-empty strings. A record without one of them is malformed.
    text_field: name that the field `text` has in the files.
    max_shards: number of files to read; None for all.
    max_records: number of well-formed records to read; None for all.
    max_characters: length of the longest field among the required ones. A record with a longer one is malformed.

  Raises:
    InputError: a limit is not positive. From `parts`: no file matches, or the place cannot be reached. From `read`: the
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
    """Yields (place, content) of each record of one file; `_parse` makes a record of the content."""

  def _parse(self, content: Any) -> Record:
    """The record that some content stands for.

    Raises:
      _MalformedError: the content is no record.
    """
    return content

  def parts(self) -> list[str]:
    """Paths or URLs of the files, in order; one part for all files if `max_records` is set."""
    files = self.files()
    return files if self.max_records is None else [_ALL]

  def read(self, part: str) -> Iterator[Record | BadRecord]:
    """Yields the records of one part; see `Source.read`."""
    records = (record for path in (self.files() if part == _ALL else [part]) for record in self._checked(path))
    left = self.max_records
    for record in records:
      yield record
      if left is not None and not isinstance(record, BadRecord):
        left -= 1
        if not left:
          return

  def files(self) -> list[str]:
    """Paths or URLs of the files to read, in order.

    Raises:
      InputError: no file matches, or the place cannot be reached.
    """
    pattern = os.path.expanduser(self.pattern)
    if os.path.isfile(pattern):  # such a path may hold characters that a glob gives a meaning to
      return [pattern]
    system, path = _file_system(pattern)
    with _one_line(pattern):
      found = sorted(name for name, info in system.glob(path, detail=True).items() if info["type"] == "file")
    if not found:
      raise InputError(f"no file matches {self.pattern}{_inside(pattern)}; give an existing path, URL or glob")
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
    """The record with its text in the field `text`.

    Raises:
      _MalformedError: a required field is missing, empty, too long or not a string.
    """
    if self.text_field != "text" and self.text_field in record:
      record = {**record, "text": record[self.text_field]}
    for field in self.required:
      if field not in record:
        rename = f"; {type(self).__name__}.text_field says which one is the text" if field == "text" else ""
        raise _MalformedError(f"field '{field}' missing", f"the record has {listed(record)}{rename}")
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
  """JSON-lines files, one object per line. Blank lines are skipped."""

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
        missing = [n for n in self.required if n not in wanted and not (n == "text" and self.text_field in wanted)]
        others = dict.fromkeys(table.schema_arrow.names if missing else ())  # for the message
        rows = (row for batch in table.iter_batches(batch_size=1024, columns=wanted) for row in batch.to_pylist())
        yield from ((f"{path}: row {number}", others | row) for number, row in enumerate(rows))
      except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a Parquet file, or damaged ({error}); copy or download it again") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource(FileSource):
  """Plain text files.

  Attributes:
    one_per_line: every line is a document, and blank lines are skipped; otherwise a file is one document.
  """

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
  """Content that is not a well-formed record; see `BadRecord` for the arguments."""

  def __init__(self, kind: str, detail: str = ""):
    super().__init__(kind)
    self.kind, self.detail = kind, detail


def _inside(pattern: str) -> str:
  """What is in the last folder of a local path or glob that is there, for a message that nothing matches."""
  folder = os.path.dirname(pattern) or "."
  return f" ({folder} has {listed(sorted(os.listdir(folder)))})" if os.path.isdir(folder) else ""


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
  """The decompressed content of a file. If the compressed file is cut off, reading its end raises EOFError."""
  import fsspec
  import pyarrow

  system, name = _file_system(path)
  if not path.endswith(".zst"):
    return fsspec.core.OpenFile(system, name, mode="rb", compression="gzip" if path.endswith(".gz") else None).open()
  content = pyarrow.PythonFile(system.open(name, "rb"), mode="r")
  return io.BufferedReader(pyarrow.CompressedInputStream(content, "zstd"))


class _one_line:  # noqa: N801 (used as a function)
  """Context in which every exception becomes an InputError of one line that names the file or the place."""

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
