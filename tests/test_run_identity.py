"""The tables of identity and operation name every name that can be bound once; what is compared by them."""

import dataclasses
import inspect

import gin
import numpy as np
import pytest

from hiermem_jax import configuration, run_identity
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.run_identity import IDENTITY, OPERATION, Setting
from hiermem_jax.training.config import TrainingRun
from hiermem_jax.training.optimizer import OptimizerConfig, PartSettings
from hiermem_jax.verbs import CONFIGURED

GIVEN = {"run_dir", "as_json"}  # by the command line
ANCHOR = AnchorConfig(num_layers=2, width=16, num_heads=2, head_dim=8, mlp_width=32, vocab_size=64)


def bindable() -> list[str]:
  """Every name, by the signatures; without what other tests have registered."""
  owners = [*CONFIGURED]
  owners += [name for name, made in configuration.constructors().items() if made.__module__.startswith("hiermem_jax")]
  read = {f"{verb.name}.{argument}" for verb in CONFIGURED.values() for argument, _ in verb.reads}
  names = {f"{owner}.{name}" for owner in owners for name in inspect.signature(gin.get_configurable(owner)).parameters}
  return sorted(name for name in names - read if name.partition(".")[2] not in GIVEN)


def test_every_name_is_in_exactly_one_table():
  """A new field belongs into the table that says what becomes of a run that is resumed with another value of it."""
  tables = [f"{owner}.{name}" for table in (IDENTITY, OPERATION) for owner, names in table.items() for name in names]
  assert sorted(tables) == bindable()
  assert all(run_identity.is_operation(name) for name in bindable() if run_identity.is_past(name))


@pytest.mark.parametrize(
  "name, operation",
  [
    ("train.log_every", True),
    ("train.seed", False),
    ("prepare.validation: WorldSource.data_dir", True),
    ("prepare.validation: WorldSource.split", False),
    ("OwnSource.path", False),  # of another package
  ],
)
def test_a_place_does_not_matter_and_what_is_not_known_is_identity(name, operation):
  assert run_identity.is_operation(name) == operation


def test_what_has_changed():
  held = {"v.a": "1", "v.memory": "@M()", "M.rows": "(1,)", "v.gone": "7"}
  now = {
    "v.a": Setting("1", "0", ""),
    "v.memory": Setting("@M()", "None", ""),
    "M.rows": Setting("(1,)", None, "v.memory"),
  }
  assert run_identity.changed(held, now) == {}
  assert run_identity.changed(held, now | {"v.new": Setting("2", "2", "")}) == {}
  assert run_identity.changed(held, now | {"v.new": Setting("3", "2", "")}) == {"v.new": ("2", "3")}
  assert run_identity.changed(held, now | {"v.new": Setting("3", None, "")}) == {"v.new": ("nothing", "3")}
  other = {
    "v.memory": Setting("@N()", "None", ""),
    "N.p": Setting("@P()", None, "v.memory"),
    "P.q": Setting("1", "0", "N.p"),
  }
  assert run_identity.changed(held, other) == {"v.memory": ("@M()", "@N()")}


def test_objects_that_are_the_same_but_for_their_operation():
  model = ModelConfig(anchor=ANCHOR, memory=MemoryConfig(rows=(1, 1), branching=2))
  other = dataclasses.replace(model, anchor=dataclasses.replace(ANCHOR, remat="full", logits_chunk=8))
  assert run_identity.same(model, other) and model != other
  assert not run_identity.same(model, dataclasses.replace(model, anchor=dataclasses.replace(ANCHOR, norm_eps=1e-3)))
  assert not run_identity.same(model, dataclasses.replace(model, memory=None))
  assert run_identity.same(7, 7) and not run_identity.same(7, "7")


def test_the_first_step_with_another_learning_rate():
  """Against the formula: a line to the peak, then half a cosine down to the final rate."""
  optimizer = OptimizerConfig(peak_learning_rate=0.1, final_learning_rate=0.01, warmup_steps=4, weight_decay=0.0)
  run = TrainingRun(model=ModelConfig(anchor=ANCHOR), optimizer=optimizer, steps=20, batch_size=2)

  def rate(step, steps):
    if step < 4:
      return 0.1 * (step + 1) / 4
    return 0.01 + 0.09 * (1 + np.cos(np.pi * (step - 4) / (steps - 4))) / 2

  longer = dataclasses.replace(run, steps=30)
  assert run_identity.other_rate(longer, {("steps",): "20"}, done=5) is None  # the peak is that of both
  step, was, now = run_identity.other_rate(longer, {("steps",): "20"}, done=6)
  assert step == 6
  np.testing.assert_allclose([was, now], [rate(5, 20), rate(5, 30)], rtol=1e-5)
  higher = dataclasses.replace(run, optimizer=dataclasses.replace(optimizer, peak_learning_rate=0.2))
  before = {("optimizer", "peak_learning_rate"): "0.1"}
  assert run_identity.other_rate(higher, before, done=0) is None
  step, was, now = run_identity.other_rate(higher, before, done=1)
  assert step == 1
  np.testing.assert_allclose([was, now], [rate(0, 20), 2 * rate(0, 20)], rtol=1e-5)


def test_the_rates_of_parts_count_too():
  """A level whose rate is constant, in a run whose common rate is constant: only the level's past is another."""
  own = PartSettings(peak_learning_rate=0.2, schedule_kind="constant")
  common = {"peak_learning_rate": 0.1, "final_learning_rate": 0.1, "warmup_steps": 0, "weight_decay": 0.0}
  optimizer = OptimizerConfig(**common, schedule_kind="constant", levels=(None, own))
  model = ModelConfig(anchor=ANCHOR, memory=MemoryConfig(rows=(1, 1), branching=2))
  run = TrainingRun(model=model, optimizer=optimizer, steps=20, batch_size=2)
  assert run_identity.other_rate(run, {("steps",): "10"}, done=10) is None
  path = ("optimizer", "levels", 1, "peak_learning_rate")
  step, was, now = run_identity.other_rate(run, {path: "0.3"}, done=10)
  np.testing.assert_allclose([step, was, now], [1, 0.3, 0.2], rtol=1e-6)
