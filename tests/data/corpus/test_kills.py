"""`cluster` and `prepare` as commands with two workers, killed without warning while they work, then left to finish.

The result is that of one worker that nobody interrupted.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from hiermem_jax import configuration
from hiermem_jax.data.packed.reading import PackedDataset

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_CONFIG = """
JsonlSource.pattern = '{pattern}'
cluster.corpus = @JsonlSource()
cluster.tokenizer_vocab_size = 320
TreeConfig.branching = 3
TreeConfig.depth = 1
TreeConfig.batch_size = 40
ReadConfig.window_tokens = 16
prepare.train = @JsonlSource()
PackConfig.length = 64
PackConfig.num_shards = 3
PackConfig.tails = 'mix'
BeamConfig.options = ('--direct_num_workers={workers}', '--direct_running_mode={mode}')
"""


def start(verb, gin_file, run_dir):
  """Starts a verb in a process group of its own."""
  command = [sys.executable, "-m", f"hiermem_jax.{verb}", f"--gin_file={gin_file}", f"--run_dir={run_dir}"]
  return subprocess.Popen(
    command, cwd=_ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, start_new_session=True,
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
  )  # fmt: skip


def kill_when_written(process, run_dir, pattern):
  """Kills the process and its workers as soon as a file exists; returns whether it was still at work."""
  while process.poll() is None and not any(run_dir.glob(pattern)):
    time.sleep(0.005)
  at_work = process.poll() is None
  if at_work:
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  return at_work


@pytest.mark.slow
def test_the_result_is_that_of_an_uninterrupted_worker(corpus, tmp_path):
  gin_file = tmp_path / "run.gin"
  gin_file.write_text(_CONFIG.format(pattern=corpus.pattern, workers=1, mode="in_memory"))
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  configuration.load([str(gin_file)], [])
  for verb in ("cluster", "prepare"):
    configuration.call(verb, run_dir=str(whole))

  gin_file.write_text(_CONFIG.format(pattern=corpus.pattern, workers=2, mode="multi_processing"))
  for verb, pattern in {"cluster": "tree/embeddings/part-*.json", "prepare": "packed/train/*.array_record"}.items():
    assert kill_when_written(start(verb, gin_file, broken), broken, pattern), f"{verb} had ended"
    assert start(verb, gin_file, broken).wait(timeout=300) == 0
  for name in ("tokenizer.model", "tree/tree.npz", "tree/tree.json"):
    assert (whole / name).read_bytes() == (broken / name).read_bytes()
  one, two = (PackedDataset(str(run / "packed/train")) for run in (whole, broken))
  assert two.manifest == one.manifest  # with the checksums of the shards
  two.verify()
  assert one.manifest.input_tokens == one.manifest.num_tokens
  assert sorted(os.listdir(one.directory)) == sorted(os.listdir(two.directory))
