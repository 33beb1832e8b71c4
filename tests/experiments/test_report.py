"""Tables, plots and trends from results made by hand."""

import json
import shutil

import pytest

from hiermem_jax.errors import InputError


@pytest.fixture(scope="module")
def report(script):
  return script("report")


def line(kind, size, seed, loss, right=(1, 2)):
  probes = [
    {"count": 10, "accuracy": right[0] / 10},
    {"count": 30, "accuracy": right[1] / 30},
    {"count": 60, "accuracy": 1.0},
  ]
  series = {"fetched": {"loss": loss, "probes": probes}, "rag none": {"probes": probes, "relative_flops": 2.5}}
  result = {"series": series, "attribution": {"levels": [1, 3], "lost_without_level": [[0.1, 0.2], [0.3, 0.4]]}}
  return {"name": f"{kind}_{size}", "seed": seed, "settings": {"kind": kind, "size": size}, "result": result}


LINES = [
  line("ffn", 10, 0, 1.0), line("ffn", 10, 1, 1.2), line("ffn", 20, 0, 0.8), line("ffn", 20, 1, 0.9),
  line("kv", 10, 0, 1.1), line("kv", 10, 1, 1.1), line("kv", 20, 0, 1.0), line("kv", 20, 1, 1.0, (4, 9)),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in LINES))
  (tmp_path / "README.md").write_text("# E\n<!-- results -->\n<!-- /results -->\nafter\n")
  spec = {
    "tables": [
      {"title": "Kinds", "rows": ["kind"], "where": {"size": 20}, "columns": {"loss": "fetched.loss", "rare": "fetched.rare"}}
    ],
    "plots": [
      {"file": "kinds", "panels": [
        {"title": "a", "x": "size", "by": "kind", "y": {"fetched": "fetched.loss"}, "log": True},
        {"title": "b", "bars": True, "x": "kind", "y": {"rare": "fetched.rare", "all": "fetched.facts"}},
        {"title": "c", "bars": True, "where": {"kind": "kv"}, "y": {"one": "fetched.bucket_0", "level 3": "lost.3_1"}},
      ]}
    ],
    "trends": [
      {"text": "FFN beats KV", "better": {"kind": "ffn"}, "worse": {"kind": "kv"}, "value": "fetched.loss", "match": ["size"]}
    ],
  }  # fmt: skip
  (tmp_path / "report.json").write_text(json.dumps(spec))
  return tmp_path


def test_measures(report):
  run = report.load_line = {"series": LINES[-1]["result"]["series"], **LINES[-1]}
  assert report.measure(run, "fetched.loss") == 1.0
  assert report.measure(run, "fetched.rare") == pytest.approx(100 * 13 / 40)
  assert report.measure(run, "fetched.facts") == pytest.approx(73)
  assert report.measure(run, "fetched.bucket_1") == pytest.approx(30)
  assert report.measure(run, "settings.size") == 20
  assert report.measure(run, "rag none.relative_flops") == 2.5
  assert report.measure(run, "lost.3_1") == 0.4
  assert report.measure(run, "generic.loss") is None


def test_page(report, folder, capsys):
  assert report.main([str(folder)]) == 0
  readme = (folder / "README.md").read_text()
  assert "**Kinds** (2 seeds, mean ± standard deviation)" in readme
  assert "| ffn | 0.850 ± 0.071 | 7.5 ± 0.0 |" in readme
  assert "| kv | 1.000 ± 0.000 | 20.0 ± 17.7 |" in readme
  assert "| FFN beats KV | **3 of 4** |" in readme  # not with 10 units and seed 1
  assert readme.startswith("# E\n") and readme.endswith("\nafter\n")
  assert (folder / "kinds.png").stat().st_size > 10_000 and (folder / "kinds.svg").exists()
  assert capsys.readouterr().out.strip() in readme
  before = (folder / "README.md").read_bytes(), (folder / "kinds.png").read_bytes()
  assert report.main([str(folder)]) == 0
  assert before == ((folder / "README.md").read_bytes(), (folder / "kinds.png").read_bytes())


def test_trends_with_two_measures(report):
  lines = [{"series": one["result"]["series"], **one} for one in LINES]
  spec = {
    "better": {"kind": "kv"},
    "worse": {"kind": "kv"},
    "value": ["fetched.bucket_1", "fetched.bucket_0"],
    "match": ["size"],
  }
  assert report.holds(lines, spec) == (4, 4)
  assert report.holds(lines, spec | {"higher": True}) == (0, 4)


def test_bad_results_are_named(report, folder, tmp_path, capsys):
  with open(folder / "results.jsonl", "a") as file:
    file.write('{"name": "x"}\n')
  with pytest.raises(InputError, match="results.jsonl, line 9: not a run's result"):
    report.load(folder / "results.jsonl")
  (folder / "results.jsonl").unlink()
  assert report.main([str(folder)]) == 2
  assert "no results yet; run the sweep first" in capsys.readouterr().err
  shutil.rmtree(folder)
