"""How a Beam pipeline is run: here in several processes, or wherever `--runner` says.

Pipelines of this room hand over files, not elements: what a step has finished is on disk under its final name, so a
pipeline that is run again does only what is missing.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from hiermem_jax.errors import InputError

# What is worth one line instead of a traceback when a worker raises it.
_CAUSES = re.compile(
  r"\b(InputError|PermissionError|FileNotFoundError|NotADirectoryError|OSError|MemoryError): (.*?)"
  r"(?: \[while running .*)?$",
  re.MULTILINE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamConfig:
  """Where pipelines run.

  Attributes:
    runner: a runner's name as Beam knows it: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ...
    options: Beam's pipeline options, e.g. ("--project=my-project", "--region=europe-west4"). The DirectRunner gets one
      process per core unless they say otherwise; it keeps what is grouped in memory.
  """

  runner: str = "DirectRunner"
  options: tuple[str, ...] = ()

  def run(self, build: Callable[[Any], None], num_units: int) -> None:
    """Builds and runs one pipeline and waits for its end.

    Args:
      build: adds the steps to the pipeline that it is given.
      num_units: independent pieces of work; no more processes than that are started.

    Raises:
      InputError: what a worker raised because of bad input; or an unknown runner.
      OSError: a worker could not read or write a file.
      RuntimeError: the pipeline failed in another way.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    options = list(self.options)
    if self.runner == "DirectRunner" and not any(o.startswith("--direct_") for o in options):
      options += _processes(num_units)
    with _QuietBeam():
      try:
        pipeline = beam.Pipeline(runner=self.runner, options=PipelineOptions(options))
      except ValueError as error:
        raise InputError(f"--runner={self.runner}: {' '.join(str(error).split())}; name another runner") from error
      try:
        build(pipeline)
        pipeline.run().wait_until_finish()
      except Exception as error:
        raise _cause(error) from error


def _processes(num_units: int) -> Sequence[str]:
  """Options of the DirectRunner for this machine.

  On a machine with accelerators one process feeds all of them: most can be held by one process only.
  """
  import jax

  workers = min(os.cpu_count() or 1, num_units) if jax.default_backend() == "cpu" else 1
  if workers <= 1:
    return ("--direct_running_mode=in_memory", "--direct_num_workers=1")
  # Of the workers' own messages ours are shown, those of the library below an error are not.
  quiet = ("--default_sdk_harness_log_level=ERROR", '--sdk_harness_log_level_overrides={"absl": "INFO"}')
  return ("--direct_running_mode=multi_processing", f"--direct_num_workers={workers}", *quiet)


def _cause(error: Exception) -> Exception:
  """What to raise for a failed pipeline: workers in other processes report a traceback as text."""
  found = _CAUSES.findall(str(error))
  if isinstance(error, InputError | OSError | MemoryError):
    found = [(type(error).__name__, str(error).split(" [while running ")[0])]
  if not found:
    return error
  kind, message = found[-1]
  return InputError(message) if kind == "InputError" else OSError(f"{message} ({kind})")


class _QuietBeam:
  """Keeps Beam's own messages out of the log while a pipeline runs; what fails is raised, not logged."""

  def __enter__(self):
    self._logger = logging.getLogger("apache_beam")
    self._level = self._logger.level
    self._logger.setLevel(logging.CRITICAL)

  def __exit__(self, *exception):
    self._logger.setLevel(self._level)
