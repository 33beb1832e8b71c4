"""The exchange, the step and checkpoints on eight devices, in a process that has them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("eight_devices.py")


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",  # compiles faster
    "PYTHONPATH": str(SCRIPT.parents[2]),
  }
  run_dir = tmp_path_factory.mktemp("run")
  result = subprocess.run(
    [sys.executable, SCRIPT, run_dir], env=environment, capture_output=True, text=True, timeout=300, check=False
  )
  assert result.returncode == 0, result.stderr[-3000:]
  findings = json.loads(result.stdout.splitlines()[-1])
  assert findings["devices"] == 8
  return findings


def test_fetch_is_plain_indexing(findings):
  assert findings["fetch_error"] == 0
  assert findings["fetched_specs"] == [["data", None]] * 2


def test_push_adds_duplicates_and_drops_no_memory(findings):
  assert findings["push_error"] < 1e-6
  assert findings["pushed_specs"] == [[None, "data"]] * 2


@pytest.mark.parametrize("direction", ["fetch_collectives", "push_collectives"])
def test_rows_move_by_all_to_all_alone(findings, direction):
  """One all-to-all per table; the only other traffic is the 16 leaf ids."""
  sizes = dict.fromkeys(("all-to-all", "other"), ())
  for operation, elements in findings[direction]:
    kind = operation if operation in sizes else "other"
    sizes[kind] += (elements,)
  assert len(sizes["all-to-all"]) == 2
  assert max(sizes["other"], default=0) <= 16


def test_step_moves_rows_by_all_to_all_alone(findings):
  """Two tables fetched, two pushed. All else is leaf ids and the anchor's gradients, none as large as all rows."""
  sizes = findings["step_collectives"]
  assert len([elements for operation, elements in sizes if operation == "all-to-all"]) == 4
  assert all(elements <= 16 for operation, elements in sizes if operation not in ("all-to-all", "all-reduce"))
  largest_anchor_weight = 2 * 16 * 12  # layers, width, MLP width (head: 16 * 19)
  assert all(elements <= largest_anchor_weight for operation, elements in sizes if operation == "all-reduce")


def test_bank_and_its_moments_are_split_along_the_row(findings):
  assert findings["bank_specs"] == [[None, "data"]] * 2
  assert findings["moment_specs"] == [[None, "data"]] * 4  # two tables, two moments
  assert findings["anchor_replicated"]


def test_steps_equal_those_on_one_device(findings):
  assert findings["bank_has_moved"] > 1e-3
  assert findings["step_difference"] < 1e-5
  assert findings["loss_difference"] < 1e-5


def test_checkpoint_is_restored_on_other_meshes(findings):
  assert findings["restored_difference"] == 0
  assert findings["restored_devices"] == 2
  assert findings["loaded_difference"] == 0


def test_rows_that_do_not_divide(findings):
  assert "level_1" in findings["indivisible"]
  assert "60 parameters cannot be split over 8 devices" in findings["indivisible"]
