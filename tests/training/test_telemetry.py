"""What a run says about itself: scalars against brute force, held-out loss and the best model, FLOPs and peaks."""

import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermem_jax.data.packed.decomposition import DecomposedDataset
from hiermem_jax.errors import InputError
from hiermem_jax.models import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.bank import RowGradient
from hiermem_jax.models.losses import anchor_losses
from hiermem_jax.pod.peaks import peak_flops
from hiermem_jax.train import train
from hiermem_jax.training.checkpoint import CheckpointReader, load_model
from hiermem_jax.training.config import Objective, TrainingRun, ValidationConfig
from hiermem_jax.training.telemetry import Losses, step_scalars
from hiermem_jax.training.validation import BestModel, HeldOut, measured_modes


def test_losses_are_split_by_memory_and_by_level_1_cluster():
  memory = MemoryConfig(rows=(2, 1), branching=3)
  leaf = np.array([0, 2, 3, 9, 9, 8, -1])  # clusters 0, 0, 1, generic twice, 2, no memory
  sums, tokens = np.array([4.0, 6, 9, 10, 20, 3, 100]), np.array([2.0, 3, 3, 5, 5, 1, 7])
  losses = Losses(sums.sum() / tokens.sum(), tokens.sum(), sums, tokens)
  rows = {"level_1": RowGradient(np.array([0, 1, 2, 3]), np.full((4, 2), 2.0)),
          "level_2": RowGradient(np.array([0, 2, 3, 8, 9, 10, 11]), np.ones((7, 1)))}  # fmt: skip
  grads = {"anchor": {"w": np.array([3.0, 4.0])}, "bank": rows}
  updates = {
    "anchor": {"w": np.array([0.6, 0.8])},
    "bank": {"level_1": np.full((5, 9), 0.5), "level_2": rows["level_2"]},
  }
  leaf, losses, grads, updates = jax.tree.map(jnp.asarray, (leaf, losses, grads, updates))
  found = {name: float(value) for name, value in step_scalars(memory, leaf, losses, grads, updates).items()}
  assert found == pytest.approx({
    "loss/generic": 3.0,
    "loss/fetched": 22 / 9,
    "loss/cluster_00": 2.0,
    "loss/cluster_01": 3.0,
    "loss/cluster_02": 3.0,
    "grad_norm/anchor": 5.0,
    "grad_norm/level_1": 32**0.5,
    "grad_norm/level_2": 7**0.5,
    "update_norm/anchor": 1.0,
    "update_norm/level_1": 3.0,
    "update_norm/level_2": 7**0.5,
    "touched/level_1": 1.0,  # all three clusters
    "touched/level_2": 4 / 9,  # rows 0, 2, 3 and 8; 9 is generic, the others are past the end
  })  # fmt: skip
  assert step_scalars(None, leaf, losses, grads, updates) == {}


def test_scalars_of_a_run_add_up(toy, whole):
  lines = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
  for line in lines:
    parts = [line[f"grad_norm/{name}"] ** 2 for name in ("anchor", "level_1", "level_2")]
    assert sum(parts) ** 0.5 == pytest.approx(line["grad_norm"], rel=1e-5)
    batch = toy.random_batch(line["step"])
    assert line["touched/level_2"] <= len(set(batch["memory_leaf"].tolist())) / 4
    losses = [value for name, value in line.items() if name in ("loss/generic", "loss/fetched")]
    assert min(losses) - 1e-5 <= line["loss"] <= max(losses) + 1e-5
    assert 0 <= line["data_wait"] <= 1 and line["tokens_per_second"] > 0
  summary = whole[2]
  assert summary["failed_checkpoints"] == summary["skipped"] == 0
  assert 0 < summary["checkpoint_seconds"] < summary["seconds"] and summary["mean_tokens_per_second"] > 0


def test_flops_of_training_are_three_forward_passes_less_what_a_frozen_anchor_saves(toy):
  anchor = AnchorConfig(num_layers=2, width=8, num_heads=2, head_dim=4, mlp_width=16, vocab_size=32)
  memory = MemoryConfig(rows=(4,), branching=2)
  forward, block = anchor.flops_per_token(64), 2 * 2 * 4 * 3 * 8  # 2 FLOPs a parameter, 2 layers of 4 neurons

  def flops(memory, frozen_anchor):
    model, objective = ModelConfig(anchor=anchor, memory=memory), Objective(frozen_anchor=frozen_anchor)
    run = TrainingRun(model=model, optimizer=toy.optimizer, steps=8, batch_size=4, objective=objective)
    return run.flops_per_token(64)

  assert flops(None, False) == 3 * forward
  assert flops(memory, False) == 3 * (forward + block)
  assert flops(memory, True) == 2 * forward + 3 * block


@pytest.mark.parametrize(
  "kind, peak",
  [
    ("TPU v5 lite", 197e12),
    ("TPU v4", 275e12),
    ("TPU7x", 2307e12 / 2),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("cpu", None),
    ("NVIDIA GeForce RTX 2080", None),
  ],
)
def test_peaks_of_known_devices(kind, peak):
  assert peak_flops(types.SimpleNamespace(device_kind=kind)) == peak


def test_held_out_loss_and_the_best_model(toy, tmp_path):
  """The loss is that of the plain forward pass; the best model is kept, and a resumed run does not forget it."""
  held_out = [toy.random_batch(step) for step in (101, 102)]
  held_out[1]["decoder_loss_weights"][3:] = 0
  passes = []
  validation = HeldOut(lambda: passes.append("main") or held_out, every=3, modes=("generic", "none", "fetched"))
  other = {"other": lambda: passes.append("other") or held_out[1:]}
  state, _ = toy.run(tmp_path, held_out=validation._replace(others=other), every=6)
  lines = [line for line in toy.metrics(tmp_path) if "loss/validation" in line]
  losses = {line["step"]: line["loss/validation"] for line in lines}
  assert list(losses) == [3, 6, 9, 12]
  assert passes == ["main", "other"] * 4  # one pass over the text, whatever the modes

  @jax.jit
  def loss(params, batch):
    block = toy.fetch(params["bank"], batch["memory_leaf"], toy.model, toy.mesh)
    values, _ = anchor_losses(toy.anchor, params["anchor"], batch, block)
    return (values * batch["decoder_loss_weights"]).sum()

  def expected(params, batches=held_out, **changes):
    tokens = sum(batch["decoder_loss_weights"].sum() for batch in batches)
    return sum(float(loss(params, batch | changes)) for batch in batches) / tokens

  assert losses[12] == pytest.approx(expected(state.params), rel=1e-5)
  for mode, changes in (
    ("fetched", {}),
    ("generic", {"memory_leaf": np.full(6, 4)}),
    ("none", {"memory_leaf": np.full(6, -1)}),
  ):
    for name, batches in (("main", held_out), ("other", held_out[1:])):
      found = lines[-1].pop(f"loss/validation/{name}/{mode}")
      assert found == pytest.approx(expected(state.params, batches, **changes), rel=1e-5)
  assert lines[-1].keys() == {"step", "loss/validation"}
  best = min(losses, key=losses.get)
  model = load_model(str(tmp_path / "best"), toy.mesh)
  assert model.metadata["step"] == best and model.metadata["validation_loss"] == pytest.approx(losses[best])
  assert expected(model.params) == pytest.approx(losses[best], rel=1e-5)
  # A worse model later, from a resumed run, does not replace it.
  worse = validation._replace(batches=lambda: [toy.random_batch(500) | {"memory_leaf": np.full(6, -1)}])
  toy.run(tmp_path, held_out=worse, steps=12)
  model = load_model(str(tmp_path / "best"), toy.mesh)
  assert model.metadata["step"] == best
  assert (model.metadata["validation_set"], model.metadata["validation_mode"]) == ("main", "fetched")


def test_modes_that_a_model_has_the_memory_for(toy):
  modes = ("none", "generic", "fetched")
  assert measured_modes(modes, None) == measured_modes(("fetched",), None) == ("none",)
  assert measured_modes(modes, toy.memory) == modes
  assert measured_modes(("fetched", "none"), toy.memory) == ("fetched", "none")
  alone = dataclasses.replace(toy.memory, part="generic")
  assert measured_modes(modes, alone) == ("none", "generic")
  assert measured_modes(("fetched",), alone) == ("generic",)
  assert measured_modes(("generic", "none", "fetched"), alone) == ("none", "generic")  # the last one decides


def test_a_best_model_by_another_mode_does_not_stand_in_the_way(toy, whole, tmp_path):
  params, metadata = whole[1].params, toy.model.to_json()
  best = BestModel(str(tmp_path), metadata, "fetched")
  best.offer(1, params, 0.5)
  best.close()
  assert BestModel(str(tmp_path), metadata, "fetched").loss == 0.5
  other = BestModel(str(tmp_path), metadata, "none")
  other.offer(2, params, 0.7)
  other.close()
  assert BestModel(str(tmp_path), metadata, "none").loss == 0.7
  assert load_model(str(tmp_path / "best"), toy.mesh).metadata["step"] == 2


@pytest.fixture(scope="module")
def packed(write_packed, tmp_path_factory):
  rng = np.random.default_rng(0)
  sequences = [(leaf, rng.integers(3, 13, 8), np.ones(8, np.int32)) for leaf in rng.integers(0, 4, 21)]
  directory = str(tmp_path_factory.mktemp("packed") / "set")
  return write_packed(directory, sequences, vocab_size=13, num_leaves=4, tree_fingerprint="feed").directory


def verb(toy, run_dir, packed, **changes):
  run = toy.training_run(changes, steps=6, batch_size=4)
  train(run_dir=str(run_dir), dataset=packed, run=run, **changes)


def test_the_verb_measures_every_held_out_sequence_once(toy, packed, tmp_path):
  """21 sequences in batches of 4; the last is filled up with no tokens. Of every set in every mode."""
  modes = ("none", "generic", "fetched")
  shutil.copytree(packed, tmp_path / "second")
  validation = ValidationConfig(dataset=packed, every=6, others=(("second", "second"),), modes=modes)
  verb(toy, tmp_path, packed, validation=validation)
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  (losses,) = [line for line in lines if "loss/validation" in line]
  from hiermem_jax.data.packed.batches import in_order
  from hiermem_jax.data.packed.reading import PackedDataset
  from hiermem_jax.evaluation.modes import Mode
  from hiermem_jax.evaluation.perplexity import held_out_loss
  from hiermem_jax.evaluation.scoring import Scorer

  model = load_model(str(tmp_path), toy.mesh)
  scorer = Scorer(model, toy.mesh, 7)
  for mode in modes:
    expected = held_out_loss(scorer, in_order(PackedDataset(packed), 7), Mode.parse(mode))
    assert losses[f"loss/validation/main/{mode}"] == pytest.approx(expected, rel=1e-5)
    assert losses[f"loss/validation/second/{mode}"] == losses[f"loss/validation/main/{mode}"]
  assert losses["loss/validation"] == losses["loss/validation/main/fetched"]
  assert json.loads((tmp_path / "report.json").read_text())["steps"] == 6


def test_profiled_steps_leave_a_trace(toy, packed, tmp_path):
  verb(toy, tmp_path, packed, profile_steps=(3, 4))
  assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
  with pytest.raises(InputError, match=r"train.profile_steps = \(4, 3\): bind a first step after 1"):
    verb(toy, tmp_path / "other", packed, profile_steps=(4, 3))


def test_validation_that_cannot_be_used(toy, packed, write_decomposed, tmp_path):
  with pytest.raises(InputError, match="ValidationConfig.every = 0"):
    ValidationConfig(dataset=packed, every=0)
  sequences = {n: [(0, np.zeros(n, np.int32), np.ones(n, np.int32))] * 8 for n in (8, 16)}
  several = write_decomposed(str(tmp_path / "several"), sequences, vocab_size=13, num_leaves=4)
  assert isinstance(several, DecomposedDataset)
  for changes, setting in (
    ({"dataset": str(several.directory)}, "dataset"),
    ({"others": (("b", "several"),)}, "others"),
  ):
    with pytest.raises(
      InputError, match=f"ValidationConfig.{setting} = .*several: of several lengths; bind one of its"
    ):
      verb(toy, tmp_path, packed, validation=ValidationConfig(**{"dataset": packed} | changes))
  for others in ((("main", "a"),), (("a/b", "a"),), (("", "a"),), (("a", "x"), ("a", "y"))):
    with pytest.raises(InputError, match="ValidationConfig.others: a set is named '.*'; bind letters"):
      ValidationConfig(dataset="x", others=others)
  with pytest.raises(InputError, match=r"ValidationConfig.modes = \(\): bind one of"):
    ValidationConfig(dataset="x", modes=())


def test_a_subtree_reads_its_own_sequences_alone(toy, packed, tmp_path):
  memory = dataclasses.replace(toy.memory, part=1)
  verb(
    toy, tmp_path, packed, memory=memory, generic_probability=0.0, validation=ValidationConfig(dataset=packed, every=6)
  )
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  for line in lines:
    assert not {"loss/cluster_00", "loss/generic"} & line.keys()
  assert sum("loss/cluster_01" in line for line in lines) == 6
  assert CheckpointReader(str(tmp_path)).latest_step == 6
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_model(str(tmp_path), toy.mesh).params))
