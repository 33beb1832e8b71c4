"""Results that are kept as soon as they are there, so that a long evaluation can be stopped and goes on."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from hiermem_jax.evaluation.report import write_json
from hiermem_jax.parallel import distributed


class ResultStore:
  """One JSON file per result in a directory, each with the settings that it was measured under."""

  def __init__(self, directory: str):
    """Creates the directory."""
    self._directory = os.path.join(directory, "results")
    distributed.on_first(lambda: os.makedirs(self._directory, exist_ok=True))

  def get(self, name: str, settings: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
    """The result of that name: as stored, where it was measured under the same settings, or else measured now.

    Every process must ask, and measures; the first one writes.

    Args:
      name: of the file, which has an underscore for what is not a letter, a digit, a point or a hyphen.
      settings: JSON.
      measure: gives the result, JSON.
    """
    safe = "".join(c if c.isalnum() or c in ".-" else "_" for c in name)
    path = os.path.join(self._directory, f"{safe}.json")
    settings = json.loads(json.dumps(settings))
    held = self._read(path)
    if distributed.from_first(int(held is not None and held.get("settings") == settings)):
      return self._read(path)["result"]
    result = measure()
    distributed.on_first(lambda: write_json({"settings": settings, "result": result}, path))
    return json.loads(json.dumps(result))

  def _read(self, path: str) -> dict[str, Any] | None:
    if not os.path.exists(path):
      return None
    with open(path, encoding="utf-8") as file:
      return json.load(file)
