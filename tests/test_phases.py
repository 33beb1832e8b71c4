"""The phases: the paper's numbers as they are, and what each of them trains at toy size, through gin and the verbs."""

import pathlib

import gin
import jax
import numpy as np
import pytest

from hiermem_jax import configuration
from hiermem_jax.errors import InputError
from hiermem_jax.parallel import make_mesh
from hiermem_jax.training.checkpoint import load_model

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PHASES = {"anchor", "cotrain", "frozen", "joint", "subtree", "generic", "ratio_anchor", "ratio_memory"}
_LENGTH = 16


@pytest.mark.parametrize(
  # Paper, Appendix A: tokens, tokens a batch, peak and last learning rate, decay, share of the steps that warm up.
  "phase, tokens, batch_tokens, peak, last, decay, warmup",
  [
    ("anchor", 2**40, 2**20, 5e-3, 5e-5, 0.05, 10_000 / 2**20),
    ("frozen", 2**40, 2**21, 1e-4, 1e-5, 1e-3, 10_000 / 2**19),
    ("cotrain", 2**40, 2**21, 1e-4, 1e-5, 1e-3, 10_000 / 2**19),
    ("joint", 2**41, 2**21, 1e-3, 1e-5, 0.1, 10_000 / 2**20),
    ("subtree", 2**36, 2**21, 1e-4, 1e-5, 1e-3, 10_000 / 2**19),
    ("generic", 2**40 / 17, 2**21, 1e-4, 1e-5, 1e-3, 10_000 / 2**19),
    ("ratio_anchor", 2**38, 2**20, 1e-3, 1e-5, 0.1, 10_000 / 2**18),
    ("ratio_memory", 2**39, 2**21, 1e-4, 1e-4, 1e-3, 10_000 / 2**19),
  ],
)
def test_phases_have_the_papers_settings(phase, tokens, batch_tokens, peak, last, decay, warmup):
  length = 8192 if "anchor" in phase else 2048
  configuration.load([str(_ROOT / f"gin/phases/{phase}.gin")], ["PART = 3"] if phase == "subtree" else [])

  def bound(name):
    return gin.query_parameter(name)

  assert bound("train.batch_size") * length == batch_tokens
  assert bound("train.steps") == pytest.approx(tokens / batch_tokens, abs=1)
  rates = [bound(f"OptimizerConfig.{name}_learning_rate") for name in ("peak", "final")]
  assert [*rates, bound("OptimizerConfig.weight_decay")] == [peak, last, decay]
  assert bound("OptimizerConfig.warmup_steps") / bound("train.steps") == pytest.approx(warmup, rel=1e-3)
  assert (bound("OptimizerConfig.beta1"), bound("OptimizerConfig.beta2")) == (0.9, 0.95)
  assert bound("Objective.z_loss") == (1e-4 if "anchor" in phase else 0.0)


@pytest.fixture(scope="module")
def packed(write_packed, tmp_path_factory):
  """Sequences that count up, each leaf from another number; 4 leaves."""
  rng = np.random.default_rng(0)
  sequences = []
  for leaf in rng.integers(0, 4, 96):
    start = 100 * leaf + rng.integers(0, 50)
    sequences.append((leaf, start + np.arange(_LENGTH), np.ones(_LENGTH, np.int32)))
  directory = str(tmp_path_factory.mktemp("packed") / "train")
  return write_packed(directory, sequences, vocab_size=1000, num_leaves=4, tree_fingerprint="feed").directory


@pytest.fixture(scope="module")
def train(packed):
  """Runs the train verb on a phase at toy size; the run's model."""

  def run(phase, run_dir, *bindings, dataset=packed):
    files = [str(_ROOT / f"gin/phases/{name}.gin") for name in (phase, "toy")]
    configuration.load(files, [f"train.dataset = '{dataset}'", *bindings])
    configuration.call("train", run_dir=str(run_dir))
    return load_model(str(run_dir), make_mesh())

  return run


@pytest.fixture(scope="module")
def anchor(train, tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("anchor")
  return str(run_dir), train("anchor", run_dir)


def unequal(a, b):
  """Names of the arrays that differ."""
  pairs = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda x, y: bool((np.asarray(x) != y).any()), a, b))
  return {jax.tree_util.keystr(path, simple=True, separator="/") for path, differs in pairs if differs}


def test_anchor(anchor):
  assert anchor[1].memory is None and anchor[1].metadata["step"] == 40


@pytest.mark.slow
def test_anchor_by_dataset_decomposition(train, write_decomposed, tmp_path):
  rng = np.random.default_rng(0)
  buckets = {
    length: [(-1, start + np.arange(length), np.ones(length, np.int32)) for start in rng.integers(0, 900, 64)]
    for length in (8, 16)
  }
  dataset = write_decomposed(str(tmp_path / "set"), buckets, vocab_size=1000).directory
  assert train("anchor", tmp_path / "run", dataset=dataset).metadata["step"] == 40


@pytest.mark.parametrize("phase, moves", [("cotrain", True), ("frozen", False), ("ratio_memory", False)])
def test_phases_on_an_anchor(train, anchor, tmp_path, phase, moves):
  model = train(phase, tmp_path, f"train.init_from = '{anchor[0]}'")
  assert bool(unequal(model.params["anchor"], anchor[1].params["anchor"])) == moves
  for table in model.params["bank"].values():
    assert np.asarray(table).any(axis=1).all()
  third = np.asarray(model.params["bank"]["level_1"]).reshape(3, -1, 3, 64)[:, :, 2]
  assert (third != 0).any(axis=(1, 2)).all()  # M3 of every block, the generic one's too, has been trained


@pytest.mark.parametrize("phase", ["joint", "ratio_anchor"])
def test_phases_from_scratch(train, tmp_path, phase):
  model = train(phase, tmp_path)
  assert (model.memory is None) == (phase == "ratio_anchor")


def test_frozen_without_an_anchor_is_one_clear_line(train, tmp_path):
  with pytest.raises(InputError, match="Objective.frozen_anchor = True, train.init_from = None"):
    train("frozen", tmp_path)


def test_subtrees_and_the_generic_memory_are_trained_apart_and_merged(train, anchor, packed, tmp_path):
  start = f"train.init_from = '{anchor[0]}'"
  parts = [train("subtree", tmp_path / f"subtree_{part}", f"PART = {part}", start) for part in range(2)]
  generic = train("generic", tmp_path / "generic", start)
  configuration.load([], [])
  configuration.call("merge", run_dir=str(tmp_path))
  merged = load_model(str(tmp_path / "merged"), make_mesh())
  assert not unequal(merged.params["anchor"], anchor[1].params["anchor"])
  assert merged.memory.part == "all" and merged.memory.rows == (8, 8)
  for name, table in merged.params["bank"].items():
    rows = np.concatenate([*(part.params["bank"][name][:-1] for part in parts), generic.params["bank"][name][-1:]])
    np.testing.assert_array_equal(table, rows)
    assert (rows.reshape(len(rows), -1, 3, 64)[:, :, 2] != 0).any(axis=(1, 2)).all()  # every block was trained
  with pytest.raises(InputError, match="merged: has a checkpoint already"):
    configuration.call("merge", run_dir=str(tmp_path))


def test_every_phase_is_tested():
  parts = {"common", "chain", "toy"}  # that others include
  assert {path.stem for path in (_ROOT / "gin/phases").glob("*.gin")} == _PHASES | parts
