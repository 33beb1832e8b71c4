"""The training loop: batches in, checkpoints and scalars out."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from hiermem_jax import console
from hiermem_jax.errors import InputError, Preempted
from hiermem_jax.parallel import place_batch
from hiermem_jax.pod.peaks import peak_flops
from hiermem_jax.training.checkpoint import CheckpointStore
from hiermem_jax.training.config import TrainingRun
from hiermem_jax.training.metrics import MetricWriter, NoWriter
from hiermem_jax.training.preemption import preemption_notice
from hiermem_jax.training.program import make_program
from hiermem_jax.training.recorder import Recorder
from hiermem_jax.training.start import Start, resume
from hiermem_jax.training.state import TrainState
from hiermem_jax.training.validation import LOSS, BestModel, HeldOut, make_validation_losses, measured_modes

_LAST_SAVE_TRIES, _LAST_SAVE_PAUSE = 3, 10.0  # seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopData:
  """What a loop trains on.

  Attributes:
    batches: from a step, counted from 0, to an iterator that starts there. It gives, of each global batch, the
      sequences that this process feeds to its devices (`parallel.local_sequences`).
    origin: from a step to a JSON value that says which sequences its batch has.
    held_out: text whose losses are measured during training; the best model by one of them is kept in `DIRECTORY/best`.
    metadata: JSON values kept with each checkpoint, e.g. fingerprints of the tree and the tokenizer.
    tokens_per_step: positions of a global batch, padding included; 0 where it is not known.
  """

  batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]]
  origin: Callable[[int], Any] = lambda step: None
  held_out: HeldOut | None = None
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  tokens_per_step: int = 0


def train(
  run: TrainingRun,
  directory: str,
  data: LoopData,
  mesh: Mesh,
  *,
  open_writer: Callable[[int], MetricWriter],
  hooks: Sequence[Callable[[int], None]] = (),
) -> tuple[TrainState, dict[str, float]]:
  """Trains for `run.steps` steps, or for the remaining ones where `directory` holds checkpoints of this run.

  A run resumes from its newest checkpoint. It then sees exactly the batches and random numbers that it would have seen.

  Args:
    run: the run; `init_from` and `init_bank_from` are paths as they are.
    directory: where `checkpoints/` and `skipped.jsonl` are kept.
    data: what it trains on.
    mesh: devices to train on.
    open_writer: from the step that the run starts at to the writer of its scalars.
    hooks: called with the step after every step; of several steps of one call, after the last.

  Returns:
    The final state and the scalars of the last step (empty when no step remained), with the whole run's `seconds`,
    `checkpoint_seconds` (that it waited), `data_wait` (share of its time) and `failed_checkpoints`.

  Raises:
    InputError: `init_from` has no checkpoint or another anchor; `directory` has checkpoints of another model, tree or
      tokenizer, or a damaged one; the mesh does not divide the batch or the model; or the batches end early.
    FloatingPointError: too many batches in a row gave a loss or gradient that is not finite.
    OSError: the last checkpoint could not be written.
    Preempted: SIGTERM or SIGINT came; everything is saved.
  """
  model, steps = run.model, run.steps
  run.check()
  program = make_program(run, mesh)
  init_key, step_key = jax.random.split(jax.random.key(run.seed))
  metadata = model.to_json() | dict(data.metadata)
  store = CheckpointStore(directory, run.checkpoints.keep, run.checkpoints.keep_every)
  start = store.latest_step or 0
  if start:  # every check comes before the bank is created
    state = resume(store, directory, metadata, program.abstract_state, run.checkpoints.skip_damaged)
    start = int(state.step)
    console.say("resuming at step %d of %d", start, steps)
  else:
    fits: dict[str, Any] = {"model": model, "metadata": metadata, "mesh": mesh, "rules": run.mesh.rules}
    initial = Start(run.init_from, run.init_bank_from, **fits)
    state = program.init(init_key)
    state = dataclasses.replace(state, params=initial.take(state.params))
  step_key = program.replicate(step_key)
  peak = (peak_flops(mesh.local_devices[0]) or 0) * mesh.size
  writer = open_writer(start) if start < steps else NoWriter()  # a finished run has nothing to write
  recorder = Recorder(run, directory, writer, start, peak_flops=peak, batch_origin=data.origin)
  if data.held_out:
    validation_losses = make_validation_losses(data.held_out, model, mesh, run.mesh.rules)
    best = BestModel(directory, metadata, measured_modes(data.held_out.modes, model.memory)[-1])

  step, stream = start, data.batches(start)
  with preemption_notice() as ends_at, recorder.progress:
    try:
      while step < steps:
        if ends_at(step):
          recorder.drain()
          store.wait()
          if step > (store.latest_step or 0):
            store.save(state, metadata)
          store.wait()
          recorder.flush()
          raise Preempted(f"{directory}: told to end after step {step} of {steps}; the same command goes on")
        count = _steps_of_call(step, run, data.held_out)
        with recorder.waiting("data"):
          batches = list(itertools.islice(stream, count))
        if len(batches) < count:
          recorder.drain()
          raise InputError(
            f"{directory}: the batches ended after step {step + len(batches)} of {steps}; give more data or bind fewer"
            " steps"
          )
        for call in _calls(batches):
          placed = [place_batch(batch, mesh) for batch in call]
          with jax.profiler.StepTraceAnnotation("train", step_num=step + len(call)):
            if len(placed) == 1:
              state, metrics = program.step(state, placed[0], step_key)
            else:
              state, metrics = program.steps(state, placed, step_key)
          step += len(call)
          recorder.step(step, metrics, call[0]["decoder_target_tokens"].shape[1])
        for hook in hooks:
          for number in range(step + 1 - count, step + 1):
            hook(number)
        if data.held_out and (step % data.held_out.every == 0 or step == steps):
          recorder.drain()
          with recorder.waiting("validation"):
            losses = validation_losses(state.params)
            best.offer(step, state.params, losses[LOSS])
          recorder.write(step, losses)
        if step % run.checkpoints.every == 0 or step == steps:
          recorder.drain()  # a run that resumes from this checkpoint does not see these steps again
          with recorder.waiting("checkpoint"):
            store.save(state, metadata)
      recorder.drain()
      _require_last(store, state, metadata, directory)
    except BaseException:
      # Of several processes one may be gone, for which a save would wait for minutes.
      if not jax.distributed.is_initialized():
        store.close()
      raise
  if data.held_out:
    best.close()
  store.close()
  recorder.flush()
  summary = recorder.summary()
  return state, summary and summary | {"skipped": int(state.skipped), "failed_checkpoints": store.failed}


def _steps_of_call(step: int, run: TrainingRun, held_out: HeldOut | None) -> int:
  """How many steps are made at once after `step`.

  It follows from the numbers of the steps alone, so that a run that resumes groups them as the first one did.
  """
  ends = [run.steps_per_call, run.checkpoints.every, *([held_out.every] if held_out else [])]
  until = min(run.steps - step, *(end - step % end for end in ends))
  return until if step % run.steps_per_call == 0 and until == run.steps_per_call else 1


def _calls(batches: list[Mapping[str, np.ndarray]]) -> list[list[Mapping[str, np.ndarray]]]:
  """Batches of one shape together; those of several lengths one by one."""
  shapes = {batch["decoder_target_tokens"].shape for batch in batches}
  return [batches] if len(shapes) == 1 else [[batch] for batch in batches]


def _require_last(store: CheckpointStore, state: TrainState, metadata: Mapping[str, Any], directory: str) -> None:
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
      f"{directory}: the last step, {int(state.step)}, could not be saved, the newest good checkpoint is of step"
      f" {held}; make room, or make the place reachable, and run the same command again"
    )
