"""Learning rates by hand, and updates against PyTorch's AdamW."""

import math

import jax
import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.training import OptimizerConfig


def config(**changes):
  settings = {"peak_learning_rate": 0.01, "final_learning_rate": 0.001, "warmup_steps": 10, "weight_decay": 0.1}
  return OptimizerConfig(**settings | changes)


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_schedule(warmup):
  """Linear from zero to the peak, then half a cosine to the final rate."""
  schedule = config(warmup_steps=warmup).schedule(50)
  for step in range(55):
    if step < warmup:
      expected = 0.01 * step / warmup
    else:
      expected = 0.001 + 0.009 * (1 + math.cos(math.pi * min(1, (step - warmup) / (50 - warmup)))) / 2
    assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("steps", [3, 10])
def test_warmup_that_leaves_no_steps(steps):
  with pytest.raises(InputError, match=r"warmup_steps = 10 leaves nothing of the run's"):
    config().schedule(steps)


@pytest.mark.parametrize("changes", [{"warmup_steps": -1}, {"peak_learning_rate": 0.0}])
def test_impossible_schedules(changes):
  with pytest.raises(InputError, match="OptimizerConfig"):
    config(**changes)


@pytest.mark.parametrize("clip_norm", [1.0, 100.0])
def test_updates_equal_pytorch(clip_norm):
  """Small and large gradients, clipped by one norm over all parameters; decay is decoupled and spares nothing."""
  torch = pytest.importorskip("torch")
  settings = config(warmup_steps=2, clip_norm=clip_norm, epsilon=1e-3, beta1=0.8, beta2=0.9)
  transformation, schedule = settings.build(8), settings.schedule(8)
  rng = np.random.default_rng(0)
  params = {"anchor": rng.standard_normal((4, 3)), "bank": rng.standard_normal(5)}
  params = jax.tree.map(lambda x: x.astype(np.float32), params)
  theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
  adamw = torch.optim.AdamW(theirs.values(), lr=1.0, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)
  state = transformation.init(params)
  for step, scale in enumerate([1, 0.01, 30, 1, 0.1, 0.001, 3, 1]):
    grads = {name: (scale * rng.standard_normal(value.shape)).astype(np.float32) for name, value in params.items()}
    if step >= 4:
      grads["bank"][:] = 0  # as for rows that no sequence fetched: moments and weights still decay
    updates, state = transformation.update(grads, state, params)
    params = jax.tree.map(lambda value, update: np.asarray(value + update), params, updates)
    for name, parameter in theirs.items():
      parameter.grad = torch.tensor(grads[name])
    torch.nn.utils.clip_grad_norm_(theirs.values(), clip_norm)
    adamw.param_groups[0]["lr"] = float(schedule(step))
    adamw.step()
    for name, parameter in theirs.items():
      np.testing.assert_allclose(params[name], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)
