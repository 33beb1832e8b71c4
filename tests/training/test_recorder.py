"""Scalars that need a clock: rates, shares of waiting and FLOPs utilisation, by hand under a clock that is set by hand."""

import types

import jax
import pytest

from hiermem_jax.models import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.training import OptimizerConfig
from hiermem_jax.training.config import TrainingRun
from hiermem_jax.training.program import Scalars
from hiermem_jax.training.recorder import Recorder

RUN = TrainingRun(
  model=ModelConfig(
    anchor=AnchorConfig(num_layers=1, width=8, num_heads=1, head_dim=4, mlp_width=8, vocab_size=13),
    memory=MemoryConfig(rows=(2,), branching=2),
  ),
  optimizer=OptimizerConfig(peak_learning_rate=0.1, final_learning_rate=0.1, warmup_steps=4, weight_decay=0.0),
  steps=10,
  batch_size=6,
  log_every=4,
  max_skipped=3,
)
LENGTH, TOKENS, PEAK = 5, 30.0, 1e4


class Lines(dict):
  """A writer that keeps what it is given."""

  def write_scalars(self, step, scalars):
    self[step] = dict(scalars)

  flushed = 0

  def flush(self):
    self.flushed += 1


@pytest.fixture
def clock(monkeypatch):
  """The time, which nothing but the test moves."""
  now = types.SimpleNamespace(seconds=100.0)
  monkeypatch.setattr("time.monotonic", lambda: now.seconds)
  memory = types.SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 3 * 2**30, "bytes_in_use": 2**30})
  monkeypatch.setattr(jax, "local_devices", lambda: [memory])
  return now


def record(clock, directory, losses, start=2, peak=PEAK):
  """Steps of 2 s each, of which 0.5 s are waited for data; a checkpoint of 1 s after step 5."""
  lines = Lines()
  recorder = Recorder(RUN, str(directory), lines, start, peak_flops=peak, batch_origin=lambda step: step)
  skipped = 0
  for step, loss in enumerate(losses, start + 1):
    with recorder.waiting("data"):
      clock.seconds += 0.5
    clock.seconds += 1.5
    skipped += loss != loss
    recorder.step(step, Scalars.pack({"loss": loss, "tokens": TOKENS, "grad_norm": 1.0, "skipped": skipped}), LENGTH)
    recorder.drain()
    if step == 5:
      with recorder.waiting("checkpoint"):
        clock.seconds += 1.0
  return lines, recorder


def test_lines_of_a_resumed_run(clock, tmp_path):
  """A line for the first step, for every fourth, and for the last."""
  lines, recorder = record(clock, tmp_path, [2.0] * 8)
  assert list(lines) == [3, 4, 8, 10]
  flops = RUN.flops_per_token(LENGTH)
  for step, steps, seconds, checkpoint in ((3, 1, 2.0, 0.0), (4, 1, 2.0, 0.0), (8, 4, 9.0, 1.0), (10, 2, 4.0, 0.0)):
    found = lines[step]
    assert found["tokens_per_second"] == pytest.approx(steps * TOKENS / seconds)
    assert found["mfu"] == pytest.approx(steps * TOKENS * flops / seconds / PEAK)
    assert found["data_wait"] == pytest.approx(steps * 0.5 / seconds)
    assert found["checkpoint_wait"] == pytest.approx(checkpoint / seconds)
    assert found["validation_wait"] == 0
    assert found["device_memory_gib"] == 3
  summary = recorder.summary()
  assert summary["data_seconds"] == pytest.approx(8 * 0.5) and summary["checkpoint_seconds"] == pytest.approx(1)
  assert summary["seconds"] == pytest.approx(17) and summary["mean_tokens_per_second"] == pytest.approx(8 * 30 / 17)
  assert summary["loss"] == 2.0


def test_what_is_written_is_made_durable_when_asked(clock, tmp_path):
  lines, recorder = record(clock, tmp_path, [2.0])
  assert not lines.flushed
  recorder.flush()
  assert lines.flushed == 1


def test_unknown_peak_gives_no_utilisation(clock, tmp_path):
  lines, _ = record(clock, tmp_path, [2.0], peak=0)
  assert "mfu" not in lines[3]


def test_the_learning_rate_follows_the_updates_that_were_made(clock, tmp_path):
  """Warmup of four steps to 0.1: the fourth step, before which one was skipped, has the rate of the third."""
  lines, _ = record(clock, tmp_path, [2.0, float("nan"), 2.0, 2.0], start=0)
  assert [lines[step]["learning_rate"] for step in (1, 4)] == pytest.approx([0.025, 0.075])


def test_skipped_batches_count_only_in_a_row(clock, tmp_path):
  nan = float("nan")
  record(clock, tmp_path, [nan, nan, 2.0, nan, nan, 2.0])
  with pytest.raises(FloatingPointError, match="3 batches in a row .* the last at step 6"):
    record(clock, tmp_path, [2.0, nan, nan, nan])
