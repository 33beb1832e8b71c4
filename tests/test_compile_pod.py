"""`compile_pod`: a small run compiled for TPU slices on a machine that has none."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from hiermem_jax import compile_pod, configuration
from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.pod.collectives import Collective
from hiermem_jax.pod.report import exchange_bounds, remedies, step_seconds
from hiermem_jax.pod.topology import GIB, parse_topology

_ROOT = pathlib.Path(__file__).resolve().parents[1]

_RUN = """
include 'gin/models/tiny.gin'
include 'gin/phases/common.gin'
AnchorConfig.dtype = 'bfloat16'
AnchorConfig.vocab_size = 512
MemoryConfig.branching = 2
MemoryConfig.rows = (8, 8)
OptimizerConfig.peak_learning_rate = 1e-3
OptimizerConfig.final_learning_rate = 1e-4
OptimizerConfig.warmup_steps = 1
OptimizerConfig.weight_decay = 1e-3
ModelConfig.memory = @MemoryConfig()
train.steps = 5
train.batch_size = 16
compile_pod.length = 128
"""


@pytest.fixture
def gin_file(tmp_path):
  path = tmp_path / "run.gin"
  path.write_text(_RUN)
  return str(path)


@pytest.fixture
def compile_run(gin_file, capsys):
  """Runs the verb in this process; returns its JSON report."""

  def run(*bindings, code=0, **arguments):
    configuration.load([gin_file], bindings)
    if code:
      with pytest.raises(SystemExit) as caught:
        configuration.call("compile_pod", as_json=True, **arguments)
      assert caught.value.code == code
    else:
      configuration.call("compile_pod", as_json=True, **arguments)
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert output.err.endswith(f"error: {report['reason']}\n" if code else "")
    return report

  return run


def command(*flags, **variables):
  return subprocess.run(
    [sys.executable, "-m", "hiermem_jax.compile_pod", *flags],
    **{"capture_output": True, "text": True, "cwd": _ROOT, "check": False, "env": os.environ | variables},
  )


def test_page(gin_file, tmp_path):
  result = command("--topology=v5e:2x2", f"--gin_file={gin_file}", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"))
  assert result.returncode == 0, result.stderr
  assert not list(tmp_path.glob("cache/jit_step*")) and "compilation cache" not in result.stderr
  page = result.stdout
  assert page.startswith("v5e:2x2: 4 devices, mesh replica 1, data 4, context 1, model 1; 16 sequences of 128 tokens")
  assert "of 15.75 that a program may use (16 published): fits" in page
  for tensor in ("embed/embedding", "layers/feed_forward/w1", "fetch level_1", "push level_2"):
    assert tensor in page
  assert "Bound by " in page
  assert len(page.splitlines()) < 70 and max(map(len, page.splitlines())) <= 120


def test_numbers(compile_run):
  report = compile_run(topology="v5e:2x2")
  anchor = AnchorConfig(
    num_layers=2, width=64, num_heads=2, head_dim=32, mlp_width=256, tied_embeddings=True, vocab_size=512
  )
  state = 3 * 4 * (anchor.params + 2 * 3 * 64 * 8 * (3 + 5))  # weights and two moments, float32; tables of 3 and 5 rows
  batch = 16 * 128 * 4 * 5 + 16 * 4
  # Norms and counters are whole on every device, and arrays are padded to tiles.
  assert (state + batch) / 4 < report["hbm"]["arguments"] < 1.5 * (state + batch) / 4
  assert report["hbm"]["peak"] == report["hbm"]["arguments"] + report["hbm"]["temporaries"]
  assert report["fits"] and report["remedies"] == []
  per_token = 2 * (2 * (4 * 64 * 64 + 3 * 64 * 256) + 512 * 64) + 2 * 2 * 64 * 128 + 2 * (2 * 3 * 64 * 16)
  assert report["flops"]["model"] == 3 * per_token * 16 * 128 / 4
  # Without recomputation the compiled step multiplies what the model says, and half of the masked half of the attention
  # too: of two blocks of queries the first does without the later keys.
  attention = 3 * 2 * 64 * 128 * 16 * 128 / 4
  assert report["flops"]["compiled"] == pytest.approx(report["flops"]["model"] + attention, rel=0.01)
  for row in report["exchange"]:  # 4 sequences a device, tables of 3 and 5 rows of 3 * 8 * 2 * 64 bfloat16 values
    wanted = 3 if row["tensor"].endswith("1") else 4
    assert row["bound"] == wanted * 3072 * 2 * 3 / 4
    assert row["bytes"] == sum(
      c["bytes"] for c in report["collectives"] if c["tensor"] == row["tensor"] and c["dtype"] == "bf16"
    )
    assert row["ratio"] == pytest.approx(1.0)
  assert len(report["exchange"]) == 4
  assert {c["network"] for c in report["collectives"]} == {"ICI"}
  assert report["seconds"][report["bound_by"]] == max(report["seconds"].values())
  traffic = report["hbm_traffic"]
  assert traffic["ratio"] == traffic["counted"] / sum(traffic["least"].values())
  sizes = [row["bytes"] for row in traffic["largest"]]
  assert len(sizes) == 10 and sizes == sorted(sizes, reverse=True) and sum(sizes) <= traffic["counted"]
  assert 0 < report["mfu_in_turn"] < report["mfu_bound"]
  assert 0 < report["mfu_bound"] <= 1


def test_every_length_that_the_run_trains_on(compile_run):
  """Each with as many sequences as make the same tokens; the page is about the largest peak."""
  run = ("PackConfig.buckets = (128, 256)", "ModelConfig.memory = None", "prepare.tree = None")
  report = compile_run("compile_pod.length = None", *run, topology="v5e:2x2")
  lengths = {each["length"]: each for each in report["lengths"]}
  assert {length: each["batch_size"] for length, each in lengths.items()} == {256: 16, 128: 32}
  assert report["hbm"]["peak"] == max(each["hbm"]["peak"] for each in lengths.values())
  assert report["batch_size"] == lengths[report["length"]]["batch_size"]
  assert lengths[128]["seconds"]["flops"] < lengths[256]["seconds"]["flops"]  # attention's part
  page = compile_pod.as_text(report)
  assert "Lengths of sequences that the run trains on" in page
  assert f"     128         32  {lengths[128]['hbm']['temporaries'] / GIB:>15.3f}" in page

  alone = compile_run("compile_pod.length = 128", *run, topology="v5e:2x2")
  assert alone["batch_size"] == 32 and alone["hbm"] == lengths[128]["hbm"]


def test_two_slices(compile_run):
  report = compile_run(topology="v5e:2x2", num_slices=2)
  assert (report["devices"], report["mesh"]) == (8, {"replica": 2, "data": 4, "context": 1, "model": 1})
  crossing = {c["tensor"] for c in report["collectives"] if c["network"] == "DCN" and c["tensor"].startswith("push")}
  assert crossing >= {"push level_1", "push level_2"}
  rows = {(row["tensor"], row["network"]): row for row in report["exchange"]}
  assert rows["fetch level_2", "ICI"]["bound"] == 2 * 3072 * 2 * 3 / 4  # now 2 sequences a device
  assert rows["push level_2", "DCN"]["bound"] == 5 * 3072 / 4 * 2  # the other slice's 8 sequences touch all 5 rows
  assert all(row["ratio"] >= 1 for row in report["exchange"])
  assert report["seconds"]["dcn"] > 0


def test_without_memory(compile_run):
  report = compile_run("ModelConfig.memory = None", topology="v6e:2x2")
  assert report["exchange"] == []
  assert not any(c["tensor"].startswith(("fetch", "push")) for c in report["collectives"])


def test_bank_table_that_does_not_fit(compile_run):
  report = compile_run("MemoryConfig.branching = 2048", topology="v5e:2x2", code=1)
  assert not report["fits"] and "collectives" not in report
  table = 2048**2 * 8 * 2 * 3 * 64
  assert report["hbm"]["arguments"] >= 3 * 4 * table / 4
  assert report["hbm"]["usable"] == 15.75 * GIB < report["hbm"]["peak"]
  assert (
    "which give a program 15.75 GiB; the largest array is bank/level_2 (4194305, 3072), 12.00 GiB" in report["reason"]
  )
  more, smaller = report["remedies"]
  assert more.startswith("more chips: a slice of about ")
  assert "bank_moment_dtype = 'bfloat16'" in smaller and "remat" not in smaller


def test_activations_that_do_not_fit(gin_file):
  result = command(
    "--topology=v5e:2x2",
    f"--gin_file={gin_file}",
    "--gin_bindings=train.batch_size = 64",
    "--gin_bindings=compile_pod.length = 16384",
  )
  assert result.returncode == 1
  assert "DOES NOT FIT" in result.stdout
  assert "AnchorConfig.remat = 'full' (now 'none')" in result.stdout
  assert "a smaller batch: train.batch_size = " in result.stdout
  assert "Traceback" not in result.stderr
  assert result.stderr.splitlines()[-1].startswith("error: the step needs ")


@pytest.mark.parametrize(
  "flags, message",
  [
    ([], "--topology is missing"),
    (
      ["--topology=v9:4x4"],
      "--topology=v9:4x4: no such topology; write CHIP:SHAPE with CHIP one of v4, v5e, v5p, v6e, tpu7x",
    ),
    (["--topology=v5e:2x2", "--num_slices=0"], "num_slices"),
  ],
)
def test_one_line_for_bad_flags(gin_file, flags, message):
  result = command(f"--gin_file={gin_file}", *flags)
  assert (result.returncode, result.stdout) == (2, "")
  assert result.stderr.startswith("error: ") and message in result.stderr
  assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
  "bindings, message",
  [
    (["MemoryConfig.rows = (8, 8)", "AnchorConfig.width = 66", "train.batch_size = 16"], r"66"),
    (["train.batch_size = 6"], r"6.* cannot be split over 4 devices"),
  ],
)
def test_run_that_the_mesh_does_not_divide(compile_run, bindings, message):
  with pytest.raises(InputError, match=message) as caught:
    compile_run(*bindings, topology="v5e:2x2")
  assert "\n" not in str(caught.value)


def test_nothing_bound():
  configuration.load([], [])
  with pytest.raises(
    InputError, match="train.optimizer, train.steps, train.batch_size: not bound; name a run with --gin_file"
  ):
    configuration.call("compile_pod", topology="v5e:2x2")


_ANCHOR = {"num_layers": 35, "width": 512, "num_heads": 12, "head_dim": 32, "mlp_width": 2048}


def test_bounds_of_the_papers_a2():
  """Row A2 on 16x16 v5e: 4 sequences a device; level 1 has 17 rows, of 3 * 256 * 35 * 512 parameters."""
  anchor, memory = AnchorConfig(**_ANCHOR), MemoryConfig(rows=(256, 64, 16, 0))
  bounds = exchange_bounds(ModelConfig(anchor=anchor, memory=memory), 1024, {"replica": 1, "data": 256, "model": 1})
  assert len(bounds) == 6
  assert bounds["fetch level_1", "ICI"] == bounds["push level_1", "ICI"] == 4 * 13_762_560 * 2 * 255 / 256
  assert bounds["fetch level_3", "ICI"] == 4 * 860_160 * 2 * 255 / 256

  # 32 sequences a device: each of the 17 rows once, and half of it on each of two model-parallel devices.
  bounds = exchange_bounds(ModelConfig(anchor=anchor, memory=memory), 32 * 128, {"replica": 1, "data": 128, "model": 2})
  assert bounds["fetch level_1", "ICI"] == 17 * 13_762_560 / 2 * 2 * 127 / 128
  assert bounds["fetch level_2", "ICI"] == 32 * 3_440_640 / 2 * 2 * 127 / 128

  # float32, three slices of 4: the 16 sequences of the other two reach at most 16 rows of level 2, 16 of level 3.
  float32 = AnchorConfig(**_ANCHOR, dtype="float32")
  bounds = exchange_bounds(ModelConfig(anchor=float32, memory=memory), 24, {"replica": 3, "data": 4, "model": 1})
  assert bounds["push level_2", "DCN"] == 16 * 3_440_640 / 4 * 4
  assert bounds["push level_1", "DCN"] == 16 * 13_762_560 / 4 * 4
  assert bounds["push level_2", "ICI"] == 2 * 3_440_640 * 4 * 3 / 4


def test_step_seconds():
  v5e = parse_topology("v5e:16x16", 2)
  found = [
    Collective("all-gather", "bf16", "w", "ICI", 1, 200e6, 256),
    Collective("all-to-all", "bf16", "fetch level_1", "ICI", 1, 100e6, 256),
    Collective("all-reduce", "f32", "w gradient", "DCN", 1, 3.125e6, 2),
  ]
  seconds = step_seconds(197e9, 819e6, found, v5e)
  assert seconds["flops"] == seconds["hbm"] == seconds["dcn"] == pytest.approx(1e-3)
  assert seconds["ici"] == pytest.approx(1e-3 + 0.5e-3 * v5e.mean_hops())
  # Of a tpu7x chip a device has half of everything.
  assert step_seconds(2307e9 / 2, 0, [], parse_topology("tpu7x:2x2x1"))["flops"] == pytest.approx(1e-3)


def test_remedies_name_a_batch_and_a_slice_that_fit():
  anchor = AnchorConfig(**_ANCHOR)
  report = {
    "hbm": {"arguments": 4 * GIB, "temporaries": 40 * GIB, "peak": 44 * GIB, "usable": 16 * GIB},
    "mesh": {"replica": 1, "data": 64, "context": 1, "model": 1},
    "batch_size": 64 * 10,
  }
  advice = "\n".join(remedies(report, ModelConfig(anchor=anchor)))
  assert "a slice of about 256 devices holds this state and batch\n" in advice  # 44 / 4 = 11 GiB
  assert "train.batch_size = 128 (now 640)" in advice  # 4 + 40 * 2 / 10 = 12 GiB; three each would just fill it
  assert "AnchorConfig.remat = 'full' (now 'none')" in advice
  report["batch_size"] = 64
  assert (
    "a slice of about 256 devices holds this state and batch, with train.batch_size = 256 or MeshConfig.context = 4\n"
    in "\n".join(remedies(report, ModelConfig(anchor=anchor)))
  )
  assert "remat" not in "\n".join(remedies(report, ModelConfig(anchor=AnchorConfig(**_ANCHOR, remat="full"))))


def test_help_shows_the_command():
  result = command("--help")
  assert "--topology=v5e:16x16 --gin_file=gin/runs/a2.gin" in result.stdout
  assert "--num_slices" in result.stdout
  assert compile_pod.__doc__.splitlines()[0] in result.stdout
