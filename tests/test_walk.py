"""What a user does, from the first chain to runs that are compared: see walk.py, which can be run alone."""

import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_users_walk(tmp_path):
  script = pathlib.Path(__file__).with_name("walk.py")
  result = subprocess.run(
    [sys.executable, script, tmp_path / "walk"], capture_output=True, text=True, check=False, timeout=1100
  )
  assert result.returncode == 0, result.stdout + result.stderr
  assert result.stdout.count("ok: ") == 13
