"""Results that are kept as soon as they exist, so that a long evaluation that was stopped can continue."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from hiermem_jax import files
from hiermem_jax.evaluation.report import write_json
from hiermem_jax.parallel import distributed


class ResultStore:
  """One JSON file per result in a directory, each with the settings that it was measured under."""

  def __init__(self, directory: str):
    """Names the directory; the first result creates it."""
    self._directory = os.path.join(directory, "results")

  def get(self, name: str, settings: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
    """Returns the stored result if it was measured under the same settings; otherwise measures and stores it.

    Every process must call this, and measures; the first process writes.

    Args:
      name: of the result; in the name of its file, underscores stand for all but letters, digits, points and hyphens.
      settings: what the result depends on, JSON.
      measure: computes the result, JSON.
    """
    path = self._path(name)
    settings = json.loads(json.dumps(settings))
    held = self.held(name)
    if distributed.from_first(int(held.get("settings") == settings)):
      return files.read_json(path)["result"]
    result = measure()
    distributed.on_first(lambda: write_json({"settings": settings, "result": result}, path))
    return json.loads(json.dumps(result))

  def held(self, name: str) -> dict[str, Any]:
    """What is stored under a name: `settings` and `result`; empty where there is nothing."""
    path = self._path(name)
    return files.read_json(path) if os.path.exists(path) else {}

  def _path(self, name: str) -> str:
    safe = "".join(c if c.isalnum() or c in ".-" else "_" for c in name)
    return os.path.join(self._directory, f"{safe}.json")
