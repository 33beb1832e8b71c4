"""The fault campaign with one fault, and the benchmark of the loop's overhead at a tiny size."""

import json

import pytest


@pytest.mark.slow
def test_campaign(run, tmp_path):
  done = run("reliability/campaign", "--only=NaN", "--json", f"--directory={tmp_path}", STEPS=40)
  assert done.returncode == 0, done.err
  (row,) = json.loads(done.out)
  assert row.pop("seconds") > 0
  expected = {"tried": 1, "recovered": 1, "steps_lost": 1, "bit_identical": False, "waited": 0.0}
  assert row == {"fault": "NaN batch", **expected}
  again = run("reliability/campaign", f"--directory={tmp_path}")
  assert again.returncode == 2 and "is not empty; give another" in again.err


@pytest.mark.slow
def test_overhead(run):
  done = run("benchmarks/loop_overhead", "--steps=6", "--chunk=2", "--json")
  assert done.returncode == 0, done.err
  report = json.loads(done.out)
  assert report["steps"] == 4 and report["checkpoint_seconds"] > 0
  assert report["overhead"] == pytest.approx(report["loop_ms"] / report["bare_ms"] - 1)


def test_steps_that_are_no_multiple_are_one_line(run):
  done = run("benchmarks/loop_overhead", "--steps=7", "--chunk=2")
  assert done.returncode == 2
  assert done.err.splitlines()[-1] == "error: --steps=7: give a multiple of --chunk=2, at least twice"
