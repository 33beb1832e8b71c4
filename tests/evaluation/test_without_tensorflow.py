"""Evaluation where TensorFlow, SeqIO and Beam cannot be imported."""

import ast
import json
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PROGRAM = """
import sys
sys.modules |= dict.fromkeys(("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "apache_beam"))
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.evaluate import evaluate
from hiermem_jax.evaluate_tasks import evaluate_tasks
from hiermem_jax.evaluation.config import ModelFiles, TaskSet
run_dir, directory = sys.argv[1:]
probes = JsonlSource(pattern=f"{run_dir}/probes.jsonl", required=("prompt", "answer"))
common = {"run_dir": run_dir, "model": ModelFiles(directory="model"), "modes": ("none",)}
evaluate(**common, directory=directory, probes=probes)
evaluate_tasks(**common, directory=directory + "/tasks", tasks=TaskSet(names=("nq_open",), data=run_dir))
with open(directory + "/modules", "w") as file:
  file.write(" ".join(sys.modules))
"""


def test_evaluation_needs_no_tensorflow(toy_run, tmp_path):
  """Both verbs run; the harness imports of this library only what they have imported."""
  command = [sys.executable, "-c", _PROGRAM, str(toy_run), str(tmp_path)]
  result = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, check=False)
  assert result.returncode == 0, result.stderr
  assert json.loads((tmp_path / "report.json").read_text())["series"]["none"]["loss"] > 0
  assert json.loads((tmp_path / "tasks/report.json").read_text())["tasks"]["nq_open"]["modes"]["none"]["count"] == 12
  loaded = set((tmp_path / "modules").read_text().split())
  harness = ast.parse((_ROOT / "hiermem_jax/evaluation/harness.py").read_text())
  imported = {node.module for node in ast.walk(harness) if isinstance(node, ast.ImportFrom)}
  assert {name for name in imported if name.startswith("hiermem_jax") and name != "hiermem_jax"} <= loaded
