"""`cluster` and `prepare` as commands, killed five times without warning at random moments, then left to finish."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hiermem_jax.data.packed.reading import PackedDataset

_ROOT = str(pathlib.Path(__file__).resolve().parents[3])
_CONFIG = """
JsonlSource.pattern = '{folder}/*.jsonl'
cluster.corpus = @JsonlSource()
cluster.tokenizer_vocab_size = 400
TreeConfig.branching = 3
TreeConfig.depth = 2
TreeConfig.batch_size = 200
prepare.train = @JsonlSource()
PackConfig.length = 64
PackConfig.num_shards = 3
PackConfig.tails = 'mix'
"""


@pytest.fixture
def command(tmp_path):
  """Starts a verb in a process group of its own, with two workers."""
  rng = np.random.default_rng(0)
  words = ["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(200)]
  for i in range(4):
    texts = [" ".join(rng.choice(words, rng.integers(5, 120))) for _ in range(400)]
    (tmp_path / f"{i}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  (tmp_path / "run.gin").write_text(_CONFIG.format(folder=tmp_path))

  def start(verb, run_dir):
    flags = [f"--gin_file={tmp_path}/run.gin", f"--run_dir={tmp_path}/{run_dir}"]
    flags += ["--pipeline_option=--direct_num_workers=2", "--pipeline_option=--direct_running_mode=multi_processing"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
      [sys.executable, "-m", f"hiermem_jax.{verb}", *flags], cwd=_ROOT, env=env, start_new_session=True,
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

  return start


def finish(command, verb, run_dir):
  started = time.monotonic()
  assert command(verb, run_dir).wait(timeout=300) == 0
  return time.monotonic() - started


@pytest.mark.slow
def test_the_result_is_that_of_an_uninterrupted_run(command, tmp_path):
  seconds = {verb: finish(command, verb, "whole") for verb in ("cluster", "prepare")}
  moments = random.Random(0)
  for verb, kills in (("cluster", 2), ("prepare", 3)):
    for _ in range(kills):
      process = command(verb, "broken")
      time.sleep(moments.uniform(0.4, 0.9) * seconds[verb])  # the first part is imports
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    finish(command, verb, "broken")
  for name in ("tokenizer.model", "tree/tree.npz", "tree/tree.json"):
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
  whole, broken = (PackedDataset(str(tmp_path / run / "packed/train")) for run in ("whole", "broken"))
  assert broken.manifest == whole.manifest  # with the checksums of the shards
  broken.verify()
  assert whole.manifest.input_tokens == whole.manifest.num_tokens
  assert sorted(os.listdir(whole.directory)) == sorted(os.listdir(broken.directory))
