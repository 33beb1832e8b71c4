"""The benchmark of the data pipeline at a tiny size: its keys, and what arithmetic gives."""

import json
import pathlib
import subprocess
import sys

import pytest

_SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "experiments/benchmarks"


def run(script, *flags):
  """In a process of its own: the script binds itself to one core."""
  command = [sys.executable, str(_SCRIPTS / script), *flags]
  return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_data_pipeline():
  done = run("data_pipeline.py", "--count=60", "--batches=3", "--rounds=1", "--json")
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  assert [row["stage"] for row in report["stages"]] == ["read", "tokenise", "embed", "assign", "pack"]
  tokens = {row["stage"]: row["seconds"] * row["tokens_per_second"] for row in report["stages"]}
  assert len({round(count) for count in tokens.values()}) == 1  # the same tokens went through all
  costs = {row["what"]: row["amount"] for row in report["dclm"]}
  tokenise = next(row for row in report["stages"] if row["stage"] == "tokenise")
  assert costs["tokenise, core-hours"] == pytest.approx(4.3e12 / tokenise["tokens_per_second"] / 3600)
  assert costs["dataset, TB"] == pytest.approx(4.3 * report["bytes_per_token"]["dataset"])
  assert report["read_ratio"] == pytest.approx(report["tokens_per_second"] / report["consumed"])
  assert report["resume_ratio"] > 0


def test_bad_input_is_one_line():
  done = run("data_pipeline.py", "--texts=nowhere", "--quick")
  assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("error: no file matches nowhere")
