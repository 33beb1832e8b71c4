"""`describe`: the paper's arithmetic, printed without a device and without TensorFlow."""

import json
import pathlib
import subprocess
import sys

import pytest

from hiermem_jax import configuration
from hiermem_jax.errors import InputError

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def load(run: str) -> None:
  configuration.load([str(_ROOT / f"gin/runs/{run}.gin")], [])


@pytest.mark.parametrize(
  "run, anchor, fetched, bank",
  [
    ("a2", 163_510_016, 18_063_360, 4_624_220_160),
    ("b2", 411_665_408, 49_545_216, 12_683_575_296),
    ("c2", 1_439_893_504, 153_354_240, 21_139_292_160),
  ],
)
def test_sizes_are_the_papers(capsys, run, anchor, fetched, bank):
  load(run)
  configuration.call("describe", as_json=True)
  sizes = json.loads(capsys.readouterr().out)
  assert (sizes["anchor_params"], sizes["fetched_params"], sizes["bank_params"]) == (anchor, fetched, bank)
  assert sizes["flops_per_token"] - sizes["flops_per_token_no_memory"] == 2 * fetched
  assert sum(level["params"] for level in sizes["levels"]) == bank


@pytest.mark.parametrize("run, per_token", [("a1", 6 * 190_971_904), ("a2", 6 * (190_971_904 + 18_063_360)), ("a3", 0)])
def test_whole_training_is_a_trillion_tokens(capsys, run, per_token):
  """2^40 of them (paper, Appendix A), whether of one length or of several; a frozen anchor saves a third of its part."""
  load(run)
  configuration.call("describe", as_json=True)
  sizes = json.loads(capsys.readouterr().out)
  training = sizes["training"]
  assert training["tokens"] == 2**40
  assert training["flops_per_token"] == (per_token or 4 * 190_971_904 + 6 * 18_063_360)
  assert training["flops"] == training["tokens"] * training["flops_per_token"]


def test_page_with_and_without_memory(capsys):
  load("a2")
  configuration.call("describe")
  assert "4,624,220,160     9.248 GB in bfloat16" in capsys.readouterr().out
  load("a1")
  configuration.call("describe")
  page = capsys.readouterr().out
  assert "163,510,016" in page and "level" not in page


@pytest.mark.parametrize(
  "bindings, message",
  [
    ([], "train.optimizer, train.steps, train.batch_size: not bound; name a run with --gin_file, e.g. gin/runs/a2.gin"),
    (
      ["train.optimizer = 3", "train.steps = 4", "train.batch_size = 2", "ModelConfig.anchor = @AnchorConfig()"],
      "AnchorConfig.num_layers, AnchorConfig.width, AnchorConfig.num_heads, AnchorConfig.head_dim,"
      ' AnchorConfig.mlp_width: not bound; bind in a gin file or with --gin_bindings="AnchorConfig.num_layers = ..."',
    ),
  ],
)
def test_nothing_to_describe(bindings, message):
  configuration.load([], bindings)
  with pytest.raises(InputError) as caught:
    configuration.call("describe")
  assert str(caught.value) == message


def test_process_loads_no_tensorflow():
  program = (
    "import sys; from hiermem_jax import cli\n"
    "sys.argv = ['describe', '--gin_file=gin/runs/a2.gin', '--json']\n"
    "try: cli.main('describe')\n"
    "finally: print([name for name in ('tensorflow', 'seqio', 'apache_beam', 'sklearn') if name in sys.modules])"
  )
  result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=_ROOT, check=False)
  assert (result.returncode, result.stderr) == (0, "")
  output, _, modules = result.stdout.rstrip().rpartition("\n")
  assert modules == "[]"
  assert json.loads(output)["bank_params"] == 4_624_220_160


def device_page(capsys, run, **arguments):
  load(run)
  configuration.call("describe", as_json=True, **arguments)
  return json.loads(capsys.readouterr().out)["device"]


def test_memory_of_a_device(capsys):
  """A2 on 256 chips, by hand: an equal part of the weights in float32, of both moments, of each table's 16^k + 1 rows."""
  device = device_page(capsys, "a2", topology="v5e:16x16")
  assert device["mesh"] == {"replica": 1, "data": 256, "context": 1, "model": 1}
  table = 4 * 4097 * 860_160 // 256
  assert device["bytes"]["level_3"] == table
  assert device["bytes"]["level_3 optimizer"] == 2 * table + 8  # and two counts of steps
  gains = 35 * (2 * 512 + 2 * 384) + 512  # held whole
  assert device["bytes"]["anchor"] == 4 * ((163_510_016 - gains) // 256 + gains)
  assert device["state_bytes"] == sum(device["bytes"].values())
  assert device["usable_bytes"] == int(15.75 * 2**30)


def test_slices_hold_copies(capsys):
  one, two = (device_page(capsys, "b2", topology="v5e:16x16", num_slices=slices) for slices in (1, 2))
  assert two["devices"] == 2 * one["devices"]
  assert two["state_bytes"] == one["state_bytes"]


def test_bfloat16_bank_takes_half(capsys):
  full = device_page(capsys, "a2", devices=8)
  configuration.load(
    [str(_ROOT / "gin/runs/a2.gin")],
    ["MemoryConfig.dtype = 'bfloat16'", "OptimizerConfig.bank_moment_dtype = 'bfloat16'"],
  )
  configuration.call("describe", as_json=True, devices=8)
  half = json.loads(capsys.readouterr().out)["device"]
  assert half["bytes"]["level_1"] * 2 == full["bytes"]["level_1"]
  assert (half["bytes"]["level_1 optimizer"] - 8) * 2 == full["bytes"]["level_1 optimizer"] - 8
  assert half["bytes"]["anchor"] == full["bytes"]["anchor"]


@pytest.mark.parametrize(
  "bindings, arguments, message",
  [
    ([], {"topology": "v9:2x2"}, "--topology=v9:2x2: no such topology"),
    (["MeshConfig.model = 5"], {"devices": 10}, "AnchorConfig.num_heads = 12: cannot be split over a model axis of 5"),
    (["MeshConfig.model = 3"], {"devices": 8}, "8 devices cannot be split into 1 slices x model axis of 3"),
    (["train.batch_size = 1100"], {"devices": 11}, "512 (embed) cannot be split over 11 devices"),
    ([], {"topology": "v5p:8x8x16"}, "bind MeshConfig.model = 2, which leaves data 512"),
    (["train.batch_size = 12"], {"devices": 8}, "train.batch_size = 12: cannot be split over 8 devices"),
    (
      ["AnchorConfig.logits_chunk = 96"],
      {"devices": 8},
      "AnchorConfig.logits_chunk = 96: does not divide sequences of",
    ),
    (
      ["AnchorConfig.attention = 'splash'", "PackConfig.buckets = (64, 128)", "prepare.tree = None"],
      {"devices": 8},
      "sequences of 64 are not a multiple of 128",
    ),
    ([], {"topology": "v5e:3x5"}, "--topology=v5e:3x5: libtpu does not know it"),
  ],
)
def test_layouts_that_do_not_work(bindings, arguments, message):
  configuration.load([str(_ROOT / "gin/runs/a2.gin")], bindings)
  with pytest.raises(InputError) as caught:
    configuration.call("describe", **arguments)
  assert message in str(caught.value)


def test_state_that_does_not_fit(capsys):
  """A2's bank on four chips, 3.6 GB of each; with four times as many rows it takes more than a chip has."""
  configuration.load([str(_ROOT / "gin/runs/a2.gin")], ["MemoryConfig.rows = (1024, 256, 64, 0)"])
  with pytest.raises(SystemExit) as caught:
    configuration.call("describe", topology="v5e:2x2")
  assert caught.value.code == 1
  output = capsys.readouterr()
  assert ": DOES NOT FIT" in output.out
  assert output.err == "error: parameters and optimizer state do not fit v5e:2x2; compile_pod names remedies\n"


def test_preset_for_whole_weights(capsys):
  configuration.load([str(_ROOT / f"gin/{name}.gin") for name in ("runs/a2", "pods/whole_weights")], [])
  configuration.call("describe", as_json=True, topology="v5p:8x8x16")
  device = json.loads(capsys.readouterr().out)["device"]
  assert device["bytes"]["anchor"] == 4 * 163_510_016
  assert device["bytes"]["level_3"] == 4 * 4097 * 860_160 // 1024
