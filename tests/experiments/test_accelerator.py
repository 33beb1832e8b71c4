"""The accelerator's benchmark at a small size on a CPU."""

import json
import pathlib

import pytest

_SCRIPT = "benchmarks/accelerator"


@pytest.fixture
def module(script, monkeypatch):
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2] / "experiments" / "benchmarks")
  return script(_SCRIPT)


@pytest.mark.slow
def test_everything_is_measured(run, tmp_path):
  done = run(_SCRIPT, "--preset=small", f"--out={tmp_path}/report.json")
  assert done.returncode == 0, done.err
  report = json.loads(done.out)
  assert report == json.loads((tmp_path / "report.json").read_text())
  assert "error" not in done.out and report["skipped"] == []
  ceilings, (step,) = report["ceilings"], report["anchors"]
  assert min(ceilings[name] for name in ("matmul_bfloat16", "matmul_float32", "copy_bytes")) > 0
  assert report["best"] == [step] and step["mfu"] is None  # no peak is published for this device
  assert step["tokens_per_second"] == pytest.approx(2 * 16 / (step["step_ms"] / 1e3))
  # Per token: 2 FLOPs per weight of the layers and the head, and attention to half of 16 positions; three times that.
  flops = 3 * (2 * (2 * (4 * 16 * 16 + 3 * 16 * 24) + 64 * 16) + 2 * 2 * 16 * 16)
  share = step["tokens_per_second"] * flops / ceilings["matmul_float32"]
  assert step["of_matmul"] == pytest.approx(share)
  assert report["memory"]["step_ratio"] > 0 and report["memory"]["flop_ratio"] > 1
  assert report["encoder"]["texts_per_second"] > 0 and report["scoring"]["new_tokens_per_s"] > 0
  lazy, dense = report["bank"]
  assert (lazy["optimizer"], dense["optimizer"]) == ("lazy", "dense")
  neuron = 3 * 1 * 16
  assert dense["bank_params"] == neuron * (2 * 2 + 1 * 4) and lazy["fetched_params"] == 4 * neuron * 3
  for row, moved in ((lazy, lazy["fetched_params"]), (dense, dense["bank_params"])):
    assert row["of_copy"] == pytest.approx(24 * moved / (row["update_ms"] / 1e3) / ceilings["copy_bytes"])


def test_a_failure_is_reported_and_late_measurements_are_skipped(module, monkeypatch):
  def fail(preset, report):
    raise RuntimeError("out of memory\nmore")

  sections = [("ceilings", fail), ("encoder", lambda preset, report: {})]
  monkeypatch.setattr(module, "measurements", lambda preset: sections)
  kept = []
  report = module.measure(module.SMALL, 1e-9, lambda report: kept.append(json.dumps(report)))
  assert report["skipped"] == [{"section": "ceilings"}, {"section": "encoder"}] and not kept
  report = module.measure(module.SMALL, 60, lambda report: kept.append(json.dumps(report)))
  assert report["ceilings"] == {"error": "RuntimeError: out of memory"} and report["encoder"] == {} and len(kept) == 2


def test_the_anchors_are_those_of_the_paper(module):
  assert [config.params for config in module.FULL.anchors.values()] == [163_510_016, 411_665_408, 1_439_893_504]


@pytest.mark.parametrize(
  "flag, message",
  [
    ("--seconds=0", "--seconds=0.0: must be positive; give more"),
    ("--out=nowhere/a.json", "--out=nowhere/a.json: there is no folder nowhere; make it"),
  ],
)
def test_bad_flags_are_one_line(run, flag, message):
  done = run(_SCRIPT, flag)
  assert (done.returncode, done.out, done.err) == (2, "", f"error: {message}\n")
