"""What a source of records is, and the records that it gives."""

import abc
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from hiermem_jax.errors import InputError
from hiermem_jax.plugins import register_constructor

Record = dict[str, Any]
S = TypeVar("S", bound=type)


@dataclasses.dataclass(frozen=True)
class BadRecord:
  """A malformed record.

  Attributes:
    kind: of the defect, e.g. "malformed JSON". Malformed records are counted by kind.
    place: position of the record, e.g. "data/x.jsonl:12".
    detail: what exactly is wrong.
  """

  kind: str
  place: str
  detail: str = ""

  def __str__(self) -> str:
    return f"{self.place}: {self.kind}{self.detail and f' ({self.detail})'}"


@runtime_checkable
class Source(Protocol):
  """Records, in parts. A source gives the same records, in the same order, each time it is read.

  A subclass is a frozen dataclass with `parts` and `read`. Its `repr` must say what it reads, because it stands for the
  documents in the manifest of a packed dataset. A class that is no subclass needs `records` too.
  """

  @abc.abstractmethod
  def parts(self) -> list[str]:
    """Names of the parts, in order. A part is a unit of work: many parts can be read by many workers.

    Raises:
      InputError: there is nothing to read, or the place cannot be reached.
    """

  @abc.abstractmethod
  def read(self, part: str) -> Iterator[Record | BadRecord]:
    """Yields the records of one part in order. A malformed record is yielded as `BadRecord`, and reading goes on.

    Raises:
      InputError: the part as a whole cannot be read.
    """

  def records(self) -> Iterator[Record]:
    """Yields the records of all parts in order.

    Raises:
      InputError: a record is malformed, or there are no records.
    """
    empty = True
    for record in itertools.chain.from_iterable(map(self.read, self.parts())):
      if isinstance(record, BadRecord):
        raise InputError(f"{record}; mend or remove it")
      empty = False
      yield record
    if empty:
      raise InputError(f"empty corpus: {self} has no records; check the pattern and the files")


def register_source(source: S) -> S:
  """Lets gin files construct a source by the name of its class; returns the class, so that it can be a decorator."""
  register_constructor(source)
  return source


def check_limits(source: Source, *fields: str) -> None:
  """Raises InputError if one of these fields of a source is set and not positive."""
  for field in fields:
    value = getattr(source, field)
    if value is not None and value < 1:
      raise InputError(f"{type(source).__name__}.{field} = {value}: give 1 or more, or None for no limit")
