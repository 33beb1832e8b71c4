"""The small co-training that the campaign breaks: its data, its configuration, and a run of it in other processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hiermem_jax.data.packed.format import Manifest, encode_record, write_manifest, write_shard
from hiermem_jax.training.metrics import CLOCK_SCALARS

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTLED = 120  # seconds after which no host may still wait for another
LENGTH = 32  # tokens of a sequence
_LONGEST = 1800  # seconds that anything here may take
CONFIG = """
include 'gin/phases/cotrain.gin'
include 'gin/phases/toy.gin'
MemoryConfig.rows = (256, 256)
train.dataset = '{data}'
train.steps = {steps}
CheckpointConfig.every = {every}
train.log_every = 1
"""
# As `nohup` and a script's `&` do: SIGINT is ignored until somebody sets a handler.
IGNORED = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
# What a process runs: the verb, its batches poisoned and its patience shortened where asked for.
WORKER = """
import os, sys
import numpy as np
from hiermem_jax import cli
from hiermem_jax.data.packed.batches import Batches
from hiermem_jax.training import checkpoint_reader

checkpoint_reader.READ_SECONDS = float(os.environ.get("READ_SECONDS", checkpoint_reader.READ_SECONDS))
poisoned, at = os.environ.get("POISONED_STEP"), Batches.at

def poison(self, step):
  batch = at(self, step)
  if str(step + 1) == poisoned:
    batch["decoder_loss_weights"] = batch["decoder_loss_weights"] * np.nan
  return batch

Batches.at = poison
sys.modules["tensorflow"] = None  # nobody looks at TensorBoard's events, and importing it takes longer than the run
sys.argv[0] = "hiermem_jax/train.py"
cli.main("train")
"""


class Outcome(NamedTuple):
  """What one try came to."""

  recovered: bool
  steps_lost: int
  bit_identical: bool
  waited: float = 0.0  # seconds from a fault on one of two hosts until both had ended or gone on


class Run:
  """A training in a directory of its own."""

  def __init__(
    self, directory: pathlib.Path, config: pathlib.Path, cache: str, last: int, processes: int = 1, number: int = 0
  ):
    """A run that has not started.

    Args:
      directory: its run directory.
      config: gin file.
      cache: of compiled programs.
      last: its last step.
      processes: how many train together.
      number: of its first log, where several commands run at a time.
    """
    self.directory, self.config, self.cache, self.last, self.count = directory, config, cache, last, processes
    self._number = number

  def start(self, *flags: str, **variables: str) -> list[subprocess.Popen]:
    """Starts the command; standard error goes to a file beside the directory."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": self.cache} | variables
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WORKER, f"--gin_file={self.config}", f"--run_dir={self.directory}", *flags]
    if self.count > 1:
      with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
      command += ["--distributed", f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={self.count}"]
    processes = []
    for number in range(self.count):
      own = [f"--process_id={number}"] if self.count > 1 else []
      with open(self.log(number), "w") as log:
        processes.append(subprocess.Popen([*IGNORED, *command, *own], env=env, cwd=ROOT, stdout=log, stderr=log))
    return processes

  def log(self, number: int = 0) -> pathlib.Path:
    """Where a process's output goes."""
    return self.directory.with_name(f"{self.directory.name}.{self._number + number}.log")

  def finish(self, *flags: str, **variables: str) -> list[int]:
    """Runs the command to its end; exit statuses."""
    processes = self.start(*flags, **variables)
    try:
      return [process.wait(timeout=_LONGEST) for process in processes]
    finally:
      for process in processes:
        process.kill()

  def steps(self) -> int:
    """The last step that was written down."""
    path = self.directory / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0

  def checkpoints(self) -> list[int]:
    """Steps of the complete checkpoints."""
    path = self.directory / "checkpoints"
    return sorted(int(entry.name) for entry in path.iterdir() if entry.name.isdigit()) if path.exists() else []

  def saving(self) -> bool:
    """Whether a checkpoint is being written."""
    path = self.directory / "checkpoints"
    return path.exists() and any("tmp" in entry.name for entry in path.iterdir())

  def result(self, scalars: bool = True) -> tuple:
    """What two runs of the same steps share: digests of the final state and, unless some are lost, the scalars."""
    last = self.directory / f"checkpoints/{self.last}/metadata/metadata"
    digests = json.loads(last.read_text())["digests"] if last.exists() else None
    lines = (self.directory / "metrics.jsonl").read_text().splitlines() if scalars else []
    lines = [{k: v for k, v in json.loads(line).items() if k not in CLOCK_SCALARS} for line in lines]
    return digests, lines


def ends(processes: list[subprocess.Popen], seconds: float = SETTLED) -> tuple[list[int | None], float]:
  """Waits for processes; their statuses, None for one that had to be killed, and how long that took."""
  start, statuses = time.monotonic(), []
  for process in processes:
    try:
      statuses.append(process.wait(timeout=max(start + seconds - time.monotonic(), 0)))
    except subprocess.TimeoutExpired:
      statuses.append(None)
  waited = time.monotonic() - start
  for process in processes:
    process.kill()
  return statuses, waited


def flip(path: pathlib.Path) -> None:
  """Flips a bit in the middle of a file."""
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def truncate(path: pathlib.Path) -> None:
  """Cuts a file in half."""
  os.truncate(path, path.stat().st_size // 2)


def write_dataset(directory: pathlib.Path) -> None:
  """2,048 sequences that count up, each of 4 leaves from another number."""
  rng = np.random.default_rng(0)
  leaves = rng.integers(0, 4, 2048)
  records = [
    encode_record(leaf, 200 * leaf + rng.integers(0, 150) + np.arange(LENGTH), np.ones(LENGTH, np.int32), "uint16")
    for leaf in leaves
  ]
  shards = tuple(
    write_shard(str(directory / f"shard-{i:05d}.array_record"), records[1024 * i : 1024 * (i + 1)]) for i in range(2)
  )
  tokens = LENGTH * len(records)
  manifest = Manifest(
    length=LENGTH,
    dtype="uint16",
    vocab_size=1000,
    eot_id=2,
    bos_id=0,
    num_leaves=4,
    tokenizer_fingerprint="",
    tree_fingerprint="tree",
    num_documents=len(records),
    num_windows=len(records),
    num_characters=0,
    inputs={},
    input_tokens=tokens,
    dropped_tokens={},
    bad_records={},
    num_sequences=len(records),
    num_tokens=tokens,
    sequences_per_leaf={int(leaf): int(count) for leaf, count in zip(*np.unique(leaves, return_counts=True))},
    shards=shards,
  )
  write_manifest(str(directory), manifest)


def wait_until(condition: Callable[[], bool]) -> None:
  """Looks a hundred times a second; ends the campaign when the condition does not come true within half an hour."""
  deadline = time.monotonic() + _LONGEST
  while not condition():
    if time.monotonic() > deadline:
      sys.exit(f"waited {_LONGEST} s in vain; the logs beside the run directories say what the runs do")
    time.sleep(0.01)
