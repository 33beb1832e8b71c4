"""The throughput benchmark: its command line on a tiny anchor, beside a peer that does nothing."""

import functools
import itertools
import json
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

_SCRIPT = "benchmarks/anchor_throughput"
_TINY = [
  "--layers=2",
  "--width=32",
  "--heads=2",
  "--head_dim=16",
  "--mlp_width=48",
  "--vocab=64",
  "--length=16",
  "--batch=2",
  "--rounds=3",
]
_PEER = """
import helper

def training_step(flags, batch):
  assert batch["decoder_segment_ids"].max() == flags.documents
  helper.made.append(flags.length)
  return lambda: helper.made
"""


@pytest.fixture
def peer(tmp_path):
  """A peer that does nothing, and a module that it imports from its folder."""
  (tmp_path / "idle.py").write_text(_PEER)
  (tmp_path / "folder").mkdir()
  (tmp_path / "folder" / "helper.py").write_text("made = []")
  return f"--peer={tmp_path}/idle.py={tmp_path}/folder"


@pytest.fixture
def module(script, monkeypatch):
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2] / "experiments" / "benchmarks")
  return script(_SCRIPT)


@pytest.mark.slow
def test_json_and_table_beside_a_peer(run, module, peer):
  done = run(_SCRIPT, *_TINY, "--json", "--peak_flops=1e12", "--documents=3", peer)
  assert done.returncode == 0, done.err
  report = json.loads(done.out)
  assert report["params"] == 64 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 4 * 32) + 32
  # Per token: 2 FLOPs per weight of the layers and the head, and q.k and p.v with half of 16 positions; three times that.
  assert report["flops_per_token"] == 3 * (2 * (2 * (4 * 32 * 32 + 3 * 32 * 48) + 64 * 32) + 2 * 2 * 32 * 16)
  speed = report["tokens_per_second"]
  assert speed == pytest.approx(2 * 16 / (report["step_ms"] / 1e3))
  assert report["mfu"] == pytest.approx(speed * report["flops_per_token"] / 1e12)
  ours, control, idle = report["sides"]
  assert [side["name"] for side in report["sides"]] == ["ours", "control", "idle"]
  assert (
    ours["ratio"] == ours["cpu_ratio"] == 1
    and ours["interval"] == [1, 1]
    and ours["tokens_per_second"] == pytest.approx(speed)
  )
  assert control["interval"][0] <= control["ratio"] <= control["interval"][1]
  assert idle["ratio"] < 0.1  # its step takes no time
  assert "helper" not in sys.modules
  lines = module.as_table(report).splitlines()
  assert [line.split()[0] for line in lines[1:4]] == ["ours", "control", "idle"]
  assert lines[3].split()[-5:-2] == [f"{idle['ratio']:.3f}", f"{idle['interval'][0]:.3f}", "to"]
  assert lines[6] == "3 documents a sequence, 3 rounds"


def test_batch_is_packed(module):
  flags = module.parse([*_TINY, "--documents=3"])
  batch = module.packed_batch(flags)
  for tokens, inputs, segments, positions in zip(*(batch[f"decoder_{name}"] for name in (
    "target_tokens", "input_tokens", "segment_ids", "positions"))):  # fmt: skip
    assert segments[0] == 1 and segments[-1] == 3 and set(np.diff(segments)) == {0, 1}
    for segment in (1, 2, 3):
      where = np.flatnonzero(segments == segment)
      np.testing.assert_array_equal(positions[where], np.arange(len(where)))
      np.testing.assert_array_equal(inputs[where], np.append(0, tokens[where][:-1]))


def test_steps_of_a_peer_go_on_from_each_other(module):
  """x -> x - x / 4 for the loss x^2 / 2 and a rate of 1/4."""
  run = sys.modules["common"].optax_steps(lambda x: x**2 / 2, jnp.float32(4), optax.sgd(0.25))
  assert [float(run()[0]) for _ in range(3)] == [3, 2.25, 1.6875]
  assert float(run()[2]) == 1.6875**2 / 2


def test_order_rotates_and_every_round_is_kept(monkeypatch, module):
  import common

  clock = itertools.count()
  monkeypatch.setattr(common.time, "perf_counter", lambda: float(next(clock)) ** 2)
  monkeypatch.setattr(common.time, "process_time", lambda: 5.0)
  order = []
  functions = {name: functools.partial(order.append, name) for name in "abc"}
  times = common.in_rotated_turns(functions, 4)
  assert "".join(order) == "bca" + "cab" + "abc" + "bca" + "cab" + "abc"
  seconds = [13 + 4 * turn for turn in range(12)]  # those that warm up read the clock once
  expected = {name: [seconds[i] for i, who in enumerate(order[6:]) if who == name] for name in "abc"}
  assert {name: values[0].tolist() for name, values in times.items()} == expected
  assert not any(values[1].any() for values in times.values())


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--rounds=0"], "--rounds=0: must be positive; give another number"),
    (["--head_dim=15"], "AnchorConfig.head_dim = 15: RoPE rotates pairs; bind an even number"),
    (["--documents=300"], "--documents=300: more than --length=256 tokens; give fewer"),
    (["--peer=nowhere.py=."], "--peer=nowhere.py=.: there is no file nowhere.py; write FILE=FOLDER"),
    ([f"--peer={__file__}=nowhere"], f"--peer={__file__}=nowhere: there is no folder nowhere; write FILE=FOLDER"),
    (["--peer=a/ours.py=."], "--peer=a/ours.py=.: a second side named ours; give every peer's file a name of its own"),
  ],
)
def test_bad_flags_are_one_line(run, flags, message):
  done = run(_SCRIPT, *flags)
  assert (done.returncode, done.out, done.err) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
  "content, message", [("import absent_module", "No module named 'absent_module'"), ("x = 1", "training_step")]
)
def test_peer_that_cannot_be_loaded_is_one_line(run, tmp_path, content, message):
  (tmp_path / "lm1b.py").write_text(content)
  done = run(_SCRIPT, "--quick", f"--peer={tmp_path}/lm1b.py={tmp_path}")
  assert done.returncode == 2 and message in done.err and done.err.count("\n") == 1
