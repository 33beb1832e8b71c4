"""The training state."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from hiermem_jax.models.config import ModelConfig
from hiermem_jax.models.model import init_params


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes.

  Attributes:
    step: int32 [], batches seen.
    skipped: int32 [], how many of them were not finite and changed nothing else.
    params: {"anchor": Linen parameters, "bank": tables}; no "bank" without memory.
    opt_state: the optimizer's state, see `OptimizerConfig.build`.
  """

  step: jax.Array
  skipped: jax.Array
  params: dict[str, Any]
  opt_state: optax.OptState


def init_state(key: jax.Array, model: ModelConfig, optimizer: optax.GradientTransformation) -> TrainState:
  """A fresh state, its parameters and moments boxed with their logical axis names."""
  params = init_params(key, model)
  zero = jnp.zeros((), jnp.int32)
  return TrainState(step=zero, skipped=zero, params=params, opt_state=optimizer.init(params))
