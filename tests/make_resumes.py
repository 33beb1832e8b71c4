"""Writes what runs of this version leave in their directories, for later versions to go on; see golden/test_resumes.py.

  python tests/make_resumes.py tests/golden/resumes/VERSION

`everything` has the records of a chain that names every constructor, `finished` those of tests/smoke.gin after it has
run, and `interrupted` is a training that was ended after its third step of six, with its checkpoint.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from unittest import mock

import numpy as np
from absl import flags

from hiermem_jax import cli, configuration, plan
from hiermem_jax.training import loop
from hiermem_jax.verbs import CONFIGURED, VERBS

_EVERYTHING = pathlib.Path(__file__).parent / "golden/resumes/everything.gin"
_RECORDS = ("config.gin", "runs.jsonl", "stages.json")
_TRAINING = """
train.dataset = 'packed'
train.steps = 6
train.batch_size = 4
train.log_every = 1
train.optimizer = @OptimizerConfig()
ModelConfig.anchor = @AnchorConfig()
ModelConfig.memory = @MemoryConfig()
AnchorConfig.num_layers = 1
AnchorConfig.width = 8
AnchorConfig.num_heads = 2
AnchorConfig.head_dim = 4
AnchorConfig.mlp_width = 8
AnchorConfig.vocab_size = 16
AnchorConfig.dtype = 'float32'
MemoryConfig.rows = (1, 1)
MemoryConfig.branching = 2
OptimizerConfig.peak_learning_rate = 1e-2
OptimizerConfig.final_learning_rate = 1e-3
OptimizerConfig.warmup_steps = 2
OptimizerConfig.weight_decay = 0.01
"""


def main(directory: str) -> None:
  """Makes all three."""
  for make in (everything, finished, interrupted):
    target = pathlib.Path(directory) / make.__name__
    target.mkdir(parents=True)
    make(target)


def everything(target: pathlib.Path) -> None:
  """The configuration and the record of a chain that has not run."""
  configuration.load([str(_EVERYTHING)], [])
  (target / "config.gin").write_text(text := configuration.dry_run("run", run_dir=""))
  bound = set(re.findall(r"^(?:\w+/)?(\w+)\.\w+ =", text, re.MULTILINE))
  missing = configuration.constructors().keys() | {name for name, verb in CONFIGURED.items() if verb.has_run_dir}
  assert missing <= bound, f"{_EVERYTHING} leaves out {sorted(missing - bound)}"
  plan.Record(str(target)).begin(configuration.planned())


def finished(target: pathlib.Path) -> None:
  """The records of the chain of tests/smoke.gin."""
  with tempfile.TemporaryDirectory() as run_dir:
    call("run", "--gin_file=tests/smoke.gin", f"--run_dir={run_dir}")
    _keep(run_dir, target, _RECORDS)


def pack(directory: pathlib.Path, write_packed: Callable, seed: int = 0) -> None:
  """The dataset of `interrupted`, with seed 0: 32 sequences of 8 tokens that count up. `write_packed` is conftest's."""
  rng = np.random.default_rng(seed)
  sequences = [(leaf % 4, (leaf + np.arange(8)) % 15 + 1, np.ones(8, np.int32)) for leaf in rng.integers(0, 15, 32)]
  write_packed(directory, sequences, vocab_size=16, num_leaves=4, tree_fingerprint="feed")


def interrupted(target: pathlib.Path) -> None:
  """A training of a tiny model, told to end after three steps."""
  import conftest

  place, steps = loop.place_batch, []

  def place_and_end(*arguments):
    steps.append(1)
    if len(steps) == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return place(*arguments)

  with tempfile.TemporaryDirectory() as run_dir, mock.patch.object(loop, "place_batch", place_and_end):
    pack(pathlib.Path(run_dir) / "packed", conftest._write_packed)
    pathlib.Path(run_dir, "own.gin").write_text(_TRAINING)
    status = call("train", f"--gin_file={run_dir}/own.gin", f"--run_dir={run_dir}")
    assert status == os.EX_TEMPFAIL, status
    _keep(run_dir, target, (*_RECORDS, "checkpoints"))


def _keep(run_dir: str, target: pathlib.Path, names: Sequence[str]) -> None:
  """Copies files and directories of a run, without what says where it was made."""
  for name in names:
    copy = shutil.copytree if os.path.isdir(f"{run_dir}/{name}") else shutil.copy
    copy(f"{run_dir}/{name}", target / name)
  start = json.loads((target / "runs.jsonl").read_text())
  start |= {"host": "host", "directory": "/", "command": "hiermem", "commit": None, "dirty": None}
  (target / "runs.jsonl").write_text(json.dumps(start) + "\n")
  for note in target.rglob("commit_success.txt"):
    note.write_text("")
  for folder in target.rglob("ocdbt.process_0"):  # what orbax has copied from
    shutil.rmtree(folder)


def call(verb: str, *arguments: str) -> int:
  """Runs a verb; returns its status."""
  values = flags.FlagValues()
  cli.define(VERBS[verb], values)
  try:
    cli.run(VERBS[verb], cli.parse(VERBS[verb], [verb, *arguments], values), values)
  except SystemExit as stop:
    return stop.code
  return 0


if __name__ == "__main__":
  main(sys.argv[1])
