"""What happens to a run when something breaks: bad batches, SIGTERM, damaged checkpoints, a place that takes no more."""

import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from hiermem_jax import files
from hiermem_jax.errors import InputError, Preempted
from hiermem_jax.training import loop
from hiermem_jax.training.checkpoint import (
  CheckpointReader,
  CheckpointStore,
  DamagedCheckpointError,
  UnreadableCheckpointError,
  load_model,
)
from hiermem_jax.training.digest import digest
from hiermem_jax.training.metrics import Lenient
from hiermem_jax.training.validation import BestModel


def poisoned(toy, *steps):
  """The batches, those of some steps without a single token, whose mean loss is not a number."""

  def batches(start):
    for step, batch in enumerate(toy.batches(start), start + 1):
      yield batch | ({"decoder_loss_weights": np.zeros((6, 5), np.float32)} if step in steps else {})

  return batches


@pytest.mark.parametrize("bank_update", ["dense", "lazy"])
def test_a_batch_that_is_not_finite_changes_nothing(toy, tmp_path, bank_update):
  """As if it had not been there: the next batch finds the same parameters, moments and learning rate."""
  optimizer = dataclasses.replace(toy.optimizer, bank_update=bank_update)

  def without(start):
    return (toy.random_batch(step) for step in range(start + 1, 13) if step != 5)

  common = {"optimizer": optimizer, "generic_probability": 0.0, "every": 100}
  state, scalars = toy.run(
    tmp_path / "poisoned", **common, batches=poisoned(toy, 5), origin=lambda step: {"position": step}
  )
  assert int(state.skipped) == scalars["skipped"] == 1 and int(state.step) == 12
  with pytest.raises(InputError, match="ended after step 11"):
    toy.run(tmp_path / "without", **common, batches=without)
  lines, shifted = (toy.metrics(tmp_path / name) for name in ("poisoned", "without"))
  assert "loss" not in lines.pop(4)
  for name in ("loss", "grad_norm", "learning_rate", "update_norm/level_2"):
    assert [line[name] for line in lines] == [line[name] for line in shifted]
  (noted,) = map(json.loads, (tmp_path / "poisoned/skipped.jsonl").read_text().splitlines())
  assert noted == {"step": 5, "loss": "nan", "grad_norm": "nan", "batch": {"position": 4}}


def test_too_many_in_a_row_end_the_run(toy, tmp_path):
  bad = poisoned(toy, 2, 6, 7, 8)
  with pytest.raises(FloatingPointError, match=r"3 batches in a row .* at step 8 \(loss nan.*skipped.jsonl says where"):
    toy.run(tmp_path, batches=bad, max_skipped=3, log_every=100)
  lines = [json.loads(line)["step"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
  assert lines == [2, 6, 7, 8]
  store = CheckpointStore(str(tmp_path))
  assert store.latest_step == 4
  store.close()
  with pytest.raises(FloatingPointError, match="at step 8"):  # resumes at 4, and does not note step 2 or 6 again
    toy.run(tmp_path, batches=bad, max_skipped=3, log_every=100)
  assert [json.loads(line)["step"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()] == lines


def test_sigterm_saves_and_the_run_goes_on_as_if_nothing_had_been(toy, whole, tmp_path):
  def notice(step):
    if step == 6:
      os.kill(os.getpid(), signal.SIGTERM)

  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(Preempted, match="after step 6 of 12; the same command goes on"):
    toy.run(tmp_path, hooks=[notice])
  assert signal.getsignal(signal.SIGTERM) is before
  starts = []

  def batches(start):
    starts.append(start)
    return toy.batches(start)

  state, _ = toy.run(tmp_path, batches=batches)
  assert starts == [6]
  toy.assert_equal(state, whole[1])
  assert toy.metrics(tmp_path) == toy.metrics(whole[0])


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


@pytest.fixture
def copy(whole, tmp_path):
  """A copy of the finished run, with checkpoints at 8 and 12."""
  shutil.copytree(whole[0], tmp_path / "copy")
  return tmp_path / "copy"


@pytest.mark.parametrize("damage", [flip, truncate, pathlib.Path.unlink])
def test_no_damage_to_any_file_goes_unnoticed(toy, whole, copy, damage):
  """A file of a checkpoint is damaged, each in turn: that is found, or it does not matter (e.g. a time of writing)."""
  found = set()
  for path in [path for path in (copy / "checkpoints/12").rglob("*") if path.is_file() and path.stat().st_size]:
    content = path.read_bytes()
    damage(path)
    try:
      toy.assert_equal(CheckpointReader(str(copy)).restore(whole[1]), whole[1])
    except DamagedCheckpointError as error:
      assert "checkpoints/12 is damaged (" in str(error)
      found.add(path.relative_to(copy / "checkpoints/12").parts[0])
    path.write_bytes(content)
  assert found >= {"anchor", "bank", "optimizer", "metadata"}


def damage_item(directory):
  for path in directory.rglob("*"):
    if path.is_file() and path.stat().st_size:
      flip(path)


@pytest.mark.parametrize("item", ["anchor", "bank", "optimizer", "metadata"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used_on_request(toy, whole, copy, item):
  damage_item(copy / "checkpoints/12" / item)
  with pytest.raises(InputError, match=r"checkpoints/12 is damaged .*--skip_damaged_checkpoints"):
    toy.run(copy)
  if item in ("anchor", "bank"):
    with pytest.raises(DamagedCheckpointError, match=r"checkpoints/12 is damaged"):
      load_model(str(copy), toy.mesh)
  state, _ = toy.run(copy, skip_damaged=True)
  toy.assert_equal(state, whole[1])
  assert (copy / "damaged/12").is_dir() and (copy / "checkpoints/12").is_dir()
  assert toy.metrics(copy) == toy.metrics(whole[0])


@pytest.mark.parametrize(
  "error",
  [
    TimeoutError("the server does not answer"),
    OSError(errno.ESTALE, "Stale file handle"),
    MemoryError("no room"),
    ValueError("UNAVAILABLE: Error reading local file: connection refused"),
    RuntimeError("event loop is closed"),
  ],
)
def test_what_is_no_damage_is_named_and_nothing_is_set_aside(toy, copy, monkeypatch, error):
  """Neither is it called damage, nor does a run that may skip damaged checkpoints take another one."""
  tries = []

  def restore(self, *args, **kwargs):
    tries.append(args)
    raise error

  monkeypatch.setattr(files, "_RETRY_PAUSES", (0.0, 0.0))
  monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
  with pytest.raises(UnreadableCheckpointError, match=r"checkpoints/12 could not be read \(item metadata, ") as caught:
    toy.run(copy, skip_damaged=True)
  assert type(error).__name__ in str(caught.value) and str(error) in str(caught.value)
  assert "\n" not in str(caught.value) and "skip_damaged" not in str(caught.value)
  assert len(tries) == 3 and not (copy / "damaged").exists()


def test_what_passes_is_tried_again(toy, whole, copy, monkeypatch):
  restore, left = ocp.Checkpointer.restore, [2]

  def failing(self, *args, **kwargs):
    left[0] -= 1
    if left[0] >= 0:
      raise OSError(errno.EIO, "Input/output error")
    return restore(self, *args, **kwargs)

  monkeypatch.setattr(files, "_RETRY_PAUSES", (0.0, 0.0))
  monkeypatch.setattr(ocp.Checkpointer, "restore", failing)
  toy.assert_equal(CheckpointReader(str(copy)).restore(whole[1]), whole[1])


def test_a_first_save_that_cannot_be_read_back_ends_the_run(toy, tmp_path, monkeypatch):
  """A place that takes everything and keeps it wrong, as orbax does in a directory whose name it reads as a pattern."""
  monkeypatch.setattr(files, "refuse_pattern", lambda path: None)
  with pytest.raises(
    DamagedCheckpointError, match=r"checkpoints/4 is damaged .* as soon as it has been saved.*another"
  ):
    toy.run(tmp_path / "run [1]")


@pytest.mark.parametrize("name", ["a[b", "a]b", "a*b", "a?b", "a\\b"])
def test_a_directory_that_orbax_takes_for_a_pattern_is_refused(toy, tmp_path, name):
  with pytest.raises(InputError, match=r"has . in its path, and what is saved there could not be read back"):
    toy.run(tmp_path / name / "run")
  assert not (tmp_path / name).exists()


def test_a_damaged_best_model_is_set_aside(toy, whole, tmp_path):
  """It only says how good the best was; the run goes on, and the next best takes its place."""
  best = BestModel(str(tmp_path), {"name": "toy"})
  best.offer(4, whole[1].params, 0.5)
  best.close()
  assert BestModel(str(tmp_path), {}).loss == 0.5
  damage_item(tmp_path / "best/checkpoints/4/metadata")
  assert BestModel(str(tmp_path), {}).loss == float("inf")
  assert (tmp_path / "best/damaged/4").is_dir()


def test_one_save_at_a_time(toy, whole, tmp_path, monkeypatch):
  """A save of any store waits for that of any other."""
  stores = [CheckpointStore(str(tmp_path / name)) for name in ("a", "b")]
  for store in stores:
    store.save_model(1, whole[1].params, {})
  busy, save = [], ocp.CheckpointManager.save

  def saving(self, *args, **kwargs):
    busy.append(any(other._saving is not None for other in stores))
    return save(self, *args, **kwargs)

  monkeypatch.setattr(ocp.CheckpointManager, "save", saving)
  for step in (2, 3):
    for store in stores:
      store.save_model(step, whole[1].params, {})
  for store in stores:
    store.close()
    assert store.latest_step == 3
  assert busy == [False] * 4


def test_when_every_checkpoint_is_damaged_nothing_starts_over(toy, copy):
  for step in (8, 12):
    damage_item(copy / f"checkpoints/{step}/bank")
  with pytest.raises(InputError, match="every checkpoint is damaged; restore one, or delete .*damaged and start again"):
    toy.run(copy, skip_damaged=True)


def test_a_half_written_checkpoint_is_not_restored(toy, whole, copy):
  """What a kill leaves: orbax's directory without its final name, and a final name is given last."""
  (copy / "checkpoints/12").rename(copy / "checkpoints/12.orbax-checkpoint-tmp")
  state, _ = toy.run(copy)
  toy.assert_equal(state, whole[1])
  assert not (copy / "checkpoints/12.orbax-checkpoint-tmp").exists()


def test_a_reader_leaves_what_the_run_is_writing(toy, whole, copy):
  (copy / "checkpoints/12").rename(copy / "checkpoints/12.orbax-checkpoint-tmp")
  assert load_model(str(copy), toy.mesh).metadata["step"] == 8
  assert any((copy / "checkpoints/12.orbax-checkpoint-tmp").iterdir())


def test_training_goes_on_where_nothing_can_be_written(toy, whole, tmp_path, monkeypatch):
  """Saves fail from step 8 on; the last one succeeds at the second try."""
  save, failures = ocp.CheckpointManager.save, []

  def failing(self, step, **kwargs):
    if step > 4 and len(failures) < 2:
      failures.append(step)
      raise OSError(28, "No space left on device")
    return save(self, step, **kwargs)

  monkeypatch.setattr(ocp.CheckpointManager, "save", failing)
  monkeypatch.setattr(loop, "_LAST_SAVE_PAUSE", 0.0)
  state, scalars = toy.run(tmp_path)
  assert failures == [8, 12] and scalars["failed_checkpoints"] == 2
  toy.assert_equal(state, whole[1])
  assert sorted(int(entry.name) for entry in (tmp_path / "checkpoints").iterdir()) == [4, 12]


def test_a_last_checkpoint_that_cannot_be_saved_is_an_error_and_the_good_one_stays(toy, whole, tmp_path, monkeypatch):
  save = ocp.CheckpointManager.save

  def failing(self, step, **kwargs):
    if step > 4:
      raise OSError(28, "No space left on device")
    return save(self, step, **kwargs)

  monkeypatch.setattr(loop, "_LAST_SAVE_PAUSE", 0.0)
  with monkeypatch.context() as patch:
    patch.setattr(ocp.CheckpointManager, "save", failing)
    with pytest.raises(OSError, match="the last step, 12, could not be saved, the newest good checkpoint is of step 4"):
      toy.run(tmp_path)
  state, _ = toy.run(tmp_path)
  toy.assert_equal(state, whole[1])


def test_scalars_that_cannot_be_written_do_not_end_a_run(toy, tmp_path):
  class Full:
    def write_scalars(self, step, scalars):
      raise OSError(28, "No space left on device")

    flush = write_scalars

  state, _ = toy.run(tmp_path, open_writer=lambda start: Lenient(Full()))
  assert int(state.step) == 12


def test_retention(toy, tmp_path):
  toy.run(tmp_path, every=1, keep=3, keep_every=4)
  assert sorted(int(entry.name) for entry in (tmp_path / "checkpoints").iterdir()) == [4, 8, 10, 11, 12]


def test_digest_sees_every_bit_and_place():
  rng = np.random.default_rng(0)
  tree = {
    "a": jnp.asarray(rng.standard_normal((5, 7)), jnp.float32),
    "b": jnp.asarray(rng.standard_normal(6), jnp.bfloat16),
    "c": jnp.int32(3),
    "d": jnp.zeros((2, 2)),
  }
  seen = {digest(tree)}

  def changed(name, value):
    seen.add(digest(tree | {name: value}))

  for bit in range(32):
    bits = np.asarray(tree["a"]).view(np.uint32).copy()
    bits[3, 4] ^= np.uint32(1) << bit
    changed("a", jnp.asarray(bits.view(np.float32)))
  for bit in range(16):
    bits = np.asarray(tree["b"]).view(np.uint16).copy()
    bits[2] ^= np.uint16(1 << bit)
    changed("b", jnp.asarray(bits.view(jnp.bfloat16)))
  changed("a", tree["a"][::-1])
  changed("a", tree["a"][:, ::-1])
  changed("c", jnp.int32(4))
  changed("d", -tree["d"])
  changed("d", tree["d"].reshape(4))
  assert len(seen) == 1 + 32 + 16 + 5
  assert digest(jax.tree.map(jnp.copy, tree)) == digest(tree)


def test_digest_by_hand():
  """In Python's integers, with murmur3's finalizer as its author wrote it down: checkpoints of all versions hold it."""

  def mix(x):
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)

  values = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
  total = 0
  for row, line in enumerate(values.view(np.uint32).tolist()):
    for column, bits in enumerate(line):
      total += mix(mix(bits) ^ mix((mix(row + 1) + column + 1) & 0xFFFFFFFF))
  expected = hashlib.sha256((total & 0xFFFFFFFF).to_bytes(4, "little")).hexdigest()[:8]
  assert digest({"a": jnp.asarray(values)}) == expected
