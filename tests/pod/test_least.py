"""The least bytes of a step, by hand for the paper's A2, and how they follow what a run binds."""

import dataclasses

import pytest

from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.parallel.mesh import ALL_DEVICES, MeshConfig, abstract_mesh
from hiermem_jax.pod.least import least_bytes
from hiermem_jax.training.config import Objective, TrainingRun
from hiermem_jax.training.optimizer import OptimizerConfig
from hiermem_jax.training.program import abstract_train_state

A2 = AnchorConfig(
  num_layers=35,
  width=512,
  num_heads=12,
  head_dim=32,
  mlp_width=2048,
  tied_embeddings=True,
  remat="full",
  logits_chunk=128,
)
BANK = MemoryConfig(rows=(256, 64, 16, 0))
HEAD, GAINS, FETCHED = 50432 * 512, 512, 18_063_360
TOKENS = 4 * 2048  # of a device
WHOLE = MeshConfig(rules=(("batch", ("replica", "data")), ("embed", None)))


def least(anchor=A2, memory=BANK, mesh=(1, 256, 1, 1), config=ALL_DEVICES, **changes):
  optimizer = OptimizerConfig(
    peak_learning_rate=1e-4,
    final_learning_rate=1e-5,
    warmup_steps=1,
    weight_decay=1e-3,
    bank_update=changes.pop("bank_update", "dense"),
  )
  model = ModelConfig(anchor=anchor, memory=memory)
  run = TrainingRun(model=model, optimizer=optimizer, steps=10, batch_size=1024, mesh=config, **changes)
  state = abstract_train_state(run, abstract_mesh(mesh))
  return least_bytes(model, abstract_mesh(mesh), state, batch_size=1024, length=2048)


def test_a2_by_hand():
  """256 chips, 4 sequences of each: every layer's weights are gathered in three passes, written and read."""
  layers = 163_510_016 - HEAD
  found = least()
  assert found["weights"] == 2 * (3 * layers * 2 + (3 + 1) * HEAD + 2 * (layers + HEAD))
  assert found["activations"] == 2 * 2 * TOKENS * 35 * 512
  assert found["logits"] == 4 * 2 * TOKENS * 50432
  assert found["block"] == 2 * 4 * FETCHED * 6
  tables = sum((16**level + 1) * units * 35 * 3 * 512 for level, units in enumerate((256, 64, 16), start=1))
  norms = 35 * (2 * 512 + 2 * 384) + 512  # held whole
  anchor = (163_510_016 - norms) / 256 + norms
  assert found["state"] == pytest.approx(2 * 3 * 4 * (tables / 256 + anchor), rel=1e-5)  # and a few counts of steps


def test_what_is_kept_is_moved_and_what_is_not_is_computed_again():
  everything, attention = (least(dataclasses.replace(A2, remat=remat)) for remat in ("none", ("attention", "w1@host")))
  full = least()
  per_token = 2 * 2 * TOKENS * 35
  assert everything["activations"] - full["activations"] == per_token * (4 * 384 + 512 + 2 * 2048)
  assert attention["activations"] - full["activations"] == per_token * (384 + 2048)
  assert attention["weights"] == full["weights"] > everything["weights"]
  assert everything["block"] == full["block"] * 5 / 6


def test_whole_weights_are_read_and_not_gathered():
  whole, split = least(config=WHOLE), least()
  layers = 163_510_016 - HEAD
  assert split["weights"] - whole["weights"] == 2 * (3 * layers + HEAD)
  assert whole["state"] > split["state"]


def test_frozen_anchor_and_lazy_bank_update_less():
  dense, lazy, frozen = least(), least(bank_update="lazy"), least(objective=Objective(frozen_anchor=True))
  row = 16 * 35 * 3 * 512 / 256 * 4 * 3 * 2  # of level 3, whose 4,097 rows a batch touches 1,024 of
  assert dense["state"] - lazy["state"] == pytest.approx((4097 - 1024) * row, rel=1e-5)
  assert dense["state"] - frozen["state"] == pytest.approx(2 * 3 * 4 * 163_510_016 / 256, rel=0.1)
  assert dense["weights"] - frozen["weights"] == 2 * 2 * 163_510_016


def test_model_axis_divides_all_but_the_residual_stream():
  whole, halves = least(), least(mesh=(1, 128, 1, 2), config=MeshConfig(model=2))
  assert halves["weights"] == whole["weights"] / 2
  assert halves["logits"] == whole["logits"]  # twice the sequences, half of the vocabulary
  assert halves["activations"] == 2 * whole["activations"]
