"""Findings of `eight_devices.py` about meshes with a context axis, where several devices share a sequence.

The model and its batches are not those of `small_run`: four heads and 16 positions can be split. Sequences hold up to
four documents, which cross the devices' borders at 4, 8 and 12, and padding. Names are replica x data x context x model.
"""

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from small_run import GENERIC, LEAF, MEMORY, optimizer

from hiermem_jax.evaluation.scoring import Scorer
from hiermem_jax.models import AnchorConfig, ModelConfig, context
from hiermem_jax.models.attention import document_mask, splash
from hiermem_jax.models.model import Model
from hiermem_jax.parallel import MeshConfig, batch_parallel, make_mesh, place_batch
from hiermem_jax.parallel.mesh import DEFAULT_RULES
from hiermem_jax.training.checkpoint import CheckpointStore, load_model
from hiermem_jax.training.config import Objective, TrainingRun
from hiermem_jax.training.program import make_program
from hiermem_jax.training.validation import LOSS, HeldOut, make_validation_losses

ANCHOR = AnchorConfig(num_layers=2, width=16, num_heads=4, head_dim=4, mlp_width=12, vocab_size=18, dtype="float32")
BATCH, LENGTH, STEPS = 8, 16, 3
VARIANTS = {
  "ffn": {"memory": MEMORY},
  "kv": {"memory": dataclasses.replace(MEMORY, kind="kv"), "anchor": {"tied_embeddings": True}},
  "anchor": {"memory": None},
}
# Each against one device, which has none of the settings in brackets: they do not change the mathematics.
MESHES = {
  "1x2x4x1 ffn": ("ffn", {"remat": "full"}),
  "2x2x2x1 kv": ("kv", {"microbatches": 2}),
  "1x2x2x2 anchor": ("anchor", {"logits_chunk": 2}),
}


def shape_of(name):
  return tuple(map(int, name.split()[0].split("x")))


def mesh_of(shape):
  slices, data, shared, model = shape
  config = MeshConfig(slices=slices, context=shared, model=model)
  return config, make_mesh(config, jax.devices()[: slices * data * shared * model])


def batch(step):
  """A function of the step: packed documents with positions of their own, and padding behind them."""
  rng = np.random.default_rng([7, step])
  segments, positions = np.zeros((2, BATCH, LENGTH), np.int32)
  for sequence in range(BATCH):
    borders = np.sort(rng.choice(np.arange(1, LENGTH), 3, replace=False))
    ends = [*borders, LENGTH] if sequence % 2 else borders  # the rest is padding
    for document, (start, end) in enumerate(zip([0, *ends], ends)):
      segments[sequence, start:end], positions[sequence, start:end] = document + 1, np.arange(end - start)
  inputs, targets = rng.integers(0, ANCHOR.vocab_size, (2, BATCH, LENGTH)).astype(np.int32)
  return {
    "decoder_input_tokens": inputs,
    "decoder_target_tokens": targets,
    "decoder_segment_ids": segments,
    "decoder_positions": positions,
    "decoder_loss_weights": (segments > 0) * rng.integers(0, 2, inputs.shape).astype(np.float32),
    "memory_leaf": rng.permutation(LEAF[:BATCH]),
  }


@functools.cache
def make(shape, variant, microbatches=1, **anchor):
  """The program of a run, on a mesh."""
  config, mesh = mesh_of(shape)
  anchor = dataclasses.replace(ANCHOR, **VARIANTS[variant].get("anchor", {}), **anchor)
  run = TrainingRun(
    model=ModelConfig(anchor=anchor, memory=VARIANTS[variant]["memory"]),
    optimizer=optimizer("lazy"),
    steps=STEPS,
    batch_size=BATCH,
    microbatches=microbatches,
    objective=Objective(generic_probability=0.3 if VARIANTS[variant]["memory"] else 0.0, z_loss=1e-2),
    mesh=config,
  )
  return make_program(run, mesh)


def train(start, shape, variant, **settings):
  """A few steps: the state after them, and the scalars of each step."""
  program = make(shape, variant, **settings)
  state = jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), start, program.abstract_state)
  key, scalars = program.replicate(jax.random.key(1)), []
  for step in range(STEPS):
    state, metrics = program.step(state, place_batch(batch(step), program.mesh), key)
    scalars += metrics.read()
  return state, scalars


def relative(a, b):
  """Largest difference of two trees of updates, as a part of each array's largest value."""
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)


def moved(start, state):
  return jax.tree.map(lambda a, b: np.asarray(b, np.float64) - a, start.params, state.params)


def check_training():
  """Losses, every other scalar, and what training has added to the parameters, against one device."""
  found, states = {}, {}
  for name, (variant, settings) in MESHES.items():
    one = (1, 1, 1, 1)
    start = jax.tree.map(np.array, make(one, variant).init(jax.random.key(0)))
    states[f"1x1x1x1 {variant}"], expected = train(start, one, variant)
    states[name], scalars = train(start, shape_of(name), variant, **settings)
    updates = [moved(start, states[key]) for key in (name, f"1x1x1x1 {variant}")]
    found[name] = {
      "losses": [[step["loss"] for step in run] for run in (scalars, expected)],
      "scalars": [[[step[key] for key in sorted(step)] for step in run] for run in (scalars, expected)],
      "update_difference": relative(*updates),
      "devices": len(jax.tree.leaves(states[name].params)[0].sharding.device_set),
    }
  return found, states


def check_checkpoints(states, run_dir):
  """Written with a context axis and read without, and the other way round."""
  found = {}
  for written, read in (("1x2x4x1 ffn", "1x4x1x2"), ("1x1x1x1 ffn", "1x2x4x1")):
    directory = f"{run_dir}/{written.split()[0]}"
    store = CheckpointStore(directory)
    store.save(states[written], make(shape_of(read), "ffn").model.to_json())
    store.wait()
    restored = store.restore(make(shape_of(read), "ffn").abstract_state)
    store.close()
    pairs = zip(jax.tree.leaves(restored), jax.tree.leaves(states[written]), strict=True)
    found[f"{written.split()[0]} on {read}"] = all(np.array_equal(a, b) for a, b in pairs)
  model = load_model(f"{run_dir}/1x2x4x1", mesh_of((1, 1, 1, 1))[1])
  pairs = zip(jax.tree.leaves(model.params), jax.tree.leaves(states["1x2x4x1 ffn"].params), strict=True)
  found["loaded"] = all(np.array_equal(a, b) for a, b in pairs)
  return found


def check_evaluation(params):
  """Held-out loss during training, which shares sequences, and scoring, which does not, against one device."""
  model = ModelConfig(anchor=ANCHOR, memory=MEMORY)
  rng = np.random.default_rng(5)
  texts = [rng.integers(0, ANCHOR.vocab_size, length).tolist() for length in (3, 9, 20, 5)]
  losses, scores = [], []
  for shape in ((1, 1, 1, 1), (1, 2, 4, 1)):
    program = make(shape, "ffn")
    placed = jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), params, program.abstract_state.params)
    held_out = HeldOut(lambda: [batch(8), batch(9)], every=1)
    losses.append(make_validation_losses(held_out, model, program.mesh, DEFAULT_RULES)(placed)[LOSS])
    scorer = Scorer(Model(model, placed, {}), program.mesh, batch_size=4)
    scores.append(scorer.score_continuations(texts, texts, np.array([0, 5, GENERIC, -1], np.int32))[0])
  return {"losses": losses, "scores": np.array(scores).tolist()}


def check_splash():
  """The flash-attention kernel where devices share sequences and have parts of the heads; values and gradients."""
  _, mesh = mesh_of((1, 2, 2, 2))
  rng = np.random.default_rng(0)
  q, k, v, weight = rng.standard_normal((4, 2, 256, 4, 32)).astype(np.float32)
  segments = 1 + np.searchsorted([60, 131], np.tile(np.arange(256), (2, 1)), side="right").astype(np.int32)

  def local(q, k, v, segments):
    heads = map(context.to_heads, (q, k, v))
    return context.to_positions(splash(*heads, context.whole_sequence(segments)))

  spec = PartitionSpec(("replica", "data"), "context")
  shared = batch_parallel(local, mesh, DEFAULT_RULES, (spec,) * 4, spec, split_positions=True)
  placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x in (q, k, v)]

  def masked(q, k, v, segments):
    return jax.nn.dot_product_attention(q, k, v, mask=document_mask(segments))

  def with_gradients(attend, *heads):
    return jax.jit(jax.value_and_grad(lambda *x: (attend(*x, segments) * weight).sum(), argnums=(0, 1, 2)))(*heads)

  (value, gradients), (expected, expected_gradients) = with_gradients(shared, *placed), with_gradients(masked, q, k, v)
  return {
    "value_difference": float(abs(value - expected)),
    "gradient_difference": max(float(np.abs(a - b).max()) for a, b in zip(gradients, expected_gradients)),
  }


def findings(run_dir):
  """All of them."""
  training, states = check_training()
  params = jax.tree.map(np.array, states["1x1x1x1 ffn"].params)
  return {
    "training": training,
    "restored": check_checkpoints(states, run_dir),
    "evaluation": check_evaluation(params),
    "splash": check_splash(),
  }
