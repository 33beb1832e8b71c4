"""The training loop: batches in, checkpoints and scalars out."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from hiermem_jax.errors import InputError, Preempted
from hiermem_jax.models.config import AnchorConfig, MemoryConfig
from hiermem_jax.parallel import MeshConfig, place_batch
from hiermem_jax.parallel.mesh import ALL_DEVICES
from hiermem_jax.pod.peaks import peak_flops
from hiermem_jax.training.checkpoint import CheckpointStore, describe_model
from hiermem_jax.training.metrics import MetricWriter
from hiermem_jax.training.optimizer import OptimizerConfig
from hiermem_jax.training.preemption import preemption_notice
from hiermem_jax.training.program import make_program
from hiermem_jax.training.recorder import Recorder, training_flops
from hiermem_jax.training.start import load_start, resume
from hiermem_jax.training.state import TrainState
from hiermem_jax.training.validation import BestModel, Validation, make_validation_loss

Batches = Callable[[int], Iterator[Mapping[str, np.ndarray]]]
_LAST_SAVE_TRIES, _LAST_SAVE_PAUSE = 3, 10.0  # seconds


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
  init_bank_from: str | None = None,
  frozen_anchor: bool = False,
  generic_probability: float = 1 / 17,
  z_loss: float = 0.0,
  validation: Validation | None = None,
  describe_batch: Callable[[int], Any] = lambda step: None,
  checkpoint_every: int = 1000,
  keep_checkpoints: int = 2,
  keep_every: int | None = None,
  skip_damaged_checkpoints: bool = False,
  max_skipped: int = 10,
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
    init_bank_from: the same for the bank; levels that it lacks start afresh.
    frozen_anchor: train the bank alone; the anchor stays as it is, bit for bit.
    generic_probability: chance that a sequence trains the generic memory instead of its own path (paper: 1/17).
    z_loss: coefficient of the squared mean log-partition; 1e-4 in anchor pretraining, 0 with memory.
    validation: held-out loss, measured on the way; the best model is kept in `RUN_DIR/best`.
    describe_batch: from a step, counted from 0, to a JSON value that tells where its batch comes from.
    checkpoint_every: steps between checkpoints; the last step always has one.
    keep_checkpoints: how many of the newest are kept.
    keep_every: steps; checkpoints at multiples of it are kept for good.
    skip_damaged_checkpoints: set a damaged checkpoint aside and resume from the one before.
    max_skipped: batches in a row with a loss or gradient that is not finite, after which the run ends. Each is skipped,
      and noted in `RUN_DIR/skipped.jsonl`.
    log_every: steps between scalars.
    seed: of initialisation and of the choice of generic sequences.

  Returns:
    The final state and the scalars of the last step (empty when there was nothing left to do), with the whole run's
    `seconds`, `checkpoint_seconds` (that it waited), `data_wait` (share of its time) and `failed_checkpoints`.

  Raises:
    InputError: `init_from` has no checkpoint or another anchor; `run_dir` has checkpoints of another model, tree or
      tokenizer, or a damaged one; the mesh does not divide the batch or the model; or the batches end early.
    FloatingPointError: too many batches in a row gave a loss or gradient that is not finite.
    OSError: the last checkpoint could not be written.
    Preempted: SIGTERM came; everything is saved.
  """
  if frozen_anchor and (memory is None or init_from is None):
    name, value = ("memory", memory) if memory is None else ("init_from", init_from)
    raise InputError(
      f"train.frozen_anchor = True, train.{name} = {value}: a frozen anchor comes from another run and has a bank to"
      f" train; bind train.{name}"
    )
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
    frozen_anchor=frozen_anchor,
  )
  init_key, step_key = jax.random.split(jax.random.key(seed))
  metadata = describe_model(anchor, memory) | dict(metadata)
  store = CheckpointStore(run_dir, keep_checkpoints, keep_every)
  start = store.latest_step or 0
  if start:  # every check comes before the bank is created
    state = resume(store, run_dir, metadata, program.abstract_state, skip_damaged_checkpoints)
    start = int(state.step)
    logging.info("%s: resuming at step %d of %d", run_dir, start, steps)
  else:
    fits = {"anchor": anchor, "memory": memory, "metadata": metadata, "mesh": mesh, "rules": mesh_config.rules}
    initial = load_start(init_from, init_bank_from, **fits)
    state = program.init(init_key)
    state = state.replace(params={name: tree | initial.get(name, {}) for name, tree in state.params.items()})
  step_key = program.replicate(step_key)
  recorder = Recorder(
    open_writer(start),
    start,
    run_dir=run_dir,
    schedule=optimizer.schedule(steps),
    flops_per_token=training_flops(anchor, memory, frozen_anchor=frozen_anchor),
    peak_flops=(peak_flops(mesh.local_devices[0]) or 0) * mesh.size,
    describe_batch=describe_batch,
    max_skipped=max_skipped,
    log_every=log_every,
    last=steps,
  )
  if validation:
    validation_loss = make_validation_loss(validation, anchor, memory, mesh, mesh_config.rules)
    best = BestModel(run_dir, metadata)

  step, stream = start, batches(start)
  with preemption_notice() as ends_at:
    try:
      while step < steps:
        if ends_at(step):
          recorder.settle()
          if step > (store.latest_step or 0):
            store.save(state, metadata)
          store.wait()
          recorder.flush()
          raise Preempted(f"{run_dir}: ended by SIGTERM after step {step} of {steps}; the same command goes on")
        with recorder.waiting("data"):
          batch = next(stream, None)
        if batch is None:
          recorder.settle()
          raise InputError(
            f"{run_dir}: the batches ended after step {step} of {steps}; give more data or bind fewer steps"
          )
        step += 1
        state, metrics = program.step(state, place_batch(batch, mesh), step_key)
        recorder.step(step, metrics, batch["decoder_target_tokens"].shape[1])
        for hook in hooks:
          hook(step)
        if validation and (step % validation.every == 0 or step == steps):
          recorder.settle()
          with recorder.waiting("validation"):
            loss = validation_loss(state.params)
            best.offer(step, state.params, loss)
          recorder.write(step, {"loss/validation": loss})
        if step % checkpoint_every == 0 or step == steps:
          recorder.settle()  # a run that resumes from this checkpoint does not see these steps again
          with recorder.waiting("checkpoint"):
            store.save(state, metadata)
      recorder.settle()
      _require_last(store, state, metadata, run_dir)
    except BaseException:
      # Of several processes one may be gone, for which a save would wait for minutes.
      if not jax.distributed.is_initialized():
        store.close()
      raise
  if validation:
    best.close()
  store.close()
  recorder.flush()
  summary = recorder.summary()
  return state, summary and summary | {"skipped": int(state.skipped), "failed_checkpoints": store.failed}


def _require_last(store: CheckpointStore, state: TrainState, metadata: Mapping[str, Any], run_dir: str) -> None:
  """Waits until the last step is saved, and tries again when that failed.

  Raises:
    OSError: it failed each time.
  """
  for _ in range(_LAST_SAVE_TRIES):
    store.wait()
    if store.latest_step == int(state.step):
      return
    logging.warning("the last checkpoint is missing; trying again in %.0f s", _LAST_SAVE_PAUSE)
    time.sleep(_LAST_SAVE_PAUSE)
    store.save(state, dict(metadata))
  store.wait()
  if (held := store.latest_step) != int(state.step):
    raise OSError(
      f"{run_dir}: the last step, {int(state.step)}, could not be saved, the newest good checkpoint is of step {held};"
      " make room, or make the place reachable, and run the same command again"
    )
