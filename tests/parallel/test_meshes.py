"""Training on eight devices, however they are arranged, against training by brute force (`reference.py`).

The names of the runs are replica x data x model and how the bank is updated.
"""

import numpy as np
import pytest

from hiermem_jax.models.memory import KINDS

pytestmark = pytest.mark.slow
RUNS = ("1x1x1 dense", "1x8x1 lazy", "2x4x1 dense", "2x2x2 lazy", "2x2x2 lazy, 3 microbatches")


@pytest.fixture(params=RUNS)
def run(request, findings):
  return request.param, findings["training"][request.param]


def test_every_mesh_draws_the_same_start(run):
  assert run[1]["start_difference"] == 0


def test_losses_are_those_of_the_reference(run):
  """In the batches are duplicates within and across devices, the generic memory and none."""
  np.testing.assert_allclose(run[1]["losses"], run[1]["reference_losses"], rtol=1e-5)


def test_parameters_are_those_of_the_reference(run):
  assert run[1]["parameter_difference"] < 2e-6


def test_gradient_reaches_fetched_rows_alone(run):
  """Lazily updated rows that no id names keep every bit. Dense AdamW moves them all, by its weight decay."""
  name, found = run
  assert found["touched_moved"] > 0.02
  if "lazy" in name:
    assert found["untouched_moved"] == 0
  else:
    assert 0 < found["untouched_moved"] < 0.02


def test_bank_and_its_moments_are_split_along_the_row(run):
  assert run[1]["bank_specs"] == [[None, ["model", "data"]]] * 2
  assert run[1]["moment_specs"] == [[None, ["model", "data"]]] * 4


def test_anchor_is_split_over_data_and_model(run):
  """All but the gains of norms, which are small."""
  for name, spec in run[1]["anchor_specs"].items():
    assert name.endswith("scale") or {"data", "model"} <= set(spec), name


@pytest.mark.parametrize("name", RUNS[1:])
def test_step_sends_nothing_as_large_as_a_table(findings, name):
  """Smallest table: 1,536. Two tables are fetched and pushed by all-to-all; a block of the whole batch would be 4,608."""
  sent = findings["training"][name]["collectives"]
  assert len([entry for entry in sent if entry[0] == "all-to-all"]) == 4
  assert all(elements < 1536 for _, _, elements, _ in sent)


def test_anchor_is_gathered_where_it_is_used_and_its_gradient_scattered(findings):
  """Nine matrices: embedding, head, and of a layer four of attention and three of the feed-forward layer.

  Those of a layer are gathered again for the backward pass. What is reduced whole are the gains of norms and scalars, none larger than 2 layers x 16.
  """
  sent = findings["training"]["1x8x1 lazy"]["collectives"]
  of_layer, others = [16 * 12] * 7, [18 * 16] * 2
  gathered = sorted(elements for kind, dtype, elements, _ in sent if kind == "all-gather" and dtype == "f32")
  scattered = sorted(8 * elements for kind, _, elements, _ in sent if kind == "reduce-scatter")
  assert (gathered, scattered) == (2 * of_layer + others, of_layer + others)
  # XLA writes a sum over slices, of which there is one here, as an all-reduce, too: of the device's part of a gradient.
  assert all(elements <= 2 * 16 * 12 // 8 for kind, _, elements, _ in sent if kind == "all-reduce")


def test_gradients_of_weights_are_summed_in_float32(findings):
  """Nine matrices of a bfloat16 anchor, whatever the type that their products have; or in bfloat16, where it is asked."""
  assert findings["wire"]["reduce_scatter"] == ["f32"] * 9
  assert findings["wire"]["reduce_scatter, bfloat16"] == ["bf16"] * 9


@pytest.mark.parametrize("target, devices", [("2 devices", 2), ("2x2x2", 8), ("loaded", 1), ("by table", 8)])
def test_checkpoint_is_restored_on_other_meshes(findings, target, devices):
  assert findings["restored"][target] == {"difference": 0, "devices": devices}


def test_kinds_of_memory_and_parts_of_a_bank(findings):
  """The same on eight devices (two slices, FSDP, a model axis) and on one; a frozen anchor does not move at all."""
  rows = {
    "ffn": [4, 28],
    "lora_qk": [2, 10],
    "lora_vo": [1, 1],
  }  # 3 and 27 clusters, 1 and 9, none; and the generic one
  assert findings["variants"].keys() == KINDS.keys()
  for name, found in findings["variants"].items():
    frozen = name in rows
    assert found["loss_difference"] < 1e-5, name
    assert found["parameter_difference"] < (1e-5 if frozen else 1e-4), name
    assert found["bank_moved"] > 1e-3, name
    assert found["anchor_moved"] == 0 if frozen else found["anchor_moved"] > 1e-3, name
    assert found["rows"] == rows.get(name, [4, 28]), name


def test_held_out_losses(findings):
  """In every mode, on eight devices and on one."""
  alone, many = findings["scoring"]["validation"]
  assert alone.keys() == {
    "loss/validation",
    *(f"loss/validation/main/{mode}" for mode in ("none", "generic", "fetched")),
  }
  assert len({round(loss, 3) for loss in alone.values()}) == 3
  assert many == pytest.approx(alone, rel=1e-5)


def test_scoring_and_generation(findings):
  found = findings["scoring"]
  assert found["score_difference"] < 1e-4
  assert found["same_text"]
  assert found["distinct"] > 3
  assert found["lengths"][0] == 0 and max(found["lengths"]) == 5
