"""Checkpoints that are read table by table: the values of a whole load, one table at a time, and damage is found."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermem_jax.models import MemoryConfig, ModelConfig
from hiermem_jax.models.model import init_params
from hiermem_jax.training import checkpoint
from hiermem_jax.training.checkpoint import CheckpointStore, DamagedCheckpointError, load_model
from hiermem_jax.training.checkpoint_reader import CheckpointReader
from hiermem_jax.training.merge import merge_parts
from hiermem_jax.training.program import Program
from hiermem_jax.training.stored_model import StoredModel, load_model_as

# Rows of 120 and 24 numbers.
MEMORY = MemoryConfig(rows=(5, 1), branching=2)
WHOLE = {"level_1": (3, 120), "level_2": (5, 24)}
PART = {"level_1": (2, 120), "level_2": (3, 24)}


def save(toy, directory, memory, seed):
  """Writes a checkpoint of random tables beside the anchor of every other one of them; its parameters."""
  config = ModelConfig(anchor=toy.anchor, memory=memory)
  params = nn.unbox(init_params(jax.random.key(0), config))
  rng = np.random.default_rng(seed)
  for name, table in params.get("bank", {}).items():
    params["bank"][name] = jnp.asarray(rng.standard_normal(table.shape), jnp.float32)
  store = CheckpointStore(str(directory))
  store.save_model(seed, params, config.to_json() | {"tree_fingerprint": "feed", "tokenizer_fingerprint": "cafe"})
  store.close()
  return jax.tree.map(np.array, params)  # copies: a view would keep the arrays alive


@pytest.fixture
def live(monkeypatch):
  """After each read of a bank, or of a table of it, and each new state: how many arrays are alive, by shape and type.

  Arrays that earlier tests have left are not counted.
  """
  seen, earlier = [], jax.live_arrays()
  known = set(map(id, earlier))

  def note_after(owner, name):
    real = getattr(owner, name)

    def call(*args):
      result = real(*args)
      if name == "_read" and "bank" not in args:
        return result
      counts = {}
      for array in (array for array in jax.live_arrays() if id(array) not in known):
        key = (array.shape, array.dtype.name)
        counts[key] = counts.get(key, 0) + 1
      seen.append(counts)
      return result

    monkeypatch.setattr(owner, name, call)

  note_after(CheckpointReader, "_read")
  note_after(Program, "init")
  yield seen
  del earlier  # until here, so that no other array gets the identity of one of them


def most(live, *shapes, dtype="float32"):
  """The largest number of arrays of some shapes that were alive together."""
  return max(sum(counts.get((shape, dtype), 0) for shape in shapes) for counts in live)


def test_parts_are_merged_with_one_table_of_them_at_a_time(toy, tmp_path, live):
  """Without a job for the generic rows they are the first part's; test_regimes.py has one."""
  parts = [save(toy, tmp_path / str(part), dataclasses.replace(MEMORY, part=part), part + 1) for part in range(2)]
  live.clear()
  merge_parts([str(tmp_path / "1"), str(tmp_path / "0")], None, str(tmp_path / "merged"), toy.mesh, toy.rules)
  assert most(live, *PART.values()) == most(live, WHOLE["level_1"]) == most(live, WHOLE["level_2"]) == 1
  merged = load_model(str(tmp_path / "merged"), toy.mesh)
  assert merged.memory == MEMORY and merged.metadata["step"] == 2
  toy.assert_equal(merged.params["anchor"], parts[0]["anchor"])
  for name, table in merged.params["bank"].items():
    expected = [*(part["bank"][name][:-1] for part in parts), parts[0]["bank"][name][-1:]]
    np.testing.assert_array_equal(table, np.concatenate(expected))


def test_a_bank_of_another_run_takes_the_place_of_the_first_one(toy, tmp_path, live):
  """Of each table there are its weights and two moments, and no second copy while it is replaced."""
  expected = save(toy, tmp_path / "source", MEMORY, 1)
  live.clear()
  optimizer = dataclasses.replace(toy.optimizer, peak_learning_rate=1e-30, final_learning_rate=1e-30, warmup_steps=0)
  source = {"init_bank_from": str(tmp_path / "source"), "init_from": str(tmp_path / "source")}
  state, _ = toy.run(tmp_path / "run", memory=MEMORY, steps=1, optimizer=optimizer, **source)
  assert most(live, WHOLE["level_1"]) == most(live, WHOLE["level_2"]) == 3
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-28), state.params, expected)


def test_a_bank_in_another_type(toy, tmp_path, live):
  """Rounded to the nearest, with one table of the stored type at a time; what the model is says so."""
  expected = save(toy, tmp_path, MEMORY, 1)
  live.clear()
  model = load_model_as("bfloat16", str(tmp_path), toy.mesh)
  assert most(live, *WHOLE.values()) == 1
  assert model.memory == dataclasses.replace(MEMORY, dtype="bfloat16") and model.metadata["step"] == 1
  toy.assert_equal(model.params["anchor"], expected["anchor"])
  for name, table in expected["bank"].items():
    found = model.params["bank"][name]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), table, rtol=2.0**-8)
  same = load_model_as("float32", str(tmp_path), toy.mesh)
  toy.assert_equal(same.params, expected)
  stored = StoredModel(str(tmp_path), toy.mesh)
  assert stored.tables == ("level_1", "level_2") and stored.config.memory == MEMORY


def test_a_model_without_a_bank_has_no_type_of_it(toy, tmp_path):
  save(toy, tmp_path, None, 1)
  model = load_model_as("bfloat16", str(tmp_path), toy.mesh)
  assert model.memory is None
  toy.assert_equal(model.params, load_model(str(tmp_path), toy.mesh).params)


def test_a_table_that_is_not_what_was_saved_is_found(toy, tmp_path, monkeypatch):
  """Once all tables have been read; nothing is written or trained."""
  real = checkpoint.array_digests

  def others(tree):
    return real(tree) if "embed" in tree else dict.fromkeys(real(tree), "00000000")

  for part in range(2):
    with monkeypatch.context() as patch:
      if part == 1:
        patch.setattr(checkpoint, "array_digests", others)
      save(toy, tmp_path / str(part), dataclasses.replace(MEMORY, part=part), 1)
  sources, bad = [str(tmp_path / str(part)) for part in range(2)], str(tmp_path / "1")
  with pytest.raises(
    DamagedCheckpointError, match=r"1/checkpoints/1 is damaged \(item bank, array level_1, is not what was saved\)"
  ):
    merge_parts(sources, None, str(tmp_path / "merged"), toy.mesh, toy.rules)
  assert CheckpointStore(str(tmp_path / "merged")).latest_step is None
  with pytest.raises(DamagedCheckpointError, match="item bank, array level_1, is not what was saved"):
    load_model_as("bfloat16", bad, toy.mesh)
  with pytest.raises(DamagedCheckpointError, match="item bank, array level_1, is not what was saved"):
    toy.run(tmp_path / "run", memory=dataclasses.replace(MEMORY, part=1), init_bank_from=bad, steps=3)
  assert CheckpointStore(str(tmp_path / "run")).latest_step is None
