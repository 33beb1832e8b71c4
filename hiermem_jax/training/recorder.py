"""What the loop records: scalars of steps, the time that steps and waits take, and batches that had to be skipped."""

import collections
import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from absl import logging

from hiermem_jax import console
from hiermem_jax.parallel import distributed
from hiermem_jax.training.config import TrainingRun
from hiermem_jax.training.metrics import JsonlWriter, MetricWriter
from hiermem_jax.training.program import Scalars

_BEHIND = 8  # steps whose metrics may be unread, so that the device always has work while the loop goes on; or a call


class Recorder:
  """Reads the metrics of each step once the device has computed them, and writes those that are due.

  Besides the step's own metrics a line has `learning_rate` (also `learning_rate/PART`, where a part has its own) and,
  since the line before: `tokens_per_second`, `mfu` (model FLOPs utilisation, where the devices' peak is known),
  `data_wait`, `checkpoint_wait` and `validation_wait` (shares of the time), and `device_memory_gib` (the most that the
  first device has held, where it says so).
  """

  def __init__(
    self,
    run: TrainingRun,
    directory: str,
    writer: MetricWriter,
    start: int,
    *,
    peak_flops: float,
    batch_origin: Callable[[int], Any],
  ):
    """Starts the clock.

    Args:
      run: the run, which says how often a line is due: the first step, the last, and every `log_every` steps.
      directory: where skipped.jsonl goes.
      writer: of scalars.
      start: step the run starts at.
      peak_flops: of all devices together, per second; 0 where it is not known.
      batch_origin: from a step, counted from 0, to a JSON value that says which sequences its batch has.
    """
    self.progress = console.Progress("step", run.steps, start)
    self._run, self._writer, self._start = run, writer, start
    self._schedules = run.optimizer.schedules(run.steps, run.model.memory)
    self._peak, self._batch_origin = peak_flops, batch_origin
    self._skipped_path = os.path.join(directory, "skipped.jsonl")
    self._skipped_writer: JsonlWriter | None = None
    self._pending: collections.deque[tuple[int, Scalars, int]] = collections.deque()
    self._in_a_row = 0
    self._begin = self._since = time.monotonic()
    self._waits: dict[str, float] = {}
    self._total_waits: dict[str, float] = {}
    self._tokens, self._flops_done, self._total_tokens = 0.0, 0.0, 0.0
    self._scalars: dict[str, float] = {}

  @contextlib.contextmanager
  def waiting(self, what: str) -> Iterator[None]:
    """Adds the time that the `with` body takes to the waiting time for `what`."""
    start = time.monotonic()
    try:
      yield
    finally:
      self._waits[what] = self._waits.get(what, 0.0) + time.monotonic() - start

  def step(self, step: int, metrics: Scalars, length: int) -> None:
    """Takes the metrics of a call that was just dispatched, and reads those of earlier ones that are computed by now.

    Args:
      step: number of the call's last step, from 1.
      metrics: of its steps; reading them would wait for the device.
      length: tokens of a sequence.

    Raises:
      FloatingPointError: too many batches in a row were not finite.
    """
    self._pending.append((step, metrics, length))
    while len(self._pending) > max(_BEHIND // self._run.steps_per_call, 1) or (
      self._pending and _is_ready(self._pending[0][1])
    ):
      self._read(*self._pending.popleft())

  def drain(self) -> None:
    """Waits for the metrics of all steps so far, and reads them.

    Raises:
      FloatingPointError: too many batches in a row were not finite.
    """
    while self._pending:
      self._read(*self._pending.popleft())

  def _read(self, step: int, metrics: Scalars, length: int) -> None:
    rows = metrics.read()
    for number, values in enumerate(rows, step + 1 - len(rows)):
      self._read_step(number, values, length)

  def _read_step(self, step: int, values: dict[str, float], length: int) -> None:
    due = step % self._run.log_every == 0 or step in (self._start + 1, self._run.steps)
    self._tokens += values["tokens"]
    self._flops_done += values["tokens"] * self._run.flops_per_token(length)
    self.progress.update(step, f"loss {values['loss']:.2f}", amount=values["tokens"], of="tokens")
    finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
    if due:
      updates = step - 1 - int(values["skipped"])
      values |= {name: float(schedule(updates)) for name, schedule in self._schedules.items()}
      self._write_due(step, values)
    self._in_a_row = 0 if finite else self._in_a_row + 1
    if not finite:
      self._skip(step, values)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes scalars of a step at once, those that are numbers."""
    finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
    self._scalars |= finite
    self._writer.write_scalars(step, finite)

  def flush(self) -> None:
    """Makes everything written durable."""
    self._writer.flush()

  def summary(self) -> dict[str, float]:
    """The last step's scalars, but tokens and times since the run started or resumed; empty when it had no step."""
    if not self._scalars:
      return {}
    seconds = time.monotonic() - self._begin
    waits = {f"{name}_seconds": value for name, value in _sums(self._total_waits, self._waits).items()}
    rate = self._total_tokens / seconds
    return self._scalars | waits | {"tokens": self._total_tokens, "seconds": seconds, "mean_tokens_per_second": rate}

  def _write_due(self, step: int, values: dict[str, float]) -> None:
    now = time.monotonic()
    seconds, self._since = now - self._since, now
    values["tokens_per_second"] = self._tokens / seconds
    if self._peak:
      values["mfu"] = self._flops_done / seconds / self._peak
    values |= {f"{name}_wait": self._waits.get(name, 0.0) / seconds for name in ("data", "checkpoint", "validation")}
    if memory := (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"):
      values["device_memory_gib"] = memory / 2**30
    self._total_waits = _sums(self._total_waits, self._waits)
    self._total_tokens += self._tokens
    self._waits.clear()
    self._tokens = self._flops_done = 0.0
    self._scalars = {}
    self.write(step, values)
    logging.info("step %d: loss %.4f, %.0f tokens per second", step, values["loss"], values["tokens_per_second"])

  def _skip(self, step: int, values: Mapping[str, float]) -> None:
    """Writes a skipped batch to skipped.jsonl, and ends the run when there were too many in a row."""
    what = {name: repr(values[name]) for name in ("loss", "grad_norm")}
    batch = self._batch_origin(step - 1)
    logging.warning("step %d: skipped, loss %s, grad_norm %s; batch %s", step, *what.values(), json.dumps(batch)[:200])
    if distributed.is_first():
      if self._skipped_writer is None:
        self._skipped_writer = JsonlWriter(self._skipped_path, self._start)
      self._skipped_writer.write(step, what | {"batch": batch})
    if self._in_a_row >= self._run.max_skipped:
      raise FloatingPointError(
        f"{self._in_a_row} batches in a row gave a loss or gradient that is not finite, the last at step {step} (loss"
        f" {what['loss']}, grad_norm {what['grad_norm']}); {self._skipped_path} says where they come from; lower the"
        " learning rate, or mend the data"
      )


def _is_ready(scalars: Scalars) -> bool:
  """Whether the values are computed, so that reading them does not wait for the device."""
  values: Any = scalars.values  # whose annotation, jax.Array, leaves `is_ready` out
  return values.is_ready()


def _sums(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
  return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in {**first, **second}}
