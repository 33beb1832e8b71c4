"""Runs Beam pipelines: in several processes of this machine, or with another runner (--runner).

The pipelines of this room write files at the end of each step. A pipeline that is run again does only the work whose
files are missing.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from hiermem_jax.errors import InputError

# Exceptions of workers that are reported in one line, without a traceback.
_CAUSES = re.compile(
  r"\b(InputError|PermissionError|FileNotFoundError|NotADirectoryError|OSError|MemoryError): (.*?)"
  r"(?: \[while running .*)?$",
  re.MULTILINE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamConfig:
  """Where pipelines run.

  Attributes:
    runner: Beam's name of a runner: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ...
    options: Beam's pipeline options, e.g. ("--project=my-project", "--region=europe-west4"). Without an option that
      begins with --direct_, the DirectRunner starts one process per core. It holds grouped elements in memory.
  """

  runner: str = "DirectRunner"
  options: tuple[str, ...] = ()

  def run(self, build: Callable[[Any], None], num_units: int) -> None:
    """Builds and runs one pipeline and waits for its end.

    Args:
      build: gets an empty pipeline and adds the steps to it.
      num_units: number of independent pieces of work; no more processes than that are started.

    Raises:
      InputError: a worker raised InputError, or there is no such runner.
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

  On a machine with accelerators there is one process, because most accelerators can be used by one process only.
  """
  import jax

  workers = min(os.cpu_count() or 1, num_units) if jax.default_backend() == "cpu" else 1
  if workers <= 1:
    return ("--direct_running_mode=in_memory", "--direct_num_workers=1")
  # Workers show all messages of ours, and only errors of Beam's.
  quiet = ("--default_sdk_harness_log_level=ERROR", '--sdk_harness_log_level_overrides={"absl": "INFO"}')
  return ("--direct_running_mode=multi_processing", f"--direct_num_workers={workers}", *quiet)


def _cause(error: Exception) -> Exception:
  """The exception to raise for a failed pipeline. Other processes report theirs as the text of a traceback."""
  found = _CAUSES.findall(str(error))
  if isinstance(error, InputError | OSError | MemoryError):
    found = [(type(error).__name__, str(error).split(" [while running ")[0])]
  if not found:
    return error
  kind, message = found[-1]
  return InputError(message) if kind == "InputError" else OSError(f"{message} ({kind})")


class _QuietBeam:
  """Context in which Beam logs nothing. Nothing is lost, because errors are raised."""

  def __enter__(self):
    self._logger = logging.getLogger("apache_beam")
    self._level = self._logger.level
    self._logger.setLevel(logging.CRITICAL)

  def __exit__(self, *exception):
    self._logger.setLevel(self._level)
