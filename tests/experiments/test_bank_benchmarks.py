"""The benchmarks of the bank: their command lines at tiny sizes, and the numbers in them that arithmetic gives."""

import json

import pytest

_SMALL = [
  "--layers=2",
  "--width=16",
  "--heads=2",
  "--mlp_width=24",
  "--vocab=32",
  "--rows",
  "4",
  "0",
  "2",
  "--batch=4",
  "--length=8",
  "--rounds=2",
]


@pytest.mark.slow
def test_bank_update(run):
  done = run("benchmarks/bank_update", *_SMALL, "--branching", "3", "6", "--json")
  assert done.returncode == 0, done.err
  rows = json.loads(done.out)
  assert [row["optimizer"] for row in rows] == ["lazy", "lazy", "dense", "dense"]
  neuron = 3 * 2 * 16  # parameters
  for row, branching in zip(rows, (3, 6, 3, 6)):
    assert row["bank_params"] == neuron * (4 * branching + 2 * branching**3)
    assert row["fetched_params"] == 4 * neuron * 6
    assert min(row[name] for name in ("forward_ms", "update_ms", "step_ms")) > 0
    tables = neuron * (4 * (branching + 1) + 2 * (branching**3 + 1))  # with the generic rows
    assert row["peak_bytes"] > 12 * tables  # weights and both moments
  lazy = rows[1]["peak_bytes"] - rows[0]["peak_bytes"]
  state = 12 * (rows[1]["bank_params"] - rows[0]["bank_params"])
  assert lazy == pytest.approx(state, rel=0.1)  # what a larger bank adds is its tables and moments, and nothing else


@pytest.mark.slow
def test_bank_update_as_a_table(run):
  flags = ["--branching", "3", "--optimizers", "auto", "--table_dtype=bfloat16", "--moment_dtype=bfloat16", "--quick"]
  done = run("benchmarks/bank_update", *_SMALL, *flags)
  assert done.returncode == 0, done.err
  header, row, summary = done.out.splitlines()
  assert header.split()[:3] == ["optimizer", "bank_params", "fetched_params"]
  assert row.split()[0] == "auto"
  assert summary.startswith("auto: a bank of 1.0 times the parameters takes 1.00 times as long a step")


@pytest.mark.slow
def test_memory_overhead(run):
  done = run("benchmarks/memory_overhead", "--batch=2", "--length=16", "--rounds=1", "--json")
  assert done.returncode == 0, done.err
  report = json.loads(done.out)
  assert report["fetched_params"] == 3 * 8 * 128 * 84
  flops = 2 * (8 * (4 * 128 * 96 + 3 * 128 * 512) + 4096 * 128) + 8 * 2 * 96 * 16
  assert report["flop_ratio"] == pytest.approx(1 + 2 * report["fetched_params"] / flops)
  assert report["step_ratio"] == pytest.approx(report["memory_ms"] / report["anchor_ms"])
  assert report["overhead"] == pytest.approx(report["step_ratio"] / report["flop_ratio"])


@pytest.mark.slow
def test_scoring(run):
  done = run("benchmarks/scoring", "--quick", "--json")
  assert done.returncode == 0, done.err
  report = json.loads(done.out)
  assert report["questions"] == 16 and 0 < report["padding"] < 0.7
  assert report["score_ratio"] == pytest.approx(report["score_tokens_per_s"] / report["forward_tokens_per_s"])
  timed = report.keys() - {"decode_ratio"}  # of a difference of two times, which noise can turn round
  assert min(report[name] for name in timed) > 0


@pytest.mark.parametrize(
  "name, flags",
  [("bank_update", ["--rows", "0"]), ("memory_overhead", ["--batch=0"]), ("scoring", ["--batch=0"])],
)
def test_sizes_that_make_no_sense(run, name, flags):
  done = run(f"benchmarks/{name}", *flags)
  assert done.returncode == 2
  assert done.err.strip().splitlines()[-1].startswith("error: ")
