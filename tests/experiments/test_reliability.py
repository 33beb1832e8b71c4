"""The fault campaign with one fault, and the benchmark of the loop's overhead at a tiny size."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

_EXPERIMENTS = pathlib.Path(__file__).resolve().parents[2] / "experiments"


def run(script, *flags):
  env = os.environ | {"JAX_PLATFORMS": "cpu"}
  return subprocess.run([sys.executable, str(_EXPERIMENTS / script), *flags], env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_campaign(tmp_path):
  done = run("reliability/campaign.py", "--only=NaN", "--json", f"--directory={tmp_path}")
  assert done.returncode == 0, done.stderr
  (row,) = json.loads(done.stdout)
  assert row.pop("seconds") > 0
  assert row == {"fault": "NaN batch", "tried": 1, "recovered": 1, "steps_lost": 1, "bit_identical": False}
  again = run("reliability/campaign.py", f"--directory={tmp_path}")
  assert again.returncode == 2 and "is not empty; give another" in again.stderr


@pytest.mark.slow
def test_overhead():
  done = run("benchmarks/loop_overhead.py", "--steps=6", "--chunk=2", "--json")
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  assert report["steps"] == 4 and report["checkpoint_seconds"] > 0
  assert report["overhead"] == pytest.approx(report["loop_ms"] / report["bare_ms"] - 1)


def test_steps_that_are_no_multiple_are_one_line():
  done = run("benchmarks/loop_overhead.py", "--steps=7", "--chunk=2")
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1] == "error: --steps=7: give a multiple of --chunk=2, at least twice"
