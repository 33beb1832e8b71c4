"""The encoder's benchmark at a tiny size."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

_SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "experiments/benchmarks/encoder.py"


def run(*flags):
  env = os.environ | {"JAX_PLATFORMS": "cpu"}
  return subprocess.run([sys.executable, str(_SCRIPT), *flags], env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_vectors_agree_and_both_sides_are_timed(tmp_path):
  lines = [json.dumps({"text": f"word{i} word{2 * i}"}) for i in range(20)]
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  done = run(f"--texts={tmp_path}/a.jsonl", "--count=12", "--timed=8", "--batch=4", "--max_word_pieces=16", "--rounds=1",
             "--json")  # fmt: skip
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  assert report["texts"] == 12 and report["word_pieces"] == 4  # with [CLS] and [SEP]
  assert report["cosine_min"] > 0.99999 and 0.999 < report["cosine_min_bfloat16"] < 1
  ratio = report["texts_per_second"] / report["torch_texts_per_second"]
  assert report["throughput_ratio"] == pytest.approx(ratio) and report["flops_share"] > 0


def test_bad_input_is_one_line(tmp_path):
  done = run(f"--model={tmp_path}", "--texts=nowhere", "--quick")
  assert done.returncode == 2
  assert done.stderr.strip().splitlines()[-1].startswith("error: no file matches nowhere")
