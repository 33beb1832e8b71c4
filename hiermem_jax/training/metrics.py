"""Where scalars go: the `MetricWriter` protocol of the loop, and `metrics.jsonl`."""

import json
import os
from collections.abc import Mapping
from typing import Protocol


class MetricWriter(Protocol):
  """The part of clu's metric writer that the loop uses, so that the loop runs where clu and TensorFlow are absent."""

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


class JsonlWriter:
  """One JSON object a line, `step` and the scalars; a resumed run continues the file without repeating a step."""

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
    temporary = path + ".tmp"
    with open(temporary, "w", encoding="utf-8") as file:
      file.writelines(kept)
    os.replace(temporary, path)
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - kept open for the run

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends one line."""
    values = {name: float(value) for name, value in scalars.items()}
    self._file.write(json.dumps({"step": int(step), **values}) + "\n")
    self._file.flush()

  def flush(self) -> None:
    """Writes out what is buffered."""
    self._file.flush()
