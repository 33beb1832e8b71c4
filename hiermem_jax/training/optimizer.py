"""AdamW with warmup and cosine decay, one setting for anchor and bank (paper, Appendices A.1 and A.2)."""

import dataclasses

import optax

from hiermem_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """AdamW, cosine from `peak_learning_rate` to `final_learning_rate` after a linear warmup.

  The bank is updated densely: rows that no sequence fetched have zero gradient, and their moments and weights decay
  like every other parameter's. One global norm over anchor and bank is clipped.
  """

  peak_learning_rate: float
  final_learning_rate: float
  warmup_steps: int
  weight_decay: float
  beta1: float = 0.9
  beta2: float = 0.95
  epsilon: float = 1e-8
  clip_norm: float = 1.0

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

  def build(self, steps: int) -> optax.GradientTransformation:
    """The optax transformation for a run of `steps` steps."""
    return optax.chain(
      optax.clip_by_global_norm(self.clip_norm),
      optax.adamw(
        self.schedule(steps), b1=self.beta1, b2=self.beta2, eps=self.epsilon, weight_decay=self.weight_decay
      ),
    )
