"""Where a run reports: metrics.jsonl, TensorBoard, profiles, and the list of parameters."""

import os
from collections.abc import Callable

import flax.linen as nn
import jax
from absl import logging

from hiermem_jax import console
from hiermem_jax.errors import InputError
from hiermem_jax.models.config import ModelConfig
from hiermem_jax.models.model import init_params
from hiermem_jax.parallel import distributed
from hiermem_jax.training.metrics import JsonlWriter, Lenient, MetricWriter, NoWriter

Hook = Callable[[int], None]  # called with the step after every step


def open_writers(directory: str) -> Callable[[int], MetricWriter]:
  """Writers of a run's scalars into its directory: a function from the step that the run starts at to the writer.

  Of several processes the first one alone writes. clu needs TensorFlow for TensorBoard events; where TensorFlow is
  absent there is metrics.jsonl.
  """
  if not distributed.is_first():
    return lambda start_step: NoWriter()

  def open_jsonl(start_step: int) -> MetricWriter:
    return Lenient(JsonlWriter(os.path.join(directory, "metrics.jsonl"), start_step))

  try:
    from clu import metric_writers
  except ImportError as error:
    logging.warning("metrics.jsonl only, no TensorBoard events: %s", error)
    return open_jsonl

  def open_both(start_step: int) -> MetricWriter:
    return metric_writers.MultiWriter([open_jsonl(start_step), Lenient(metric_writers.SummaryWriter(directory))])

  return open_both


class Profiler:
  """A hook that records some steps with jax's profiler, for TensorBoard's profile tab."""

  def __init__(self, directory: str, first: int, last: int):
    """Records the steps from `first` to `last` into `directory`.

    Raises:
      InputError: there are no such steps.
    """
    if not 1 < first <= last:
      raise InputError(f"train.profile_steps = {(first, last)}: bind a first step after 1 and a last one not before it")
    self._directory, self._first, self._last = directory, first, last

  def __call__(self, step: int) -> None:
    """Starts or stops, after a step."""
    if step == self._first - 1:
      jax.profiler.start_trace(self._directory)
    elif step == self._last:
      jax.profiler.stop_trace()


def log_parameters(model: ModelConfig) -> None:
  """Says how many parameters there are, and logs a table of them with their shapes, where clu is installed."""
  line = f"{model.anchor.params:,} parameters"
  if model.memory is not None:
    line = (
      f"{line} of the anchor, {model.bank_params:,} of the bank, of which a sequence fetches {model.fetched_params:,}"
    )
  console.say("%s", line)
  try:
    from clu import parameter_overview
  except ImportError:
    return
  shapes = nn.unbox(jax.eval_shape(lambda: init_params(jax.random.key(0), model)))
  logging.info("parameters:\n%s", parameter_overview.get_parameter_overview(shapes, include_stats=False))
