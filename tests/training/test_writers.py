"""What TensorBoard and Weights & Biases are given."""

import dataclasses
import functools
import sys
import types

import jax
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.training import writers
from hiermem_jax.training.config import TrainingRun
from hiermem_jax.training.optimizer import OptimizerConfig


@pytest.fixture
def run():
  size = {"num_layers": 1, "width": 16, "num_heads": 2, "head_dim": 8, "mlp_width": 24}
  model = ModelConfig(anchor=AnchorConfig(vocab_size=30, **size), memory=MemoryConfig(rows=(3, 2), branching=2))
  optimizer = OptimizerConfig(peak_learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=1, weight_decay=0.0)
  return TrainingRun(model=model, optimizer=optimizer, steps=20, batch_size=4)


@pytest.fixture
def shown(run):
  return writers.Shown(hparams=writers.flattened(run), tokens_per_step=4 * 32, wandb_project="memories")


@pytest.fixture
def wandb(monkeypatch):
  """A module that keeps what it is given. As the real one, it gives an open run again unless told to finish it."""
  module = types.ModuleType("wandb")
  module.opened, module.logged, module.logged_to, module.active = [], [], [], None

  def log(name, values, step):
    module.logged.append((step, values))
    module.logged_to.append(name)

  def init(*, reinit="return_previous", **arguments):
    module.opened.append(arguments)
    if module.active is None or reinit == "finish_previous":
      module.active = types.SimpleNamespace(log=functools.partial(log, arguments["id"]))
    return module.active

  module.init = init
  monkeypatch.setitem(sys.modules, "wandb", module)
  return module


def test_settings_by_name(run):
  found = writers.flattened(run)
  assert found["optimizer.peak_learning_rate"] == 1e-3 and found["model.anchor.width"] == 16
  assert found["model.memory.rows"] == "(3, 2)" and found["init_from"] == "None" and found["steps"] == 20
  without = dataclasses.replace(run, model=dataclasses.replace(run.model, memory=None))
  assert writers.flattened(without)["model.memory"] == "None"
  assert all(isinstance(value, bool | int | float | str) for value in found.values())


def _events(directory):
  """Tag -> (step, value) of all scalars, and the names of the hparams."""
  tf = pytest.importorskip("tensorflow")
  hparams = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
  scalars, names = {}, set()
  for path in directory.glob("events*"):
    for record in tf.compat.v1.io.tf_record_iterator(str(path)):
      event = tf.compat.v1.Event.FromString(record)
      for value in event.summary.value:
        if value.metadata.plugin_data.plugin_name == "hparams":
          content = hparams.HParamsPluginData.FromString(value.metadata.plugin_data.content)
          names |= set(content.session_start_info.hparams)
        elif value.HasField("tensor"):
          scalars.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
  return scalars, names


def test_tensorboard_has_hparams_and_losses_by_tokens(tmp_path, shown):
  open_writer = writers.open_writers(str(tmp_path), dataclasses.replace(shown, wandb_project=None))
  writer = open_writer(0)
  writer.write_scalars(1, {"loss": 3.0, "grad_norm": 1.0})
  writer.write_scalars(2, {"loss": 2.0, "loss/validation": 2.5})
  writer.flush()
  scalars, names = _events(tmp_path)
  assert scalars["loss"] == [(1, 3.0), (2, 2.0)] and scalars["grad_norm"] == [(1, 1.0)]
  assert scalars["over_tokens/loss"] == [(128, 3.0), (256, 2.0)]
  assert scalars["over_tokens/loss/validation"] == [(256, 2.5)] and "over_tokens/grad_norm" not in scalars
  assert names == set(shown.hparams)
  lines = (tmp_path / "metrics.jsonl").read_text()
  assert lines == '{"step": 1, "loss": 3.0, "grad_norm": 1.0}\n{"step": 2, "loss": 2.0, "loss/validation": 2.5}\n'


def test_wandb_gets_settings_and_tokens_and_goes_on_in_the_same_run(tmp_path, shown, wandb):
  for step in (1, 2):  # a start and a resumption
    writers.open_writers(str(tmp_path), shown)(step - 1).write_scalars(step, {"loss": 3.0})
  first, second = wandb.opened
  assert first == second and (first["project"], first["resume"], first["dir"]) == ("memories", "allow", str(tmp_path))
  assert first["config"] == shown.hparams and first["id"] == (tmp_path / "wandb_id").read_text()
  assert wandb.logged == [(1, {"loss": 3.0, "tokens_seen": 128}), (2, {"loss": 3.0, "tokens_seen": 256})]


def test_every_training_of_a_chain_is_a_run_of_its_own_at_wandb(tmp_path, shown, wandb):
  for name in ("anchor", "cotrain"):
    (tmp_path / name).mkdir()
    writers.open_writers(str(tmp_path / name), shown)(0).write_scalars(1, {"loss": 3.0})
  names = [(tmp_path / name / "wandb_id").read_text() for name in ("anchor", "cotrain")]
  assert wandb.logged_to == names and len(set(names)) == 2


def test_wandb_is_imported_for_a_project_only(tmp_path, shown, wandb):
  writers.open_writers(str(tmp_path), dataclasses.replace(shown, wandb_project=None))(0)
  assert wandb.opened == [] and not (tmp_path / "wandb_id").exists()


def test_failures_of_wandb(tmp_path, shown, wandb, monkeypatch):
  writer = writers.open_writers(str(tmp_path), shown)(0)
  monkeypatch.setattr(wandb, "logged", None)
  writer.write_scalars(1, {"loss": 3.0})  # training goes on
  assert "3.0" in (tmp_path / "metrics.jsonl").read_text()

  def fail(**_):
    raise RuntimeError("api_key not configured")

  monkeypatch.setattr(wandb, "init", fail)
  with pytest.raises(InputError, match="'memories': api_key not configured; wandb login, set WANDB_MODE=offline"):
    writers.open_writers(str(tmp_path), shown)(0)
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(InputError, match=r"not installed; pip install 'hiermem_jax\[wandb\]', or bind None"):
    writers.open_writers(str(tmp_path), shown)


@pytest.mark.parametrize(
  "start, traced",
  [(0, (3, 5)), (1, (3, 5)), (2, (4, 5)), (3, (5, 5)), (4, ()), (8, ())],
)
def test_a_run_that_resumes_between_the_profiled_steps_records_what_is_left(tmp_path, monkeypatch, start, traced):
  """Steps 3 to 5. A trace cannot begin before the first step of a run, which is compiled in it."""
  calls = []
  monkeypatch.setattr("jax.profiler.start_trace", lambda directory: calls.append(step + 1))
  monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append(step))
  profiler = writers.Profiler(str(tmp_path), 3, 5)
  for step in range(start + 1, 9):
    profiler(step)
  assert tuple(calls) == traced


@pytest.mark.parametrize("window, traced", [((2, 5), (10, 20)), ((11, 20), (10, 20)), ((12, 31), (20, 40))])
def test_of_calls_of_several_steps_whole_ones_are_recorded(tmp_path, monkeypatch, window, traced):
  """The hook is called for all ten steps of a call after the call."""
  calls = []
  monkeypatch.setattr("jax.profiler.start_trace", lambda directory: calls.append(done))
  monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append(done))
  profiler = writers.Profiler(str(tmp_path), *window, 10)
  for done in range(10, 60, 10):
    for step in range(done - 9, done + 1):
      profiler(step)
  assert tuple(calls) == traced


def _profiled_steps(directory):
  """Numbers of the annotated steps in the profile that was written."""
  (path,) = directory.rglob("*.xplane.pb")
  events = [
    event
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes
    for line in plane.lines
    for event in line.events
  ]
  return [dict(event.stats)["step_num"] for event in events if event.name == "train"]


def test_a_run_that_ends_between_the_profiled_steps_and_goes_on_there_writes_both_profiles(tmp_path, toy):
  """Steps 4 to 9 of 12. It ends before step 7 and goes on at its checkpoint, step 4."""

  def until_killed(start):
    for step in range(start + 1, 7):
      yield toy.random_batch(step)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt), writers.Profiler(str(tmp_path / "first"), 4, 9) as profiler:
    toy.run(tmp_path, batches=until_killed, hooks=[profiler])
  with writers.Profiler(str(tmp_path / "second"), 4, 9) as profiler:
    toy.run(tmp_path, hooks=[profiler])
  assert _profiled_steps(tmp_path / "first") == [4, 5, 6]
  assert _profiled_steps(tmp_path / "second") == [6, 7, 8, 9]  # a trace cannot begin before a run's first step
