"""The encoder's benchmark at a tiny size."""

import json

import pytest

_SCRIPT = "benchmarks/encoder"


@pytest.mark.slow
def test_vectors_agree_and_both_sides_are_timed(run, tmp_path):
  lines = [json.dumps({"text": f"word{i} word{2 * i}"}) for i in range(20)]
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  done = run(_SCRIPT, f"--texts={tmp_path}/a.jsonl", "--count=12", "--timed=8", "--batch=4", "--max_word_pieces=16", "--rounds=1",
             "--json")  # fmt: skip
  assert done.returncode == 0, done.err
  report = json.loads(done.out)
  assert report["texts"] == 12 and report["word_pieces"] == 4  # with [CLS] and [SEP]
  assert report["cosine_min"] > 0.99999 and 0.999 < report["cosine_min_bfloat16"] < 1
  ratio = report["texts_per_second"] / report["torch_texts_per_second"]
  assert report["throughput_ratio"] == pytest.approx(ratio) and report["flops_share"] > 0


def test_bad_input_is_one_line(run, tmp_path):
  done = run(_SCRIPT, f"--model={tmp_path}", "--texts=nowhere", "--quick")
  assert done.returncode == 2
  assert done.err.strip().splitlines()[-1].startswith("error: no file matches nowhere")
