"""Run by tests in a process of its own with eight CPU devices; prints one JSON object of findings.

Numbers that should be zero or small are printed as they are; the tests judge them.
"""

import dataclasses
import json
import math
import re
import sys

import jax
import numpy as np
import reference
import shared_sequences
from jax.sharding import NamedSharding, PartitionSpec
from small_run import ANCHOR, BATCH, GENERIC, LEAF, LENGTH, MEMORY, MODEL, STEPS, TOUCHED, batch, optimizer

from hiermem_jax.evaluation.scoring import Scorer
from hiermem_jax.models import NO_MEMORY, ModelConfig
from hiermem_jax.models.bank import table_shapes
from hiermem_jax.models.model import Model, init_params
from hiermem_jax.parallel import MeshConfig, batch_sharding, fetch, make_mesh, place_batch, push
from hiermem_jax.parallel.layout import abstract_arrays
from hiermem_jax.training.checkpoint import CheckpointStore, load_model
from hiermem_jax.training.config import Objective, TrainingRun
from hiermem_jax.training.program import make_program
from hiermem_jax.training.stored_model import load_model_as
from hiermem_jax.training.validation import HeldOut, make_validation_losses

SHAPES = table_shapes(MODEL)
Z_LOSS = 1e-2


def config_and_mesh(slices, model, devices=8):
  config = MeshConfig(slices=slices, model=model)
  return config, make_mesh(config, jax.devices()[:devices])


def collectives(compiled):
  """[operation, type, elements, name] of every collective of a compiled function; elements of its largest array."""
  found = []
  for line in compiled.as_text().splitlines():
    match = re.search(r"= (.+?) (all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute)(-start)?\(", line)
    if match:
      arrays = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
      sizes = [math.prod(int(n) for n in shape.split(",") if n) for _, shape in arrays]
      elements = sum(sizes) if match[2] == "all-to-all" else max(sizes)  # an all-to-all is written as its parts
      found.append([match[2], arrays[0][0], elements, re.search(r'op_name="([^"]*)"|$', line)[1] or ""])
  return found


def wire_types(lowered, operation):
  """Element types of what the program asks to send, before a backend changes them."""
  return re.findall(rf'"stablehlo.{operation}".*?-> tensor<(?:\d+x)*(\w+)>', lowered.as_text(), re.DOTALL)


def spec(array):
  """Mesh axes of each axis of an array."""
  return (list(array.sharding.spec) + [None] * array.ndim)[: array.ndim]


def largest_difference(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return max(float(np.abs(np.asarray(x, np.float64) - np.asarray(y)).max()) for x, y in pairs)


def expected_block(rows, model):
  """Blocks [B, L, 3, R, D] of rows; with a model axis every part of it has the same fraction of each level."""
  parts = [rows[name].reshape(BATCH, neurons, 2, 3, 16) for name, neurons in reference.NEURONS.items()]
  pieces = [np.split(part, model, axis=1)[number] for number in range(model) for part in parts]
  return np.concatenate(pieces, axis=1).transpose(0, 2, 3, 1, 4)


def check_exchange(slices, model):
  """`fetch` and `push` against plain indexing."""
  _, mesh = config_and_mesh(slices, model)
  rng = np.random.default_rng(0)
  bank = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
  gradient = {name: rng.standard_normal((BATCH, shape[1])).astype(np.float32) for name, shape in SHAPES.items()}
  placed = jax.device_put(bank, NamedSharding(mesh, PartitionSpec(None, ("model", "data"))))
  leaf = jax.device_put(LEAF, batch_sharding(mesh))
  fetch_fn = jax.jit(lambda bank, leaf: fetch(bank, leaf, MODEL, mesh)).lower(placed, leaf).compile()
  block = fetch_fn(placed, leaf)
  given = expected_block(gradient, model)
  given = block.replace(vectors={name: given[:, :, matrix] for matrix, name in enumerate(block.vectors)})
  given = jax.device_put(given, jax.tree.map(lambda x: x.sharding, block))
  push_fn = jax.jit(lambda block, leaf: push(block, leaf, MODEL, mesh)).lower(given, leaf).compile()
  pushed = push_fn(given, leaf)

  wanted, push_error, indices = {}, 0.0, {}
  for name, table in bank.items():
    rows = [reference.row_of(name, x) for x in LEAF]
    wanted[name] = np.stack([np.zeros_like(table[0]) if row is None else table[row] for row in rows])
    summed, dense = np.zeros_like(table), np.zeros_like(table)
    for row, values in zip(rows, gradient[name]):
      if row is not None:
        summed[row] += values
    index, value = map(np.asarray, pushed[name])
    used = index < len(table)
    dense[index[used]] = value[used]
    push_error = max(push_error, float(np.abs(dense - summed).max()), float(np.abs(value[~used]).max(initial=0)))
    indices[name] = sorted(index.tolist())
  nothing = push_fn(given, jax.device_put(np.full_like(LEAF, NO_MEMORY), batch_sharding(mesh)))
  return {
    "fetch_error": largest_difference(np.stack(list(block.vectors.values()), axis=2), expected_block(wanted, model)),
    "push_error": push_error,
    "indices": indices,
    "without_memory": {
      name: [int(np.min(index)), float(np.abs(value).max())] for name, (index, value) in nothing.items()
    },
    "fetched_specs": [spec(array) for array in block.vectors.values()],
    "pushed_specs": [spec(gradient.value) for gradient in pushed.values()],
    "fetch_collectives": collectives(fetch_fn),
    "push_collectives": collectives(push_fn),
  }


def train(slices, model, bank_update, devices=8, memory=MEMORY, microbatches=1, **objective):
  """A few steps; returns (start, state, losses, compiled step) with the parameters of the start as numpy."""
  config, mesh = config_and_mesh(slices, model, devices)
  run = TrainingRun(
    model=ModelConfig(anchor=ANCHOR, memory=memory),
    optimizer=optimizer(bank_update),
    steps=STEPS,
    batch_size=BATCH,
    microbatches=microbatches,
    objective=Objective(generic_probability=0.0, z_loss=Z_LOSS, **objective),
    mesh=config,
  )
  program = make_program(run, mesh)
  state, key = program.init(jax.random.key(0)), program.replicate(jax.random.key(1))
  start, losses = jax.tree.map(np.array, state.params), []
  compiled = program.lower(LENGTH).compile()
  for step in range(STEPS):
    state, metrics = compiled(state, place_batch(batch(step), mesh), key)
    losses.append(float(metrics["loss"]))
  return start, state, losses, compiled


def check_training(findings, run_dir):
  """Every mesh against the reference, which starts from what one device draws; returns one device's parameters."""
  batches = [batch(step) for step in range(STEPS)]
  start, state, losses, _ = train(1, 1, "dense", devices=1)
  expected = {
    update: reference.train(start, batches, optimizer(update), Z_LOSS, list(SHAPES) if update == "lazy" else [])
    for update in ("dense", "lazy")
  }
  runs = {"1x1x1 dense": (start, state, losses, None)}
  for slices, model, update in [(1, 1, "lazy"), (2, 1, "dense"), (2, 2, "lazy")]:
    runs[f"{slices}x{8 // slices // model}x{model} {update}"] = train(slices, model, update)
  runs["2x2x2 lazy, 3 microbatches"] = train(2, 2, "lazy", microbatches=3)
  for name, (begin, state, losses, compiled) in runs.items():
    params, reference_losses = expected[name.split()[1].rstrip(",")]
    untouched = np.setdiff1d(np.arange(GENERIC + 1), TOUCHED["level_3"])
    tables = np.asarray(state.params["bank"]["level_3"]), begin["bank"]["level_3"]
    moved = np.abs(tables[0] - tables[1]).max(axis=1)
    findings["training"][name] = {
      "start_difference": largest_difference(begin, start),
      "losses": losses,
      "reference_losses": reference_losses,
      "parameter_difference": largest_difference(state.params, params),
      "touched_moved": float(moved[TOUCHED["level_3"]].min()),
      "untouched_moved": float(moved[untouched].max()),
      "collectives": collectives(compiled) if compiled else [],
      "bank_specs": [spec(table) for table in state.params["bank"].values()],
      "moment_specs": [spec(x) for s in state.opt_state["bank"].values() for x in (s.mu, s.nu)],
      "anchor_specs": {
        jax.tree_util.keystr(path, simple=True, separator="/"): spec(x)
        for path, x in jax.tree_util.tree_leaves_with_path(state.params["anchor"])
      },
    }
  check_checkpoint(findings, runs["1x8x1 lazy"][1], run_dir)
  return jax.tree.map(np.array, runs["1x1x1 dense"][1].params)


def check_variants():
  """Every kind of memory and every part of a bank, half of them beside a frozen anchor, on eight devices and on one.

  The eight are two slices with FSDP and a model axis. `check_training` has the whole FFN bank, trained with its anchor.
  """
  found = {}
  for kind, layers, part, update, frozen in (
    ("ffn", None, "all", "dense", True),
    ("lora_qk", "last 1", 1, "lazy", True),
    ("lora_vo", "last 1", "generic", "dense", True),
    ("lora_ffn", "last 1", "all", "lazy", False),
    ("kv", "last 1", "all", "lazy", False),
  ):
    memory = dataclasses.replace(MEMORY, kind=kind, layers=layers, part=part)
    runs = [train(*mesh, update, devices, memory, frozen_anchor=frozen) for *mesh, devices in ((1, 1, 1), (2, 2, 8))]
    (start, alone, losses, _), (_, many, others, _) = runs
    found[kind] = {
      "parameter_difference": largest_difference(alone.params, many.params),
      "loss_difference": largest_difference(losses, others),
      "anchor_moved": largest_difference(start["anchor"], many.params["anchor"]),
      "bank_moved": largest_difference(start["bank"], many.params["bank"]),
      "rows": [len(table) for table in many.params["bank"].values()],
    }
  return found


def check_checkpoint(findings, state, run_dir):
  """Written by eight devices of data, read by two and by slices with a model axis."""
  store = CheckpointStore(run_dir)
  store.save(state, MODEL.to_json())
  store.wait()
  for name, mesh in (("2 devices", config_and_mesh(1, 1, 2)[1]), ("2x2x2", config_and_mesh(2, 2)[1])):
    shardings = jax.tree.map(lambda x, mesh=mesh: NamedSharding(mesh, x.sharding.spec), state)
    restored = store.restore(
      jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
    )
    findings["restored"][name] = {
      "difference": largest_difference(restored, state),
      "devices": len(restored.params["bank"]["level_1"].sharding.device_set),
    }
  store.close()
  loaded = load_model(run_dir, config_and_mesh(1, 1, 1)[1])
  findings["restored"]["loaded"] = {"difference": largest_difference(loaded.params, state.params), "devices": 1}
  by_table = load_model_as("float32", run_dir, config_and_mesh(2, 2)[1])
  findings["restored"]["by table"] = {
    "difference": largest_difference(by_table.params, state.params),
    "devices": len(by_table.params["bank"]["level_3"].sharding.device_set),
  }


def check_scoring(params):
  """Log-likelihoods, greedy generation and held-out losses on eight devices and on one.

  Some sequences end early, others do not.
  """
  rng = np.random.default_rng(5)
  params["bank"] = {name: rng.standard_normal(table.shape).astype(np.float32) for name, table in params["bank"].items()}
  prompts = [rng.integers(0, ANCHOR.vocab_size, length).tolist() for length in rng.integers(0, 20, 11)]
  continuations = [rng.integers(0, ANCHOR.vocab_size, length).tolist() for length in rng.integers(1, 4, 11)]
  leaf = rng.integers(-1, GENERIC + 1, 11).astype(np.int32)
  held_out = HeldOut(lambda: [batch(0)], every=1, modes=("none", "generic", "fetched"))
  results, stop, validation = [], [], []
  for slices, model, devices in ((1, 1, 1), (2, 2, 8)):
    config, mesh = config_and_mesh(slices, model, devices)
    abstract = abstract_arrays(lambda: init_params(jax.random.key(0), MODEL), mesh, config.rules)
    placed = jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), params, abstract)
    validation.append(make_validation_losses(held_out, MODEL, mesh, config.rules)(placed))
    scorer = Scorer(Model(MODEL, placed, {}), mesh, batch_size=4, rules=config.rules)
    scores, _ = scorer.score_continuations(prompts, continuations, leaf)
    if not stop:  # the first sequence, and with it its device, is done after one token
      stop = scorer.generate(prompts, leaf, 5, stop=())[0][:1]
    results.append((scores, scorer.generate(prompts, leaf, 5, stop)))
  (scores, text), (other_scores, other_text) = results
  return {
    "score_difference": float(np.abs(scores - other_scores).max()),
    "validation": validation,
    "same_text": text == other_text,
    "distinct": len({tuple(tokens) for tokens in text}),
    "lengths": [len(tokens) for tokens in text],
  }


def check_wire():
  """What a bfloat16 anchor asks to send, where slices cross as well."""
  config, mesh = config_and_mesh(2, 1)

  def lower(**anchor):
    model = ModelConfig(anchor=dataclasses.replace(ANCHOR, dtype="bfloat16", **anchor), memory=MEMORY)
    run = TrainingRun(model=model, optimizer=optimizer("lazy"), steps=STEPS, batch_size=BATCH, mesh=config)
    return make_program(run, mesh).lower(LENGTH)

  found = {name: wire_types(lower(), name) for name in ("all_to_all", "all_gather", "reduce_scatter")}
  return found | {"reduce_scatter, bfloat16": wire_types(lower(gradient_dtype="bfloat16"), "reduce_scatter")}


def main(run_dir):
  findings = {"devices": jax.device_count(), "training": {}, "restored": {}, "wire": check_wire()}
  meshes = {"1x8x1": (1, 1), "1x4x2": (1, 2), "2x2x2": (2, 2)}
  findings["exchange"] = {name: check_exchange(*mesh) for name, mesh in meshes.items()}
  params = check_training(findings, run_dir)
  findings["variants"] = check_variants()
  findings["scoring"] = check_scoring(params)
  findings["shared"] = shared_sequences.findings(f"{run_dir}/shared")
  print(json.dumps(findings))


if __name__ == "__main__":
  main(sys.argv[1])
