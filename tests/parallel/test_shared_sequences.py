"""Meshes with a context axis against one device; `shared_sequences.py` says what is compared."""

import numpy as np
import pytest

pytestmark = pytest.mark.slow
NAMES = ("1x2x4x1 ffn", "2x2x2x1 kv", "1x2x2x2 anchor")


@pytest.fixture
def shared(findings):
  return findings["shared"]


@pytest.mark.parametrize("name", NAMES)
def test_training_is_that_of_one_device(shared, name):
  """The scalars have losses by cluster and of the generic memory, tokens, and norms of gradients and updates."""
  found = shared["training"][name]
  assert found["devices"] == 8
  losses, expected = found["losses"]
  np.testing.assert_allclose(losses, expected, rtol=1e-6)
  assert len(set(expected)) == 3
  scalars, expected = found["scalars"]
  np.testing.assert_allclose(scalars, expected, rtol=1e-6, atol=1e-9)
  assert found["update_difference"] < 1e-5


def test_every_mesh_is_compared(shared):
  assert tuple(shared["training"]) == NAMES


@pytest.mark.parametrize("name", ["1x2x4x1 on 1x4x1x2", "1x1x1x1 on 1x2x4x1", "loaded"])
def test_checkpoint_is_restored_with_and_without_the_axis(shared, name):
  assert shared["restored"][name] is True


def test_held_out_loss_and_scores(shared):
  """Sequences share devices in the first; in the second every device of the axis has whole ones."""
  losses, scores = shared["evaluation"]["losses"], shared["evaluation"]["scores"]
  assert losses[0] == pytest.approx(losses[1], rel=1e-6)
  np.testing.assert_allclose(*scores, rtol=1e-5)


def test_flash_attention_of_shared_sequences(shared):
  assert shared["splash"]["value_difference"] < 1e-3  # of a sum of 65,536 products
  assert shared["splash"]["gradient_difference"] < 1e-4
