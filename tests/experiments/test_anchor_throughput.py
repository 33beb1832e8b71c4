"""The throughput benchmark: its command line on a tiny anchor, beside a peer whose speed is known."""

import json

import pytest

from hiermem_jax.errors import InputError

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
  "--steps=2",
  "--rounds=1",
]


def peer(tokens_per_second: float) -> str:
  return f"--peer=fixed=echo warming up; echo '{{\"tokens_per_second\": {tokens_per_second}}}'"


@pytest.mark.slow
def test_json_beside_a_peer_and_without_tensorflow(run, monkeypatch, without_tensorflow):
  monkeypatch.setenv("PYTHONPATH", str(without_tensorflow))  # ours runs in a process of its own
  done = run(_SCRIPT, *_TINY, "--json", "--peak_flops=1e12", peer(1000.0))
  assert done.returncode == 0, done.err
  report = json.loads(done.out)
  assert report["params"] == 64 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 4 * 32) + 32
  # Per token: 2 FLOPs per weight of the layers and the head, and q.k and p.v with half of 16 positions; three times that.
  assert report["flops_per_token"] == 3 * (2 * (2 * (4 * 32 * 32 + 3 * 32 * 48) + 64 * 32) + 2 * 2 * 32 * 16)
  speed = report["tokens_per_second"]
  assert speed == pytest.approx(2 * 16 / (report["step_ms"] / 1e3))
  assert report["mfu"] == pytest.approx(speed * report["flops_per_token"] / 1e12)
  assert report["peers"] == [
    {"name": "fixed", "tokens_per_second": 1000.0, "rounds": [1000.0], "ratio": speed / 1000.0}
  ]


@pytest.mark.slow
def test_table(run):
  done = run(_SCRIPT, *_TINY, "--quick", "--dtype=bfloat16", "--remat=full", peer(2e9))
  assert done.returncode == 0, done.err
  lines = done.out.splitlines()
  assert lines[0].split() == ["tokens/s", "(median)", "lowest", "highest", "ours", "/", "theirs"]
  assert lines[1].split()[0] == "ours"
  assert lines[2].split() == ["fixed", *3 * ["2,000,000,000"], "0.00"]
  assert "bfloat16, remat full" in done.out and "matmul of 2048 x 2048 in this run" in done.out


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--rounds=0"], "--rounds=0: must be positive; give another number"),
    (["--head_dim=15"], "AnchorConfig.head_dim = 15: RoPE rotates pairs; bind an even number"),
    (["--peer=lm1b"], "--peer=lm1b: write NAME=COMMAND, each peer with a name of its own that is not 'ours'"),
    (
      ["--peer=a=b", "--peer=a=c"],
      "--peer=a=c: write NAME=COMMAND, each peer with a name of its own that is not 'ours'",
    ),
  ],
)
def test_bad_flags_are_one_line(run, flags, message):
  done = run(_SCRIPT, *flags)
  assert (done.returncode, done.out, done.err) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
  "command, message",
  [
    (
      "echo out of memory >&2; exit 3",
      r"lm1b: the command ended with status 3 \(out of memory\); run it alone and mend it",
    ),
    ("echo 12", "lm1b: the last line of its output is not JSON with a positive tokens_per_second; print that"),
    ("true", "lm1b: the last line of its output is not JSON with a positive tokens_per_second; print that"),
  ],
)
def test_peer_that_fails_is_one_line(script, command, message):
  with pytest.raises(InputError, match=f"^{message}$"):
    script(_SCRIPT).run_command("lm1b", command)
