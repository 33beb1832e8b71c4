r"""What the training loop adds to the training step: telemetry, checks and checkpoints, at their default settings.

  python experiments/benchmarks/loop_overhead.py [--quick] [--json] [--steps_per_call=5]

A toy co-training (the quickstart's sizes) runs through `loop.train` with the writers of the `train` verb: TensorBoard,
where it is installed, and metrics.jsonl. Every `--chunk` steps it pauses, the device comes to rest, and a bare loop
makes as many steps on the same batches: forward, backward and update in one jitted function that reports the loss
alone, without the check for finite numbers. `overhead` is the loop's time over the bare one's, less one; it includes
the checkpoint at the end and the wait until it is written. What is compiled or warmed up before the first chunk is in
neither.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
import tempfile
import time

import jax
from common import random_batch, require_positive, table

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.parallel import make_mesh, place_batch
from hiermem_jax.training.config import CheckpointConfig, Objective, TrainingRun
from hiermem_jax.training.loop import LoopData, train
from hiermem_jax.training.optimizer import OptimizerConfig
from hiermem_jax.training.program import make_program
from hiermem_jax.training.step import choose_generic, make_gradients, make_update
from hiermem_jax.training.writers import open_writers

ANCHOR = AnchorConfig(
  num_layers=2,
  width=64,
  num_heads=2,
  head_dim=32,
  mlp_width=256,
  tied_embeddings=True,
  vocab_size=1024,
  dtype="float32",
)
MEMORY = MemoryConfig(rows=(32, 96), branching=8)
OPTIMIZER = OptimizerConfig(peak_learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=2, weight_decay=1e-3)
BATCH, LENGTH, GENERIC = 16, 128, 0.25


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=int, default=1000)
  parser.add_argument("--chunk", type=int, default=25, help="steps between turns")
  parser.add_argument("--checkpoint_every", type=int, default=1000)
  parser.add_argument("--log_every", type=int, default=50)
  parser.add_argument("--steps_per_call", type=int, default=1)
  parser.add_argument("--quick", action="store_true", help="300 steps")
  parser.add_argument("--json", action="store_true", help="print JSON")
  flags = parser.parse_args(argv)
  require_positive(flags, "steps", "chunk", "checkpoint_every", "log_every", "steps_per_call")
  if flags.quick:
    flags.steps = min(flags.steps, 300)
  if flags.steps % flags.chunk or flags.steps < 2 * flags.chunk:
    raise InputError(f"--steps={flags.steps}: give a multiple of --chunk={flags.chunk}, at least twice")
  if flags.chunk % flags.steps_per_call:
    raise InputError(f"--steps_per_call={flags.steps_per_call}: give a divisor of --chunk={flags.chunk}")
  return flags


def training_run(steps: int) -> TrainingRun:
  """The run that both sides train."""
  model, objective = ModelConfig(anchor=ANCHOR, memory=MEMORY), Objective(generic_probability=GENERIC)
  return TrainingRun(model=model, optimizer=OPTIMIZER, steps=steps, batch_size=BATCH, objective=objective)


class BareLoop:
  """The step alone, again and again."""

  def __init__(self, mesh, batches, steps: int):
    run = training_run(steps)
    program = make_program(run, mesh)
    gradients = make_gradients(run.model, mesh, objective=run.objective)
    update = make_update(run.transformation())

    def step(state, batch, key):
      generic_key, rounding_key = jax.random.split(jax.random.fold_in(key, state.step))
      leaf = choose_generic(generic_key, batch["memory_leaf"], MEMORY, GENERIC)
      grads, losses = gradients(state.params, leaf, batch)
      return update(state, grads, rounding_key)[0], losses.mean

    self._step = jax.jit(step, donate_argnums=0)
    self._mesh, self._batches = mesh, itertools.cycle(batches)
    self._state, self._key = program.init(jax.random.key(0)), program.replicate(jax.random.key(1))

  def run(self, steps: int) -> float:
    """Seconds of some steps."""
    start = time.perf_counter()
    for _ in range(steps):
      self._state, loss = self._step(self._state, place_batch(next(self._batches), self._mesh), self._key)
    jax.block_until_ready((self._state, loss))
    return time.perf_counter() - start


class Turns:
  """A hook of the loop that gives the bare loop its turns, and keeps both times."""

  def __init__(self, bare: BareLoop, chunk: int):
    self._bare, self._chunk = bare, chunk
    self.loop_seconds, self.bare_seconds, self.bare_steps = 0.0, 0.0, 0
    self._since: float | None = None

  def __call__(self, step: int) -> None:
    """After a step."""
    if step % self._chunk:
      return
    for array in jax.live_arrays():  # the step that has just been started
      array.block_until_ready()
    if self._since is not None:
      self.loop_seconds += time.perf_counter() - self._since
      self.bare_seconds += self._bare.run(self._chunk)
      self.bare_steps += self._chunk
    else:
      self._bare.run(self._chunk)  # warms up
    self._since = time.perf_counter()

  def finish(self) -> None:
    """After the loop: what came after the last step counts as well."""
    self.loop_seconds += time.perf_counter() - self._since


def measure(flags: argparse.Namespace) -> dict:
  """Times both."""
  mesh = make_mesh()
  batches = [random_batch(BATCH, LENGTH, ANCHOR.vocab_size, MEMORY.num_leaves, seed) for seed in range(20)]
  turns = Turns(BareLoop(mesh, batches, flags.steps), flags.chunk)
  with tempfile.TemporaryDirectory() as directory:
    open_writer = open_writers(directory)
    run = dataclasses.replace(
      training_run(flags.steps),
      checkpoints=CheckpointConfig(every=flags.checkpoint_every),
      log_every=flags.log_every,
      steps_per_call=flags.steps_per_call,
    )
    data = LoopData(batches=lambda start: itertools.cycle(batches))
    _, scalars = train(run, os.path.join(directory, "run"), data, mesh, open_writer=open_writer, hooks=[turns])
    turns.finish()
  return {
    "steps": turns.bare_steps,
    "steps_per_call": flags.steps_per_call,
    "loop_ms": 1e3 * turns.loop_seconds / turns.bare_steps,
    "bare_ms": 1e3 * turns.bare_seconds / turns.bare_steps,
    "overhead": turns.loop_seconds / turns.bare_seconds - 1,
    "checkpoint_seconds": scalars.get("checkpoint_seconds", 0.0),
  }


def main(argv: list[str]) -> int:
  """Prints the report."""
  try:
    flags = parse(argv)
    report = measure(flags)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(json.dumps(report) if flags.json else table(list(report), [report]))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
