"""Shapes of meshes, and what does not fit one: each is one line that names the thing, the place and the remedy."""

import dataclasses

import jax
import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.models import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.parallel import MeshConfig, local_sequences, make_mesh, place_batch
from hiermem_jax.parallel.layout import check_mesh
from hiermem_jax.parallel.mesh import DEFAULT_RULES, abstract_mesh
from hiermem_jax.training import OptimizerConfig
from hiermem_jax.training.config import TrainingRun
from hiermem_jax.training.program import make_program

ANCHOR = AnchorConfig(num_layers=1, width=16, num_heads=4, head_dim=2, mlp_width=8, vocab_size=8)
MEMORY = MemoryConfig(rows=(4, 0, 4), branching=2)
OPTIMIZER = OptimizerConfig(peak_learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=0, weight_decay=0.0)


def program(mesh, batch_size=16, rules=DEFAULT_RULES, **anchor):
  model = ModelConfig(anchor=dataclasses.replace(ANCHOR, **anchor), memory=MEMORY)
  run = TrainingRun(
    model=model, optimizer=OPTIMIZER, steps=1, batch_size=batch_size, mesh=MeshConfig(model=mesh[2], rules=rules)
  )
  return make_program(run, abstract_mesh(mesh))


@pytest.mark.parametrize(
  "config, devices, slices, shape",
  [
    (MeshConfig(), 1, 1, (1, 1, 1, 1)),
    (MeshConfig(), 256, 1, (1, 256, 1, 1)),
    (MeshConfig(), 512, 2, (2, 256, 1, 1)),
    (MeshConfig(slices=2, model=4), 64, 1, (2, 8, 1, 4)),
    (MeshConfig(slices=1, model=4), 64, 2, (1, 16, 1, 4)),
    (MeshConfig(context=2), 256, 1, (1, 128, 2, 1)),
    (MeshConfig(context=4, model=2), 64, 2, (2, 4, 4, 2)),
  ],
)
def test_data_takes_what_the_other_axes_leave(config, devices, slices, shape):
  assert config.shape(devices, slices) == shape


def fails(function, *parts):
  with pytest.raises(InputError) as caught:
    function()
  message = str(caught.value)
  assert "\n" not in message
  assert all(part in message for part in parts), message


def test_devices_that_do_not_divide():
  message = "8 devices cannot be split into 2 slices x model axis of 3", "bind MeshConfig.slices, MeshConfig.model and"
  fails(lambda: MeshConfig(slices=2, model=3).shape(8), *message)
  fails(lambda: make_mesh(MeshConfig(model=2), jax.devices()[:1]), "1 devices cannot be split into 1 slices")
  fails(lambda: MeshConfig(context=3).shape(8), "8 devices cannot be split into", "context axis of 3; bind")


@pytest.mark.parametrize("sizes", [{"slices": 0}, {"model": 0}, {"model": -2}, {"context": 0}])
def test_sizes_that_no_mesh_has(sizes):
  (name, size), *_ = sizes.items()
  fails(lambda: MeshConfig(**sizes), f"MeshConfig.{name} = {size}: bind a positive size")


def test_rules_that_no_mesh_has():
  wrong = (*DEFAULT_RULES, ("seq", "chips"))
  fails(lambda: MeshConfig(rules=wrong), "MeshConfig.rules: 'seq' maps to ['chips']", "('replica', 'data', 'model')")
  wrong = (*DEFAULT_RULES, ("embed_act", "context"))  # its devices have whole weights and activations
  fails(lambda: MeshConfig(rules=wrong), "MeshConfig.rules: 'embed_act' maps to ['context']")
  wrong = (("batch", "data"), *DEFAULT_RULES[1:])
  fails(lambda: MeshConfig(rules=wrong), "'batch' must map to ('replica', 'data')")


def test_mesh_that_fits():
  for shape in ((1, 1, 1, 1), (2, 4, 1, 2), (4, 2, 1, 4), (1, 4, 2, 2)):
    abstract = program(shape).abstract_state
    parts = shape[1] * shape[3]
    assert abstract.params["bank"]["level_1"].sharding.shard_shape((3, 192)) == (3, 192 // parts)


def test_batch_that_does_not_divide():
  message = "train.batch_size = 12: cannot be split over 8 devices; bind a multiple, or more to MeshConfig.context"
  fails(lambda: program((2, 4, 1, 2), 12), message)


def test_length_that_does_not_divide():
  message = (
    "MeshConfig.context = 4: sequences of 30 tokens cannot be split over a context axis of 4; bind it to a divisor"
  )
  fails(lambda: program((1, 2, 4, 1)).abstract_batch(30), message)
  batch = program((1, 2, 4, 1)).abstract_batch(32)
  assert batch["decoder_positions"].sharding.shard_shape((16, 32)) == (8, 8)
  assert batch["memory_leaf"].sharding.shard_shape((16,)) == (8,)


def test_heads_that_do_not_divide():
  fails(
    lambda: program((1, 1, 1, 8)), "AnchorConfig.num_heads = 4: cannot be split over a model axis of 8; bind MeshConfig"
  )
  message = (
    "AnchorConfig.num_heads = 4: cannot be split over a context axis of 4 and a model axis of 2; bind MeshConfig"
  )
  fails(lambda: program((1, 1, 4, 2)), message)


def test_neurons_of_the_bank_that_do_not_divide():
  memory = dataclasses.replace(MEMORY, rows=(4, 0, 6))
  message = "MemoryConfig.rows of level 3 = 6: cannot be split over a model axis of 4; bind MeshConfig.model"
  fails(lambda: check_mesh(abstract_mesh((1, 2, 1, 4)), ModelConfig(anchor=ANCHOR, memory=memory)), message)


@pytest.mark.parametrize(
  "mesh, sizes, parts",
  [
    (
      (1, 16, 1, 1),
      {"width": 24, "num_layers": 1},
      [
        "params/anchor/",
        "24 (embed) cannot be split over 16 devices (mesh axes data); bind MeshConfig.model = 2, which leaves data 8, or"
        " keep it whole: ('embed', None) in MeshConfig.rules, as gin/pods/whole_weights.gin does",
      ],
    ),
    (
      (1, 1, 1, 4),
      {"mlp_width": 6},
      [
        "feed_forward/w",
        "6 (mlp) cannot be split over 4 devices (mesh axes model); bind MeshConfig.model to a divisor of 6, or keep it"
        " whole: ('mlp', None) in MeshConfig.rules",
      ],
    ),
    ((1, 1, 1, 4), {"vocab_size": 10}, ["10 (vocab) cannot be split over 4 devices (mesh axes model)"]),
  ],
)
def test_weights_that_do_not_divide(mesh, sizes, parts):
  fails(lambda: program(mesh, **sizes), *parts)


def test_remedies_of_a_width_that_does_not_divide_work():
  """As the message of the first case above says."""
  program((1, 8, 1, 2), width=24, num_layers=1)
  rules = (("batch", ("replica", "data")), ("embed", None), *DEFAULT_RULES[2:])
  weights = program((1, 16, 1, 1), width=24, num_layers=1, rules=rules).abstract_state.params["anchor"]
  assert all(x.sharding.shard_shape(x.shape) == x.shape for x in jax.tree.leaves(weights))


def test_rows_of_the_bank_that_do_not_divide():
  """A row of one neuron: 3 matrices x 16 weights. The anchor is not split here."""
  model = ModelConfig(anchor=ANCHOR, memory=MemoryConfig(rows=(1,), branching=2))
  mesh = MeshConfig(rules=DEFAULT_RULES[:1])
  run = TrainingRun(model=model, optimizer=OPTIMIZER, steps=1, batch_size=32, mesh=mesh)
  fails(
    lambda: make_program(run, abstract_mesh((1, 32, 1, 1))),
    "params/bank/level_1 (3, 48): 48 (bank_row) cannot be split over 32 devices (mesh axes ('model', 'data'))",
    "use slices with a number of devices that divides it, or bind other MemoryConfig.rows",
  )


def test_one_process_feeds_every_row():
  mesh = make_mesh(devices=jax.devices()[:1])
  np.testing.assert_array_equal(local_sequences(mesh, 5), np.arange(5))
  batch = {"memory_leaf": np.arange(5, dtype=np.int32)}
  np.testing.assert_array_equal(place_batch(batch, mesh)["memory_leaf"], batch["memory_leaf"])


@dataclasses.dataclass(frozen=True)
class Chip:
  """What `mesh_utils` asks of a device."""

  id: int
  slice_index: int
  coords: tuple[int, int, int]
  platform = "tpu"
  device_kind = "TPU v5 lite"
  core_on_chip = 0
  process_index = 0


def chips(slices):
  """Slices of 4x4 chips, in no particular order."""
  result = [Chip(16 * s + 4 * y + x, s, (x, y, 0)) for s in range(slices) for y in range(4) for x in range(4)]
  return [result[i] for i in np.random.default_rng(0).permutation(len(result))]


@pytest.mark.parametrize("context, model", [(1, 1), (1, 4), (2, 2)])
def test_only_the_replica_axis_crosses_slices(context, model):
  """The data-centre network carries the gradients' sum and nothing else."""
  mesh = make_mesh(MeshConfig(context=context, model=model), chips(2))
  assert dict(mesh.shape) == {"replica": 2, "data": 16 // context // model, "context": context, "model": model}
  slices = [{chip.slice_index for chip in replica.flat} for replica in mesh.devices]
  assert slices in ([{0}, {1}], [{1}, {0}])
  assert {chip.id for chip in mesh.devices.flat} == set(range(32))


def test_neighbours_on_the_model_axis_are_neighbours_in_the_slice():
  mesh = make_mesh(MeshConfig(model=4), chips(1))
  for ring in mesh.devices.reshape(-1, 4):
    steps = [np.abs(np.subtract(a.coords, b.coords)).sum() for a, b in zip(ring, np.roll(ring, 1))]
    assert sorted(steps)[:3] == [1, 1, 1]


def test_slices_that_the_devices_do_not_form():
  fails(lambda: make_mesh(MeshConfig(slices=4), chips(2)), "MeshConfig.slices = 4: the devices belong to 2 slices")
