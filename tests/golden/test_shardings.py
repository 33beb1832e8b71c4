"""How the state of every named run lies on the meshes that it is meant for, array by array.

A change of a rule, a shape or an optimizer's state shows up here as a difference of text. To accept it:

  UPDATE_GOLDEN=1 python -m pytest tests/golden/test_shardings.py
"""

import dataclasses
import difflib
import math
import os
import pathlib

import pytest

from hiermem_jax import configuration
from hiermem_jax.parallel.layout import array_layouts
from hiermem_jax.parallel.mesh import abstract_mesh
from hiermem_jax.training.config import Objective, TrainingRun
from hiermem_jax.training.program import abstract_train_state

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_GOLDEN = pathlib.Path(__file__).parent / "shardings"
_RUNS = sorted(path.stem for path in (_ROOT / "gin/runs").glob("[abc]*.gin"))
# replica x data x model: one host, v5e 16x16, v5p 8x8x8, two slices of v5e 16x16, tensor parallelism on v5e 16x16.
_MESHES = [(1, 8, 1), (1, 256, 1), (1, 512, 1), (2, 256, 1), (1, 128, 2)]


def state(run, mesh):
  configuration.load([str(_ROOT / f"gin/runs/{run}.gin")], [])
  # As if nothing were frozen: what a run would keep of all its parameters.
  bound = dataclasses.replace(configuration.bound_arguments("train", TrainingRun), objective=Objective())
  return abstract_train_state(bound, abstract_mesh((*mesh[:2], 1, mesh[2])))


def as_text(run, mesh):
  arrays = array_layouts(state(run, mesh))
  lines = [f"{run} on replica {mesh[0]} x data {mesh[1]} x model {mesh[2]}", ""]
  width = max(len(array.name) for array in arrays)
  for array in arrays:
    spec = ", ".join("+".join(axes) if isinstance(axes, tuple) else axes or "-" for axes in array.spec)
    shape = " x ".join(map(str, array.shape)) or "scalar"
    lines.append(f"{array.name:<{width}}  {array.dtype:<8}  {shape:<20}  [{spec}]  {array.bytes_per_device:,}")
  lines += ["", f"bytes per device: {sum(array.bytes_per_device for array in arrays):,}"]
  return "\n".join(lines) + "\n"


@pytest.mark.parametrize("mesh", _MESHES, ids=lambda mesh: "x".join(map(str, mesh)))
@pytest.mark.parametrize("run", _RUNS)
def test_layout_is_the_one_written_down(run, mesh):
  path = _GOLDEN / f"{run}_{'x'.join(map(str, mesh))}.txt"
  text = as_text(run, mesh)
  if os.environ.get("UPDATE_GOLDEN"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
  stored = path.read_text() if path.exists() else ""
  changes = difflib.unified_diff(stored.splitlines(), text.splitlines(), "written down", "now", n=0, lineterm="")
  assert text == stored, (
    f"{run} lies elsewhere than {path.name} says; if that is meant, run"
    " UPDATE_GOLDEN=1 python -m pytest tests/golden/test_shardings.py\n" + "\n".join(changes)
  )


def test_no_golden_text_without_a_run():
  names = {f"{run}_{'x'.join(map(str, mesh))}" for run in _RUNS for mesh in _MESHES}
  assert {path.stem for path in _GOLDEN.glob("*.txt")} == names


@pytest.mark.parametrize("run", [run for run in _RUNS if "2" in run or run == "a4"])
@pytest.mark.parametrize("mesh", _MESHES, ids=lambda mesh: "x".join(map(str, mesh)))
def test_bank_and_its_moments_are_split_over_all_devices_of_a_slice(run, mesh):
  """Every table and every moment: an equal part of each row on each device, none of it twice."""
  abstract = state(run, mesh)
  devices = math.prod(mesh[1:])
  for name, table in abstract.params["bank"].items():
    moments = abstract.opt_state["bank"][name]
    for array in (table, moments.mu, moments.nu):
      assert array.sharding.shard_shape(array.shape) == (array.shape[0], array.shape[1] // devices)
