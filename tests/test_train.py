"""The train verb on a decomposed dataset: batches of two lengths, one run."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.models import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.parallel import make_mesh
from hiermem_jax.parallel.mesh import abstract_mesh
from hiermem_jax.train import train
from hiermem_jax.training import OptimizerConfig
from hiermem_jax.training.checkpoint import load_model
from hiermem_jax.training.config import CheckpointConfig, TrainingRun
from hiermem_jax.training.metrics import CLOCK_SCALARS

ANCHOR = AnchorConfig(num_layers=1, width=16, num_heads=2, head_dim=8, mlp_width=32, vocab_size=32, dtype="float32")
OPTIMIZER = OptimizerConfig(peak_learning_rate=0.02, final_learning_rate=0.01, warmup_steps=2, weight_decay=0.01)
STEPS = 12


@pytest.fixture(scope="module")
def dataset(write_decomposed, tmp_path_factory):
  """Sequences of 8 and 16 tokens that count up from anywhere, modulo 31; 5 and 10 batches of 32 tokens."""
  rng = np.random.default_rng(0)
  buckets = {
    length: [(-1, (start + np.arange(length)) % 31, np.ones(length, np.int32)) for start in rng.integers(0, 31, 20)]
    for length in (8, 16)
  }
  return write_decomposed(str(tmp_path_factory.mktemp("data") / "set"), buckets, vocab_size=32).directory


def run(run_dir, dataset, **changes):
  model = {"anchor": ANCHOR} | {name: changes.pop(name) for name in ("anchor", "memory") if name in changes}
  settings = {
    "model": ModelConfig(**model),
    "optimizer": OPTIMIZER,
    "steps": STEPS,
    "batch_size": 8,
    "checkpoints": CheckpointConfig(every=STEPS // 2),
    "log_every": 1,
  }
  train(run_dir=str(run_dir), dataset=dataset, run=TrainingRun(**settings | changes))
  lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
  return [{name: value for name, value in line.items() if name not in CLOCK_SCALARS} for line in lines]


@pytest.mark.slow
def test_learns_from_both_lengths_and_resumes(dataset, tmp_path):
  """Steps of both lengths have the same tokens; a run that goes on from the middle ends as if it had not stopped."""
  lines = run(tmp_path / "whole", dataset, batch_size=2)
  assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
  assert {line["tokens"] for line in lines} == {32}
  assert np.mean([line["loss"] for line in lines[-3:]]) < 0.8 * np.mean([line["loss"] for line in lines[:3]])
  shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
  shutil.rmtree(tmp_path / "resumed" / "checkpoints" / str(STEPS))
  assert run(tmp_path / "resumed", dataset, batch_size=2) == lines
  states = [load_model(str(tmp_path / name), make_mesh()).params for name in ("whole", "resumed")]
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_memory_needs_a_tree(dataset, tmp_path):
  memory = MemoryConfig(rows=(2, 1), branching=2)
  with pytest.raises(InputError, match="prepared without a cluster tree") as caught:
    run(tmp_path, dataset, memory=memory)
  assert "\n" not in str(caught.value)


def test_vocabulary_that_is_too_small(dataset, tmp_path):
  with pytest.raises(InputError, match="its tokenizer has 32 pieces"):
    run(tmp_path, dataset, anchor=dataclasses.replace(ANCHOR, vocab_size=31))


def test_length_that_the_context_axis_does_not_divide(dataset, tmp_path, monkeypatch):
  monkeypatch.setattr("hiermem_jax.parallel.make_mesh", lambda config: abstract_mesh((1, 1, 16, 1)))
  with pytest.raises(InputError, match="sequences of 8 tokens cannot be split over a context axis of 16; bind it"):
    run(tmp_path, dataset)
