"""What a training run is: the configurations that `train` binds, and that `describe` and `compile_pod` read."""

import dataclasses
import re
from typing import Literal

import optax

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import ModelConfig
from hiermem_jax.parallel.mesh import ALL_DEVICES, MeshConfig
from hiermem_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What is minimised, and which parameters it trains.

  Attributes:
    generic_probability: chance that a sequence trains the generic memory instead of its own path (paper: 1/17).
    z_loss: coefficient of the squared mean log-partition. The paper's runs use 1e-4 for an anchor, 0 with memory.
    frozen_anchor: train the bank alone. The anchor stays as it is, bit for bit; it has neither gradients nor moments.
  """

  generic_probability: float = 1 / 17
  z_loss: float = 0.0
  frozen_anchor: bool = False

  def __post_init__(self):
    """Rejects a probability that is none and a negative coefficient."""
    if not 0 <= self.generic_probability <= 1:
      raise InputError(f"Objective.generic_probability = {self.generic_probability}: bind a number from 0 to 1")
    if self.z_loss < 0:
      raise InputError(f"Objective.z_loss = {self.z_loss}: bind 0 or a positive number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
  """When checkpoints are written, and which are kept.

  Attributes:
    every: steps between checkpoints; the last step always has one.
    keep: how many of the newest are kept.
    keep_every: steps; checkpoints at multiples of it are kept for good. None keeps none for good.
    skip_damaged: move a damaged checkpoint to `damaged/`, and resume from the one before it.
  """

  every: int = 1000
  keep: int = 2
  keep_every: int | None = None
  skip_damaged: bool = False

  def __post_init__(self):
    """Rejects numbers that are not positive."""
    for name in ("every", "keep", "keep_every"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise InputError(f"CheckpointConfig.{name} = {value}: bind a positive number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
  """Held-out text whose losses are measured during training; the best model by one of them is kept in `best/`.

  Attributes:
    dataset: packed dataset of one sequence length, the set `main`.
    every: steps between measurements; the last step always has one.
    sequences: how many sequences of each set are measured, the first ones.
    others: further sets, each a name and a packed dataset like `dataset`, e.g. (('code', '/data/code/validation'),).
    modes: memories that sequences are given: none, the generic one, or that of their own path. The last one decides, on
      the set `main`, which model is the best. A model without a bank has the mode none alone, whatever is named.
  """

  dataset: str
  every: int = 1000
  sequences: int = 1024
  others: tuple[tuple[str, str], ...] = ()
  modes: tuple[Literal["none", "generic", "fetched"], ...] = ("fetched",)

  @property
  def datasets(self) -> tuple[tuple[str, str], ...]:
    """(what binds it, path) of each dataset, the main one first."""
    return (("ValidationConfig.dataset", self.dataset), *(("ValidationConfig.others", path) for _, path in self.others))

  def __post_init__(self):
    """Rejects numbers that are not positive, names that are no names of scalars or taken, and no modes."""
    names = [name for name, _ in self.others]
    for name in names:
      if not re.fullmatch(r"[\w.-]+", name) or name == "main" or names.count(name) > 1:
        raise InputError(
          f"ValidationConfig.others: a set is named {name!r}; bind letters, digits, points, hyphens and underscores,"
          " each name once, and not 'main', which is ValidationConfig.dataset"
        )
    if not self.modes:
      raise InputError("ValidationConfig.modes = (): bind one of 'none', 'generic' and 'fetched' at least")
    for name in ("every", "sequences"):
      if getattr(self, name) < 1:
        raise InputError(f"ValidationConfig.{name} = {getattr(self, name)}: bind a positive number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
  """One training run: all that its steps depend on, besides the data.

  Attributes:
    model: the anchor and its memory.
    optimizer: of anchor and bank.
    steps: length of the run, which also sets the learning-rate schedule.
    batch_size: sequences of a global batch. On a dataset of several lengths it counts sequences of the longest; a batch
      of shorter ones has as many more as keep the number of tokens.
    microbatches: parts that a device's sequences of a batch are split into (gradient accumulation). One part at a time
      has activations; loss and update are those of the whole batch.
    steps_per_call: steps that the devices make before the host takes its turn, where no checkpoint or measurement is
      due between them. Where a step takes a few milliseconds, several save the time between them.
    objective: the loss and what it trains.
    mesh: how the devices are arranged, and what is split over them.
    init_from: run directory whose newest anchor starts this run, with a fresh optimizer. A run that resumes ignores it.
    init_bank_from: the same for the bank; levels that it has no table for start afresh.
    checkpoints: when they are written, and which are kept.
    log_every: steps between scalars.
    max_skipped: batches in a row with a loss or gradient that is not finite, after which the run ends. Each is skipped.
    seed: of initialisation, data order and the choice of generic sequences.
  """

  model: ModelConfig
  optimizer: OptimizerConfig
  steps: int
  batch_size: int
  microbatches: int = 1
  steps_per_call: int = 1
  objective: Objective = Objective()
  mesh: MeshConfig = ALL_DEVICES
  init_from: str | None = None
  init_bank_from: str | None = None
  checkpoints: CheckpointConfig = CheckpointConfig()
  log_every: int = 50
  max_skipped: int = 10
  seed: int = 0

  def __post_init__(self):
    """Rejects counts that are not positive, and a negative seed."""
    for name in ("steps", "batch_size", "microbatches", "steps_per_call", "log_every", "max_skipped"):
      if getattr(self, name) < 1:
        raise InputError(f"train.{name} = {getattr(self, name)}: bind a positive number")
    if self.seed < 0:
      raise InputError(f"train.seed = {self.seed}: bind 0 or a positive number")

  def check(self) -> None:
    """Checks what can be known of a run before it starts.

    Raises:
      InputError: the anchor is frozen and nothing is trained, or see `transformation`.
    """
    if self.objective.frozen_anchor and (self.model.memory is None or self.init_from is None):
      missing = "ModelConfig.memory" if self.model.memory is None else "train.init_from"
      raise InputError(
        f"Objective.frozen_anchor = True, {missing} = None: a frozen anchor comes from another run and has a bank to"
        f" train; bind {missing}"
      )
    self.transformation()

  @property
  def state_bytes(self) -> int:
    """Bytes of a checkpoint: the parameters, and the optimizer's two moments of those that are trained."""
    memory, trained = self.model.memory, 0 if self.objective.frozen_anchor else 8
    size = (4 + trained) * self.model.anchor.params
    if memory is not None:
      moments = 4 if self.optimizer.bank_moment_dtype == "bfloat16" else 8
      for level in memory.levels:
        rows = memory.clusters(level) + 1
        size += rows * self.model.block_params(level) * ((4 if memory.dtype == "float32" else 2) + moments)
    return size

  def transformation(self) -> optax.GradientTransformationExtraArgs:
    """The optimizer of this run's parameters; see `OptimizerConfig.build`.

    Raises:
      InputError: a schedule leaves no step, or `OptimizerConfig.bank_update` or `levels` does not fit the tree.
    """
    return self.optimizer.build(
      self.steps, self.model.memory, self.batch_size, frozen_anchor=self.objective.frozen_anchor
    )

  def flops_per_token(self, length: int) -> int:
    """Model FLOPs of training on one token of sequences of `length`: the forward pass, and twice that backward.

    A frozen anchor has no gradients of its weights, which saves a third of its part. What remat computes again is not
    counted.
    """
    anchor = (2 if self.objective.frozen_anchor else 3) * self.model.anchor.flops_per_token(length)
    return anchor + 3 * self.model.memory_flops_per_token
