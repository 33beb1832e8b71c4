"""Where scalars go: the `MetricWriter` protocol of the loop, and JSON lines."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from absl import logging

from hiermem_jax import files

# Scalars that depend on the clock or the machine: two runs of the same steps differ in them.
CLOCK_SCALARS = frozenset(
  ("tokens_per_second", "mfu", "data_wait", "checkpoint_wait", "validation_wait", "device_memory_gib")
)


class MetricWriter(Protocol):
  """The methods of clu's metric writer that the loop uses. The loop itself needs neither clu nor TensorFlow."""

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Records scalars of a step."""

  def flush(self) -> None:
    """Makes everything recorded durable."""


class NoWriter:
  """Records nothing; for processes other than the first."""

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Does nothing."""

  def flush(self) -> None:
    """Does nothing."""


class Lenient:
  """A writer whose failures are logged, not raised: a full disk does not end a run."""

  def __init__(self, writer: MetricWriter):
    self._writer = writer

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Records scalars of a step, if it can."""
    self._try(lambda: self._writer.write_scalars(step, scalars))

  def flush(self) -> None:
    """Makes everything recorded durable, if it can."""
    self._try(self._writer.flush)

  def _try(self, write: Callable[[], None]) -> None:
    try:
      write()
    except Exception as error:  # TensorFlow has errors of its own
      logging.warning("scalars could not be written, training goes on: %s", error)


class JsonlWriter:
  """Writes one JSON object a line: the step and its values. A resumed run first removes lines of later steps."""

  def __init__(self, path: str, start_step: int):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    kept = []
    if os.path.exists(path):
      with open(path, encoding="utf-8") as file:
        for line in file:
          if not line.endswith("\n"):
            break  # a kill cut the last line short
          if json.loads(line)["step"] <= start_step:
            kept.append(line)
    files.write_text(path, "".join(kept))
    self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - kept open for the run

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends one line, all of it or nothing.

    Raises:
      OSError: it cannot be written.
    """
    line = (json.dumps({"step": int(step), **values}) + "\n").encode()
    size = os.fstat(self._file.fileno()).st_size
    try:
      written = self._file.write(line)
      if written != len(line):
        raise OSError(f"{self._file.name}: {written} of {len(line)} bytes written: no space left?")
    except OSError:
      os.ftruncate(self._file.fileno(), size)
      raise

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends one line."""
    self.write(step, {name: float(value) for name, value in scalars.items()})

  def flush(self) -> None:
    """Does nothing: a line is written at once."""
