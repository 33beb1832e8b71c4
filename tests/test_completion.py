"""Completion, asked for as argcomplete's shell function asks."""

import os
import pathlib
import subprocess
import sys

import pytest

from hiermem_jax.verbs import VERBS

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
  "line, proposed",
  [
    ("hiermem ", {*VERBS, "--help"}),
    ("hiermem ev", {"evaluate", "evaluate_tasks"}),
    ("hiermem describe --", {"--help", *(f"--{flag}" for flag in VERBS["describe"].flags)}),
    ("hiermem run --st", {"--stages"}),
    ("hiermem train --st", set()),
    ("hiermem run --gin_file=gin/runs/q", {"--gin_file=gin/runs/quickstart.gin"}),
    ("hiermem run --gin_file gin/runs/q", {"gin/runs/quickstart.gin"}),
    ("hiermem run --run_dir=tests/gol", {"--run_dir=tests/golden/"}),
    ("hiermem run --gin_bindings=te", set()),
  ],
)
def test_proposals(tmp_path, line, proposed):
  answer = {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n"}
  asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
  command = [sys.executable, "-m", "hiermem_jax"]
  result = subprocess.run(command, env=os.environ | answer | asked, cwd=ROOT, capture_output=True, check=False)
  assert result.returncode == 0, result.stderr
  assert {word.strip() for word in (tmp_path / "answer").read_text().split("\n") if word} == proposed
