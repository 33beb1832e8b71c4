"""The training loop: batches in, checkpoints and scalars out."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, MemoryConfig
from hiermem_jax.parallel import MeshConfig, place_batch
from hiermem_jax.parallel.mesh import ALL_DEVICES, Rules
from hiermem_jax.training.checkpoint import CheckpointStore, describe_model, load_model
from hiermem_jax.training.metrics import MetricWriter
from hiermem_jax.training.optimizer import OptimizerConfig
from hiermem_jax.training.program import make_program
from hiermem_jax.training.state import TrainState

Batches = Callable[[int], Iterator[Mapping[str, np.ndarray]]]


def _same_parameters(config: AnchorConfig, other: AnchorConfig) -> bool:
  """Whether parameters of one configuration mean the same under the other, which may compute in another way."""
  how = {name: getattr(other, name) for name in ("dtype", "remat", "attention", "logits_chunk")}
  return dataclasses.replace(config, **how) == other


def _load_anchor(source: str, anchor: AnchorConfig, mesh: Mesh, rules: Rules):
  """The anchor's parameters from another run's newest checkpoint."""
  model = load_model(source, mesh, rules, bank=False)
  if not _same_parameters(model.anchor, anchor):
    raise InputError(f"{source}: its anchor is {model.anchor}, this run's is {anchor}; bind the same values")
  return model.params["anchor"]


def _check_resumable(run_dir: str, stored: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
  """Raises InputError when the checkpoints of `run_dir` are not of the run that `metadata` describes."""
  for name, value in metadata.items():
    held = stored.get(name)
    if name == "anchor":
      same = _same_parameters(AnchorConfig(**held), AnchorConfig(**value))
    else:
      same = json.dumps(held) == json.dumps(value)
    if not same:
      raise InputError(
        f"{run_dir}: its checkpoints have {name} {held}, this run has {value}; bind the same or use another directory"
      )


def train(
  *,
  run_dir: str,
  anchor: AnchorConfig,
  memory: MemoryConfig | None,
  optimizer: OptimizerConfig,
  batches: Batches,
  steps: int,
  batch_size: int,
  mesh: Mesh,
  metadata: Mapping[str, Any],
  open_writer: Callable[[int], MetricWriter],
  mesh_config: MeshConfig = ALL_DEVICES,
  hooks: Sequence[Callable[[int], None]] = (),
  init_from: str | None = None,
  generic_probability: float = 1 / 17,
  z_loss: float = 0.0,
  checkpoint_every: int = 1000,
  log_every: int = 50,
  seed: int = 0,
) -> tuple[TrainState, dict[str, float]]:
  """Trains for `steps` steps, or for what is left of them when `run_dir` holds checkpoints of this run.

  Args:
    run_dir: where `checkpoints/` is kept. A run resumes from its newest checkpoint and then sees exactly the batches
      and random numbers that it would have seen.
    anchor: the anchor's configuration.
    memory: the bank's, or None to train the anchor alone.
    optimizer: one setting for anchor and bank.
    batches: from a step to an iterator, which starts there, of what this process feeds of each batch (the contract of
      the data room; `parallel.local_rows` says which rows).
    steps: length of the run, which also sets the learning-rate schedule.
    batch_size: sequences of a global batch.
    mesh: devices to train on.
    metadata: JSON values kept with each checkpoint, e.g. fingerprints of the tree and the tokenizer.
    open_writer: from the step the run starts at to the writer of its scalars.
    mesh_config: rules of the layout on the mesh.
    hooks: called with the step after every step.
    init_from: run directory whose newest anchor starts this run, with a fresh optimizer. Ignored when resuming.
    generic_probability: chance that a sequence trains the generic memory instead of its own path (paper: 1/17).
    z_loss: coefficient of the squared mean log-partition; 1e-4 in anchor pretraining, 0 with memory.
    checkpoint_every: steps between checkpoints; the last step always has one.
    log_every: steps between scalars.
    seed: of initialisation and of the choice of generic sequences.

  Returns:
    The final state and the scalars of the last step (empty when there was nothing left to do).

  Raises:
    InputError: `init_from` has no checkpoint or another anchor; `run_dir` has checkpoints of another model, tree or
      tokenizer; the mesh does not divide the batch or the model; or the batches end early.
    FloatingPointError: the loss or its gradient is no longer finite.
  """
  program = make_program(
    anchor=anchor,
    memory=memory,
    optimizer=optimizer,
    steps=steps,
    batch_size=batch_size,
    mesh_config=mesh_config,
    mesh=mesh,
    generic_probability=generic_probability,
    z_loss=z_loss,
  )
  init_key, step_key = jax.random.split(jax.random.key(seed))
  metadata = describe_model(anchor, memory) | dict(metadata)
  store = CheckpointStore(run_dir)
  start = store.latest_step or 0
  if start:  # every check comes before the bank is created
    _check_resumable(run_dir, store.metadata(), metadata)
    state = store.restore(program.abstract_state)
    logging.info("%s: resuming at step %d of %d", run_dir, start, steps)
  else:
    initial = None if init_from is None else _load_anchor(init_from, anchor, mesh, mesh_config.rules)
    state = program.init(init_key)
    if initial is not None:
      state = state.replace(params=state.params | {"anchor": initial})
  step_key = program.replicate(step_key)
  schedule = optimizer.schedule(steps)
  writer = open_writer(start)

  scalars: dict[str, float] = {}
  pending, clock = None, (start, time.monotonic())
  step = start
  try:
    for step, batch in zip(range(start + 1, steps + 1), batches(start)):
      state, metrics = program.step(state, place_batch(batch, mesh), step_key)
      if pending:  # read one step late, so that the device is already busy with the next one
        scalars, clock = _write(writer, *pending, clock)
        pending = None
      if step % log_every == 0 or step in (start + 1, steps):
        pending = (step, metrics | {"learning_rate": schedule(step - 1)})
      for hook in hooks:
        hook(step)
      if step % checkpoint_every == 0 or step == steps:
        if pending:  # now, because a run that resumes from this checkpoint does not see the step again
          scalars, clock = _write(writer, *pending, clock)
          pending = None
        _require_finite(step, metrics)
        store.save(state, metadata)
  finally:
    store.close()  # also when the run is stopped: waits for the checkpoint that is being written
  writer.flush()
  if step < steps:
    raise InputError(f"{run_dir}: the batches ended after step {step} of {steps}; give more data or bind fewer steps")
  return state, scalars


def _require_finite(step: int, metrics: Mapping[str, jax.Array]) -> None:
  """Raises when the step ruined the state, which then must not replace a good checkpoint."""
  for name in ("loss", "grad_norm"):
    if not np.isfinite(value := float(metrics[name])):
      raise FloatingPointError(f"step {step}: {name} is {value}; lower the learning rate")


def _write(
  writer: MetricWriter, step: int, metrics: Mapping[str, jax.Array], clock: tuple[int, float]
) -> tuple[dict[str, float], tuple[int, float]]:
  """Writes one step's scalars, with the throughput since the (step, time) of `clock`; returns them and a new clock."""
  _require_finite(step, metrics)
  scalars = {name: float(value) for name, value in metrics.items()}
  now = time.monotonic()
  scalars["tokens_per_second"] = scalars["tokens"] * (step - clock[0]) / (now - clock[1])
  writer.write_scalars(step, scalars)
  logging.info("step %d: loss %.4f, %.0f tokens per second", step, scalars["loss"], scalars["tokens_per_second"])
  return scalars, (step, now)
