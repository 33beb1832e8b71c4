"""AdamW with warmup and cosine decay, one setting for anchor and bank (paper, Appendices A.1 and A.2)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from hiermem_jax.errors import InputError
from hiermem_jax.models.bank import num_table_rows, table_name
from hiermem_jax.models.config import MemoryConfig
from hiermem_jax.training.row_adamw import apply_row_updates, row_adamw

RowUpdate = Literal["dense", "lazy"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """AdamW, cosine from `peak_learning_rate` to `final_learning_rate` after a linear warmup.

  One global norm over the anchor and the fetched rows is clipped; a row that several sequences share counts once, with
  the sum of their gradients.

  Attributes:
    peak_learning_rate: reached at the end of the warmup.
    final_learning_rate: reached at the last step.
    warmup_steps: steps in which the rate rises from 0.
    weight_decay: of anchor and bank, times the learning rate.
    beta1: decay of the first moments.
    beta2: decay of the second moments.
    epsilon: added to the root of the second moment.
    clip_norm: largest global norm of a step's gradients.
    bank_update: how bank tables are updated (see `row_adamw`): one choice for all levels, or one per tree level. "auto"
      chooses dense for a table that has at most as many rows as a batch has sequences, because nearly all its rows are
      fetched in every step, and lazy for the others.
    bank_moment_dtype: type of the bank's stored moments.
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

  def __post_init__(self):
    """Rejects schedules that cannot be run."""
    if self.warmup_steps < 0 or self.peak_learning_rate <= 0:
      raise InputError(
        f"OptimizerConfig: warmup_steps = {self.warmup_steps}, peak_learning_rate = {self.peak_learning_rate}:"
        " bind a warmup of at least 0 steps and a positive rate"
      )

  def schedule(self, steps: int) -> optax.Schedule:
    """Learning rate at each of `steps` steps."""
    if self.warmup_steps >= steps:
      raise InputError(
        f"OptimizerConfig.warmup_steps = {self.warmup_steps} leaves nothing of the run's {steps} steps; bind fewer"
      )
    return optax.warmup_cosine_decay_schedule(
      init_value=0.0,
      peak_value=self.peak_learning_rate,
      warmup_steps=self.warmup_steps,
      decay_steps=steps,
      end_value=self.final_learning_rate,
    )

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
    adam = {"b1": self.beta1, "b2": self.beta2, "eps": self.epsilon, "weight_decay": self.weight_decay}
    schedule = self.schedule(steps)
    anchor = optax.adamw(schedule, **adam)
    tables = {
      name: row_adamw(schedule, **adam, lazy=choice == "lazy", moment_dtype=self.bank_moment_dtype)
      for name, choice in (self.row_updates(memory, batch_size) if memory else {}).items()
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
