"""Records of evaluation files. Every field is checked when it is read; errors name the file and the line."""

import csv
import dataclasses
import gzip
import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

from hiermem_jax.errors import InputError, listed


@dataclasses.dataclass(frozen=True)
class Record:
  """The fields of one item.

  Attributes:
    place: position of the record, e.g. "x.jsonl, line 7".
    fields: name -> value.
    remedy: end of every error message, which says what to give instead.
  """

  place: str
  fields: Mapping[str, Any]
  remedy: str

  def error(self, problem: str) -> InputError:
    """The error to raise for this record."""
    return InputError(f"{self.place}: {problem}; {self.remedy}")

  def text(self, name: str) -> str:
    """A string that is not empty, without white space around it."""
    return self._checked(name, self._value(name))

  def texts(self, name: str, least: int = 1) -> tuple[str, ...]:
    """A list of at least `least` strings, each as `text` gives it."""
    values = self._list(name, least)
    return tuple(self._checked(f"{name}[{i}]", value) for i, value in enumerate(values))

  def index(self, name: str, size: int) -> int:
    """An integer from 0 to size - 1, which the file may hold as a string."""
    value = self._value(name)
    if isinstance(value, str) and value.isdecimal():
      value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
      raise self.error(f"field '{name}' is {value!r}, not one of 0 to {size - 1}")
    return value

  def records(self, name: str) -> list["Record"]:
    """A list of at least one object."""
    values = self._list(name, 1)
    for i, value in enumerate(values):
      if not isinstance(value, dict):
        raise self.error(f"field '{name}[{i}]' is not an object")
    return [Record(f"{self.place}, {name}[{i}]", value, self.remedy) for i, value in enumerate(values)]

  def _value(self, name: str) -> Any:
    if name not in self.fields:
      raise self.error(f"field '{name}' is missing, the record has {listed(self.fields)}")
    return self.fields[name]

  def _list(self, name: str, least: int) -> list[Any]:
    values = self._value(name)
    if not isinstance(values, list):
      raise self.error(f"field '{name}' is not a list")
    if len(values) < least:
      raise self.error(f"field '{name}' has {len(values)} entries, fewer than {least}")
    return values

  def _checked(self, name: str, value: Any) -> str:
    if not isinstance(value, str):
      raise self.error(f"field '{name}' is not a string")
    if not value.strip():
      raise self.error(f"field '{name}' is empty")
    try:
      value.encode()  # JSON can spell half of a surrogate pair, which no tokenizer takes
    except UnicodeEncodeError:
      raise self.error(f"field '{name}' holds a lone surrogate") from None
    return value.strip()


def read_content(path: str) -> str:
  """The text of a file. It is decompressed if the path ends in .gz.

  Raises:
    InputError: there is no such file, or it is damaged or not UTF-8.
  """
  try:
    content = pathlib.Path(path).read_bytes()
    return (gzip.decompress(content) if path.endswith(".gz") else content).decode("utf-8-sig")
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise InputError(f"{path}: not a gzip file, or cut off; copy or download it again") from error
  except UnicodeDecodeError as error:
    line = error.object.count(b"\n", 0, error.start) + 1
    raise InputError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error
  except OSError as error:
    raise InputError(f"{path}: {error.strerror or 'cannot be read'}; give an existing file") from error


def json_lines(path: str, remedy: str) -> list[Record]:
  """The objects of a JSON-lines file; blank lines are skipped.

  Raises:
    InputError: see `read_content`; or a line is no object, or there are no objects.
  """
  records = []
  for number, line in enumerate(read_content(path).split("\n"), start=1):
    if line.strip():
      record = Record(f"{path}, line {number}", _object(line), remedy)
      if not record.fields:
        raise record.error("not a JSON object with fields")
      records.append(record)
  return _not_empty(records, path, remedy)


def json_document(path: str, remedy: str) -> Record | None:
  """The file as a single JSON object with a field 'data'; None if it is something else.

  Raises:
    InputError: see `read_content`.
  """
  fields = _object(read_content(path))
  return Record(path, fields, remedy) if "data" in fields else None


def csv_records(path: str, remedy: str) -> list[Record]:
  """The records of a CSV file, whose first line has the names of the fields.

  Raises:
    InputError: see `read_content`; or there are no records.
  """
  reader = csv.DictReader(read_content(path).splitlines())
  records = [Record(f"{path}, line {reader.line_num}", fields, remedy) for fields in reader]
  return _not_empty(records, path, remedy)


def _object(text: str) -> dict[str, Any]:
  """The JSON object that the text is; an empty one if it is something else."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    return {}
  return value if isinstance(value, dict) else {}


def _not_empty(records: list[Record], path: str, remedy: str) -> list[Record]:
  if not records:
    raise InputError(f"{path}, line 1: there are no items; {remedy}")
  return records
