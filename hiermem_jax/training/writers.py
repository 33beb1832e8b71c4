"""Where a run reports: metrics.jsonl, TensorBoard, Weights & Biases, profiles, and the list of parameters."""

import dataclasses
import importlib
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from absl import logging

from hiermem_jax import console, files
from hiermem_jax.errors import InputError
from hiermem_jax.models.config import ModelConfig
from hiermem_jax.models.model import init_params
from hiermem_jax.parallel import distributed
from hiermem_jax.training.metrics import JsonlWriter, Lenient, MetricWriter, NoWriter

Hook = Callable[[int], None]  # called with the step after every step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
  """What tools that show runs are told beside the scalars.

  Attributes:
    hparams: settings of the run by their names, numbers and texts; see `flattened`.
    tokens_per_step: positions of a global batch, padding included.
    wandb_project: project of Weights & Biases that the run is sent to; None sends nothing.
  """

  hparams: Mapping[str, bool | int | float | str]
  tokens_per_step: int
  wandb_project: str | None = None


def flattened(run: Any, prefix: str = "") -> dict[str, bool | int | float | str]:
  """The fields of a dataclass by their names, those inside others with points: 'optimizer.peak_learning_rate'."""
  found: dict[str, bool | int | float | str] = {}
  for field in dataclasses.fields(run):
    value, name = getattr(run, field.name), f"{prefix}{field.name}"
    if dataclasses.is_dataclass(value):
      found |= flattened(value, f"{name}.")
    else:
      found[name] = value if isinstance(value, bool | int | float | str) else str(value)
  return found


def open_writers(directory: str, shown: Shown | None = None) -> Callable[[int], MetricWriter]:
  """Writers of a run's scalars into its directory: a function from the step that the run starts at to the writer.

  Of several processes the first one alone writes. clu needs TensorFlow for TensorBoard events; where TensorFlow is
  absent there is metrics.jsonl.

  Raises:
    InputError: a project of Weights & Biases is named, and wandb is not installed.
  """
  if not distributed.is_first():
    return lambda start_step: NoWriter()
  wandb = None if shown is None or shown.wandb_project is None else _import_wandb()

  def open_all(start_step: int) -> MetricWriter:
    opened: list[MetricWriter] = [Lenient(JsonlWriter(os.path.join(directory, "metrics.jsonl"), start_step))]
    if (events := _open_events(directory, shown)) is not None:
      opened.append(events)
    if wandb is not None and shown is not None:
      opened.append(Lenient(WandbWriter(wandb, directory, shown)))
    return Several(opened)

  return open_all


def _open_events(directory: str, shown: Shown | None) -> MetricWriter | None:
  """TensorBoard events; None where what they need is not installed."""
  try:
    from clu import metric_writers
  except ImportError as error:
    logging.warning("metrics.jsonl only, no TensorBoard events: %s", error)
    return None
  events = metric_writers.SummaryWriter(directory)
  if shown is None:
    return Lenient(events)
  try:
    events.write_hparams(dict(shown.hparams))
  except Exception as error:  # TensorFlow has errors of its own
    logging.warning("TensorBoard gets no hparams: %s", error)
  return Lenient(OverTokens(events, shown.tokens_per_step))


class Several:
  """Writes to several writers, in their order."""

  def __init__(self, writers: Sequence[MetricWriter]):
    self._writers = writers

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Records scalars of a step."""
    for writer in self._writers:
      writer.write_scalars(step, scalars)

  def flush(self) -> None:
    """Makes everything recorded durable."""
    for writer in self._writers:
      writer.flush()


class OverTokens:
  """Writes all scalars by step, and the losses a second time by tokens, under the name over_tokens/NAME."""

  def __init__(self, writer: MetricWriter, tokens_per_step: int):
    self._writer, self._tokens = writer, tokens_per_step

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Records scalars of a step."""
    self._writer.write_scalars(step, scalars)
    losses = {f"over_tokens/{name}": value for name, value in scalars.items() if name.split("/")[0] == "loss"}
    if losses:
      self._writer.write_scalars(step * self._tokens, losses)

  def flush(self) -> None:
    """Makes everything recorded durable."""
    self._writer.flush()


def _import_wandb() -> Any:
  try:
    return importlib.import_module("wandb")
  except ImportError as error:
    raise InputError(
      "train.wandb_project: Weights & Biases is not installed; pip install 'hiermem_jax[wandb]', or bind None"
    ) from error


class WandbWriter:
  """Sends scalars to Weights & Biases, with the tokens so far as `tokens_seen`, which plots can have as their axis.

  The name of the run there is kept in wandb_id, so that a training that resumes goes on in the same run.
  """

  def __init__(self, wandb: Any, directory: str, shown: Shown):
    """Opens the run: the module wandb, the directory of the training, and what to show.

    Raises:
      InputError: wandb cannot open it, e.g. without a login.
    """
    path = os.path.join(directory, "wandb_id")
    if not os.path.exists(path):
      files.write_text(path, uuid.uuid4().hex[:8])
    with open(path, encoding="utf-8") as file:
      name = file.read().strip()
    self._tokens = shown.tokens_per_step
    about = {"name": os.path.normpath(directory), "dir": directory, "config": dict(shown.hparams)}
    # Of a chain's trainings each is a run: by default wandb gives the second one the run of the first.
    about["reinit"] = "finish_previous"
    try:
      self._run = wandb.init(project=shown.wandb_project, id=name, resume="allow", **about)
    except Exception as error:  # wandb has errors of its own
      remedy = "wandb login, set WANDB_MODE=offline, or bind None"
      raise InputError(f"train.wandb_project = {shown.wandb_project!r}: {error}; {remedy}") from error

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Sends scalars of a step."""
    self._run.log({**scalars, "tokens_seen": step * self._tokens}, step=step)

  def flush(self) -> None:
    """Does nothing: wandb sends by itself."""


class Profiler:
  """A hook that records some steps with jax's profiler, for TensorBoard's profile tab.

  A context: where the run ends between the first and the last step, what is recorded is written all the same.
  """

  def __init__(self, directory: str, first: int, last: int, steps_per_call: int = 1):
    """Records the steps from `first` to `last` into `directory`; of calls of several steps, the next whole ones.

    Raises:
      InputError: there are no such steps.
    """
    if not 1 < first <= last:
      raise InputError(f"train.profile_steps = {(first, last)}: bind a first step after 1 and a last one not before it")
    self._directory, self._steps_per_call, self._records = directory, steps_per_call, False
    self._start = -(-(first - 1) // steps_per_call) * steps_per_call  # a step after which it begins
    self._stop_at = self._start - (first - 1 - last) // steps_per_call * steps_per_call

  def __enter__(self) -> "Profiler":
    return self

  def __exit__(self, *_: object) -> None:
    self._stop()

  def __call__(self, step: int) -> None:
    """Starts or stops, after a step. A run that resumes between the two records what is left."""
    if step >= self._stop_at:
      self._stop()
    elif not self._records and step >= self._start and step % self._steps_per_call == 0:
      jax.profiler.start_trace(self._directory)
      self._records = True

  def _stop(self) -> None:
    if self._records:
      self._records = False
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
