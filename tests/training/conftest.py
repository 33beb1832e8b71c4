"""A toy run that the tests of this folder share: 6 sequences of 5 random tokens a step, a bank of two levels."""

import dataclasses
import functools
import json
import types

import jax
import numpy as np
import pytest

from hiermem_jax.models import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.parallel import fetch, make_mesh
from hiermem_jax.parallel.mesh import DEFAULT_RULES
from hiermem_jax.training import OptimizerConfig, loop
from hiermem_jax.training.config import CheckpointConfig, Objective, TrainingRun
from hiermem_jax.training.loop import LoopData
from hiermem_jax.training.metrics import CLOCK_SCALARS, JsonlWriter
from hiermem_jax.training.program import make_program

ANCHOR = AnchorConfig(num_layers=1, width=8, num_heads=1, head_dim=4, mlp_width=8, vocab_size=13, dtype="float32")
MEMORY = MemoryConfig(rows=(2, 1), branching=2)
OPTIMIZER = OptimizerConfig(peak_learning_rate=0.02, final_learning_rate=0.01, warmup_steps=2, weight_decay=0.01)
MESH = make_mesh(devices=jax.devices()[:1])


def random_batch(step):
  """The batch of a step, counted from 1, a function of its number alone."""
  rng = np.random.default_rng(step)
  inputs, targets = rng.integers(0, ANCHOR.vocab_size, (2, 6, 5)).astype(np.int32)
  return {
    "decoder_input_tokens": inputs,
    "decoder_target_tokens": targets,
    "decoder_segment_ids": np.ones((6, 5), np.int32),
    "decoder_positions": np.tile(np.arange(5, dtype=np.int32), (6, 1)),
    "decoder_loss_weights": np.ones((6, 5), np.float32),
    "memory_leaf": rng.integers(0, MEMORY.num_leaves, 6).astype(np.int32),
  }


def batches(start):
  step = start
  while True:
    step += 1
    yield random_batch(step)


def take(changes, made, **defaults):
  """An object of the class `made`; `changes` lose the fields that it takes from them."""
  names = [field.name for field in dataclasses.fields(made)]
  return made(**defaults | {name: changes.pop(name) for name in names if name in changes})


def training_run(changes, steps=12, batch_size=6):
  """The toy run; `changes` lose the fields of the run and of its parts."""
  return take(
    changes,
    TrainingRun,
    model=take(changes, ModelConfig, anchor=ANCHOR, memory=MEMORY),
    optimizer=OPTIMIZER,
    steps=steps,
    batch_size=batch_size,
    objective=take(changes, Objective, generic_probability=0.3),
    checkpoints=take(changes, CheckpointConfig, every=4),
    log_every=1,
  )


@functools.cache
def make_program_once(run, mesh):
  """Equal runs share a program: to trace and compile it takes longer than to run it."""
  return make_program(run, mesh)


def run(run_dir, **changes):
  """Trains; `changes` are fields of the run, of its parts or of its data, or arguments of `train`."""

  made = training_run(changes)
  data = take(
    changes, LoopData, batches=batches, metadata={"tree_fingerprint": "feed", "tokenizer_fingerprint": "cafe"}
  )

  def open_writer(start):
    return JsonlWriter(f"{run_dir}/metrics.jsonl", start)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "make_program", make_program_once)
    return loop.train(made, str(run_dir), data, MESH, **{"open_writer": open_writer} | changes)


def metrics(run_dir):
  """Lines of metrics.jsonl without what is the clock's."""
  lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
  return [{name: value for name, value in line.items() if name not in CLOCK_SCALARS} for line in lines]


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="session")
def toy():
  """Configurations, batches and the training of the toy run."""
  return types.SimpleNamespace(
    anchor=ANCHOR,
    memory=MEMORY,
    model=ModelConfig(anchor=ANCHOR, memory=MEMORY),
    optimizer=OPTIMIZER,
    mesh=MESH,
    rules=DEFAULT_RULES,
    fetch=fetch,
    random_batch=random_batch,
    batches=batches,
    run=run,
    training_run=training_run,
    metrics=metrics,
    assert_equal=assert_equal,
  )


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
  """Directory, final state, last scalars and hooked steps of a run that nothing disturbed."""
  run_dir, hooked = tmp_path_factory.mktemp("whole"), []
  state, scalars = run(run_dir, hooks=[hooked.append])
  return run_dir, state, scalars, hooked
