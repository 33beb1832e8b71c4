"""What the tests of this folder share: the findings of a process that has eight devices."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("eight_devices.py")


@pytest.fixture(scope="session")
def findings(tmp_path_factory):
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
    "PYTHONPATH": str(SCRIPT.parents[2]),
  }
  run_dir = tmp_path_factory.mktemp("run")
  result = subprocess.run(
    [sys.executable, SCRIPT, run_dir], env=environment, capture_output=True, text=True, timeout=1200, check=False
  )
  assert result.returncode == 0, result.stderr[-3000:]
  findings = json.loads(result.stdout.splitlines()[-1])
  assert findings["devices"] == 8
  return findings
