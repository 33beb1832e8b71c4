"""Learning rates by hand, and updates against PyTorch's AdamW."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.models import MemoryConfig
from hiermem_jax.models.bank import RowGradient, sum_rows
from hiermem_jax.training import OptimizerConfig
from hiermem_jax.training.optimizer import apply_updates


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
@pytest.mark.parametrize("table_rows", [3, 8])
def test_dense_updates_equal_pytorch(clip_norm, table_rows):
  """Small and large gradients, clipped by one norm over all parameters; decay is decoupled and spares nothing.

  The gradient of the table is that of four sequences, two of which may share a row; in half of the steps none has memory,
  and moments and weights still decay.
  """
  torch = pytest.importorskip("torch")
  memory = MemoryConfig(rows=(1,), branching=table_rows - 1)
  settings = config(warmup_steps=2, clip_norm=clip_norm, epsilon=1e-3, beta1=0.8, beta2=0.9)
  transformation, schedule = settings.build(8, memory, 4), settings.schedule(8)
  rng = np.random.default_rng(0)
  params = {"anchor": rng.standard_normal((4, 3)), "bank": {"level_1": rng.standard_normal((table_rows, 5))}}
  params = jax.tree.map(lambda x: x.astype(np.float32), params)
  theirs = jax.tree.map(lambda x: torch.nn.Parameter(torch.tensor(x)), params)
  adamw = torch.optim.AdamW(jax.tree.leaves(theirs), lr=1.0, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)
  state = transformation.init(params)
  update = jax.jit(transformation.update)
  for step, scale in enumerate([1, 0.01, 30, 1, 0.1, 0.001, 3, 1]):
    anchor = (scale * rng.standard_normal((4, 3))).astype(np.float32)
    index = rng.integers(0, table_rows, 4) if step < 4 else np.full(4, table_rows)
    rows = (scale * rng.standard_normal((4, 5))).astype(np.float32)
    dense = np.zeros((table_rows + 1, 5), np.float32)
    np.add.at(dense, index, rows)
    grads = {"anchor": anchor, "bank": {"level_1": sum_rows(index.astype(np.int32), rows, table_rows)}}
    updates, state = update(grads, state, params)
    params = apply_updates(params, updates, jax.random.key(0))
    theirs["anchor"].grad, theirs["bank"]["level_1"].grad = torch.tensor(anchor), torch.tensor(dense[:-1])
    torch.nn.utils.clip_grad_norm_(jax.tree.leaves(theirs), clip_norm)
    adamw.param_groups[0]["lr"] = float(schedule(step))
    adamw.step()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-5, atol=1e-6), params, theirs)


def test_choice_per_level():
  memory = MemoryConfig(rows=(2, 2, 0, 1), branching=4)  # tables of 5, 17 and 257 rows
  assert config().row_updates(memory, 8) == dict.fromkeys(("level_1", "level_2", "level_4"), "dense")
  auto = config(bank_update="auto")
  assert auto.row_updates(memory, 17) == {"level_1": "dense", "level_2": "dense", "level_4": "lazy"}
  assert auto.row_updates(memory, 16) == {"level_1": "dense", "level_2": "lazy", "level_4": "lazy"}
  mixed = config(bank_update=("lazy", "dense", "dense", "lazy"))
  assert mixed.row_updates(memory, 8) == {"level_1": "lazy", "level_2": "dense", "level_4": "lazy"}
  with pytest.raises(InputError, match="the tree has 4 levels; bind one entry for each"):
    config(bank_update=("lazy",)).row_updates(memory, 8)


@pytest.mark.parametrize("lazy", [True, False])
def test_tables_are_rounded_independently(lazy):
  """Two tables alike, with equal updates of half a spacing: which weights go up is drawn for each."""
  table, value = jnp.ones((3, 1000), jnp.bfloat16), jnp.full((3, 1000), 2.0**-8)
  update = RowGradient(jnp.arange(3), value) if lazy else value
  params = {"anchor": {}, "bank": {"level_1": table, "level_2": table}}
  updated = apply_updates(params, {"anchor": {}, "bank": {"level_1": update, "level_2": update}}, jax.random.key(0))
  up = [np.asarray(updated["bank"][name], np.float32) > 1 for name in ("level_1", "level_2")]
  assert 0.4 < (up[0] == up[1]).mean() < 0.6
