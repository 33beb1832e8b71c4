"""AdamW of a run: one setting for anchor and bank (paper, Appendices A.1 and A.2), and settings of single parts."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from hiermem_jax.errors import InputError
from hiermem_jax.models.bank import num_table_rows, table_name
from hiermem_jax.models.config import MemoryConfig
from hiermem_jax.training.row_adamw import apply_row_updates, row_adamw

RowUpdate = Literal["dense", "lazy"]
ScheduleKind = Literal["cosine", "constant", "wsd"]

_LEAVES = {"norms": "scale", "embeddings": "embedding"}  # what the anchor calls these parameters
_WANTED: dict[str, tuple[Callable[[float], bool], str]] = {
  "peak_learning_rate": (lambda x: x > 0, "a positive number"),
  "final_learning_rate": (lambda x: x >= 0, "0 or a positive number"),
  "warmup_steps": (lambda x: x >= 0, "0 or a positive number"),
  "decay_steps": (lambda x: x > 0, "a positive number"),
  "weight_decay": (lambda x: x >= 0, "0 or a positive number"),
  "beta1": (lambda x: 0 <= x < 1, "a number from 0 to below 1"),
  "beta2": (lambda x: 0 <= x < 1, "a number from 0 to below 1"),
  "epsilon": (lambda x: x > 0, "a positive number"),
  "clip_norm": (lambda x: x > 0, "a positive number"),
}


def _require_in_range(settings: Any) -> None:
  for name, (holds, wanted) in _WANTED.items():
    value = getattr(settings, name, None)
    if value is not None and not holds(value):
      raise InputError(f"{type(settings).__name__}.{name} = {value}: bind {wanted}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartSettings:
  """What the anchor, the bank or one tree level has of its own, by the names of `OptimizerConfig`; None is as there.

  Attributes:
    peak_learning_rate: of the part.
    final_learning_rate: of the part. None: it has the same ratio to the peak as in `OptimizerConfig`, so that a peak
      alone multiplies the whole schedule.
    warmup_steps: of the part.
    schedule_kind: of the part.
    decay_steps: of the part.
    weight_decay: of the part.
    beta1: of the part.
    beta2: of the part.
  """

  peak_learning_rate: float | None = None
  final_learning_rate: float | None = None
  warmup_steps: int | None = None
  schedule_kind: ScheduleKind | None = None
  decay_steps: int | None = None
  weight_decay: float | None = None
  beta1: float | None = None
  beta2: float | None = None

  def __post_init__(self):
    """Rejects numbers that no optimizer can have."""
    _require_in_range(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """AdamW after a linear warmup.

  One global norm over the anchor and the fetched rows is clipped; a row that several sequences share counts once, with
  the sum of their gradients.

  Attributes:
    peak_learning_rate: of the last warmup step and of the step after it.
    final_learning_rate: where the schedule ends: the step after the run's last would have it. A constant one has none.
    warmup_steps: steps in which the rate rises by peak / warmup_steps each; the first one has that much, not 0.
    weight_decay: of anchor and bank, times the learning rate.
    beta1: decay of the first moments.
    beta2: decay of the second moments.
    epsilon: added to the root of the second moment.
    clip_norm: largest global norm of a step's gradients.
    bank_update: how bank tables are updated (see `row_adamw`): one choice for all levels, or one per tree level. "auto"
      chooses dense for a table that has at most as many rows as a batch has sequences, because nearly all its rows are
      fetched in every step, and lazy for the others.
    bank_moment_dtype: type of the bank's stored moments.
    schedule_kind: what follows the warmup. "cosine" falls from the peak to the final rate; "constant" stays at the
      peak; "wsd" (warmup, stable, decay) stays there and falls linearly in the last steps.
    decay_steps: of "wsd", how many steps fall; None is a tenth of the run.
    no_decay: parameters of the anchor that have no weight decay; the paper names none.
    anchor: what the anchor has of its own; None is nothing.
    bank: the same for all tables of the bank.
    levels: the same for single tree levels, on top of `bank`: one entry per level of the tree, or none at all.
  """

  peak_learning_rate: float
  final_learning_rate: float
  warmup_steps: int
  weight_decay: float
  beta1: float = 0.9
  beta2: float = 0.95
  epsilon: float = 1e-8
  clip_norm: float = 1.0
  bank_update: Literal["dense", "lazy", "auto"] | tuple[Literal["dense", "lazy"], ...] = "dense"
  bank_moment_dtype: Literal["float32", "bfloat16"] = "float32"
  schedule_kind: ScheduleKind = "cosine"
  decay_steps: int | None = None
  no_decay: tuple[Literal["norms", "embeddings"], ...] = ()
  anchor: PartSettings | None = None
  bank: PartSettings | None = None
  levels: tuple[PartSettings | None, ...] = ()

  def __post_init__(self):
    """Rejects numbers that no optimizer can have."""
    _require_in_range(self)

  def schedule(self, steps: int, owner: str = "OptimizerConfig") -> optax.Schedule:
    """Learning rate at each of `steps` steps, counted from 0, of parts that have none of their own.

    Args:
      steps: length of the run.
      owner: what binds the numbers, for messages.

    Raises:
      InputError: the warmup, or the steps in which the rate falls, leave nothing of the run; or the kind of schedule
        has no such steps.
    """
    peak, left = self.peak_learning_rate, steps - self.warmup_steps
    if left <= 0:
      raise InputError(
        f"{owner}.warmup_steps = {self.warmup_steps} leaves nothing of the run's {steps} steps; bind fewer"
      )
    if self.decay_steps is not None and self.schedule_kind != "wsd":
      raise InputError(
        f"{owner}.decay_steps = {self.decay_steps}: schedule_kind = {self.schedule_kind!r} has no such steps; bind"
        " 'wsd', or None"
      )
    if self.schedule_kind == "cosine":
      after = optax.cosine_decay_schedule(peak, left, alpha=self.final_learning_rate / peak)
    elif self.schedule_kind == "constant":
      after = optax.constant_schedule(peak)
    else:
      falling = self.decay_steps or max(1, steps // 10)
      if falling > left:
        raise InputError(
          f"{owner}.decay_steps = {falling}: the warmup of {self.warmup_steps} leaves {left} of the run's"
          f" {steps} steps; bind fewer"
        )
      fall = optax.linear_schedule(peak, self.final_learning_rate, falling)
      after = optax.join_schedules([optax.constant_schedule(peak), fall], [left - falling])
    if not self.warmup_steps:
      return after
    rise = optax.linear_schedule(0.0, peak, self.warmup_steps)
    return optax.join_schedules([lambda step: rise(step + 1), after], [self.warmup_steps])

  def for_anchor(self) -> "OptimizerConfig":
    """The settings of the anchor: the common ones with its own in their place."""
    return self._with(self.anchor)

  def for_tables(self, memory: MemoryConfig) -> dict[str, "OptimizerConfig"]:
    """The settings of each table: the common ones with the bank's and those of its level in their place.

    Raises:
      InputError: `levels` has not one entry for each level of the tree.
    """
    if self.levels and len(self.levels) != memory.depth:
      raise InputError(
        f"OptimizerConfig.levels has {len(self.levels)} entries: the tree has {memory.depth} levels; bind one entry for"
        " each, None where a level has nothing of its own"
      )
    bank = self._with(self.bank)
    return {table_name(level): bank._with(self.levels[level - 1] if self.levels else None) for level in memory.levels}

  def _with(self, own: PartSettings | None) -> "OptimizerConfig":
    given = {} if own is None else {name: value for name, value in vars(own).items() if value is not None}
    if "peak_learning_rate" in given:
      ratio = given["peak_learning_rate"] / self.peak_learning_rate
      given = {"final_learning_rate": ratio * self.final_learning_rate} | given
    if given.get("schedule_kind", "wsd") != "wsd":
      given = {"decay_steps": None} | given
    return dataclasses.replace(self, **given)

  def schedules(self, steps: int, memory: MemoryConfig | None = None) -> dict[str, optax.Schedule]:
    """Learning rates by the names of their scalars.

    Args:
      steps: length of the run.
      memory: the bank's configuration, None when the run has none.

    Returns:
      `learning_rate`, the common one, and `learning_rate/PART` of each part, anchor or level_k, whose own differs.
    """
    parts = {"anchor": self.for_anchor()} | (self.for_tables(memory) if memory else {})

    def shape(config: OptimizerConfig) -> tuple:
      rates = (config.peak_learning_rate, config.final_learning_rate)
      return (*rates, config.warmup_steps, config.schedule_kind, config.decay_steps)

    own = {name: part for name, part in parts.items() if shape(part) != shape(self)}
    named = {f"learning_rate/{name}": part.schedule(steps, "PartSettings") for name, part in own.items()}
    return {"learning_rate": self.schedule(steps)} | named

  def row_updates(self, memory: MemoryConfig, batch_size: int) -> dict[str, RowUpdate]:
    """How each table of the bank is updated when a batch has `batch_size` sequences."""
    choice = self.bank_update
    if isinstance(choice, tuple) and len(choice) != memory.depth:
      raise InputError(
        f"OptimizerConfig.bank_update = {choice}: the tree has {memory.depth} levels; bind one entry for each"
      )

    def of(level: int) -> RowUpdate:
      if isinstance(choice, tuple):
        return choice[level - 1]
      if choice == "auto":
        return "dense" if num_table_rows(memory, level) <= batch_size else "lazy"
      return choice

    return {table_name(level): of(level) for level in memory.levels}

  def _is_decayed(self, params: Any) -> Any:
    """Whether each parameter of the anchor has weight decay, as a tree of bools."""
    spared = {_LEAVES[kind] for kind in self.no_decay}

    def decayed(path, _):
      return not spared & set(jax.tree_util.keystr(path, simple=True, separator="/").split("/"))

    return jax.tree_util.tree_map_with_path(decayed, params)

  def build(
    self, steps: int, memory: MemoryConfig | None = None, batch_size: int = 0, *, frozen_anchor: bool = False
  ) -> optax.GradientTransformationExtraArgs:
    """The optax transformation of a run's parameters {"anchor": ..., "bank": ...}.

    Its gradients are the anchor's and, per table, a `RowGradient`. `apply_updates` adds its updates. With
    `update(..., finite=False)` the updates are zero and the state stays as it is. `update(..., key=...)` is for the
    rounding of bfloat16 moments.

    Args:
      steps: length of the run.
      memory: the bank's configuration, None when the run has none.
      batch_size: sequences in a global batch, which "auto" asks for.
      frozen_anchor: the anchor has no gradients ({}), no moments and no updates.
    """
    self.schedule(steps)  # so that what is wrong with the common one is not said of a part

    def adam(config: OptimizerConfig) -> dict[str, Any]:
      betas = {"b1": config.beta1, "b2": config.beta2, "eps": config.epsilon}
      return {"learning_rate": config.schedule(steps, "PartSettings"), "weight_decay": config.weight_decay, **betas}

    anchor = optax.adamw(**adam(self.for_anchor()), mask=self._is_decayed if self.no_decay else None)
    choices = self.row_updates(memory, batch_size) if memory else {}
    tables = {
      name: row_adamw(**adam(config), lazy=choices[name] == "lazy", moment_dtype=self.bank_moment_dtype)
      for name, config in (self.for_tables(memory) if memory else {}).items()
    }

    def init(params):
      bank = {name: tables[name].init(table) for name, table in params.get("bank", {}).items()}
      return {"anchor": anchor.init({} if frozen_anchor else params["anchor"]), "bank": bank}

    def update(grads, state, params, *, finite=True, key=None, **_):
      norm = global_norm(grads)
      scale = jnp.where(norm < self.clip_norm, 1.0, self.clip_norm / norm)
      clipped = jax.tree.map(lambda g: g * scale, grads["anchor"])
      weights = {} if frozen_anchor else params["anchor"]
      updates, anchor_state = anchor.update(clipped, state["anchor"], weights)
      updates = {"anchor": jax.tree.map(lambda x: jnp.where(finite, x, 0.0), updates)}
      anchor_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), anchor_state, state["anchor"])
      bank_state = {}
      for index, (name, gradient) in enumerate(grads.get("bank", {}).items()):
        with jax.named_scope(name):
          gradient = gradient._replace(value=gradient.value * scale)
          own = None if key is None else jax.random.fold_in(key, index)
          result = tables[name].update(gradient, state["bank"][name], params["bank"][name], finite=finite, key=own)
        updates.setdefault("bank", {})[name], bank_state[name] = result
      return updates, {"anchor": anchor_state, "bank": bank_state}

    return optax.GradientTransformationExtraArgs(init, update)


def global_norm(grads) -> jax.Array:
  """The norm over anchor and bank of gradients as `OptimizerConfig.build` takes them, float32 []."""
  rows = [gradient.value for gradient in grads.get("bank", {}).values()]
  return optax.global_norm((grads["anchor"], rows))


def apply_updates(params, updates, key: jax.Array):
  """Parameters plus the updates of `OptimizerConfig.build`; `key` is for the rounding of bfloat16 tables."""
  result = {"anchor": params["anchor"]}
  if jax.tree.leaves(updates["anchor"]):  # none where the anchor is frozen
    result["anchor"] = optax.apply_updates(params["anchor"], updates["anchor"])
  for index, (name, table) in enumerate(params.get("bank", {}).items()):
    with jax.named_scope(name):
      table = apply_row_updates(table, updates["bank"][name], jax.random.fold_in(key, index))
    result.setdefault("bank", {})[name] = table
  return result
