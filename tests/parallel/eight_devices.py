"""Run by test_exchange.py in a process of its own with eight CPU devices; prints one JSON object of findings.

Numbers that should be zero or small are printed as they are; the test judges them.
"""

import json
import math
import re
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.models import NO_MEMORY, AnchorConfig, MemoryConfig
from hiermem_jax.models.bank import table_shapes
from hiermem_jax.parallel import batch_sharding, fetch, make_mesh, push
from hiermem_jax.training import OptimizerConfig
from hiermem_jax.training.checkpoint import CheckpointStore, describe_model, load_model
from hiermem_jax.training.state import check_mesh, create_state
from hiermem_jax.training.step import make_train_step

ANCHOR = AnchorConfig(num_layers=2, width=16, num_heads=2, head_dim=6, mlp_width=12, vocab_size=19, dtype="float32")
MEMORY = MemoryConfig(rows=(3, 0, 2), branching=3)
GENERIC = MEMORY.num_leaves
# Duplicates within and across devices, siblings, the generic memory and none.
LEAF = np.array([5, 5, 26, GENERIC, NO_MEMORY, 3, 0, GENERIC, 5, 4, NO_MEMORY, 13, 14, 26, 1, 2], np.int32)
RNG = np.random.default_rng(0)


def brute_force_rows(leaf):
  """Per table the row of each leaf; None for no memory."""

  def row(level, leaf):
    if leaf < 0:
      return None
    clusters = 3**level
    return clusters if leaf == GENERIC else int(leaf) * clusters // GENERIC

  return {"level_1": [row(1, x) for x in leaf], "level_3": [row(3, x) for x in leaf]}


def collectives(compiled):
  """[operation, elements of its largest array] for every collective of a compiled function."""
  found = []
  for line in compiled.as_text().splitlines():
    match = re.search(r"= (.+?) (all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute)(-start)?\(", line)
    if match:
      shapes = re.findall(r"\[([\d,]*)\]", match[1])
      found.append([match[2], max(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)])
  return found


def spec(array):
  """Mesh axis of each axis of an array."""
  return (list(array.sharding.spec) + [None] * array.ndim)[: array.ndim]


def check_exchange(mesh):
  shapes = table_shapes(MEMORY, ANCHOR)
  bank = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
  rows = {name: RNG.standard_normal((len(LEAF), shape[1])).astype(np.float32) for name, shape in shapes.items()}
  by_row, by_sequence = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((None, "data"), ("data", None)))
  bank_8, leaf_8 = jax.device_put(bank, by_row), jax.device_put(LEAF, batch_sharding(mesh))
  fetch_fn = jax.jit(lambda bank, leaf: fetch(bank, leaf, MEMORY, mesh)).lower(bank_8, leaf_8).compile()
  push_fn = jax.jit(lambda rows, leaf, bank: push(rows, leaf, bank, MEMORY, mesh))
  push_fn = push_fn.lower(jax.device_put(rows, by_sequence), leaf_8, bank_8).compile()
  fetched, pushed = fetch_fn(bank_8, leaf_8), push_fn(jax.device_put(rows, by_sequence), leaf_8, bank_8)

  fetch_error, push_error = 0.0, 0.0
  for name, indices in brute_force_rows(LEAF).items():
    wanted = [np.zeros_like(bank[name][0]) if index is None else bank[name][index] for index in indices]
    fetch_error = max(fetch_error, float(np.abs(np.asarray(fetched[name]) - np.stack(wanted)).max()))
    summed = np.zeros_like(bank[name])
    used = np.array([index is not None for index in indices])
    np.add.at(summed, [index for index in indices if index is not None], rows[name][used])
    push_error = max(push_error, float(np.abs(np.asarray(pushed[name]) - summed).max()))
  return {
    "fetch_error": fetch_error,
    "push_error": push_error,
    "fetched_specs": [spec(array) for array in fetched.values()],
    "pushed_specs": [spec(array) for array in pushed.values()],
    "fetch_collectives": collectives(fetch_fn),
    "push_collectives": collectives(push_fn),
  }


def train_steps(mesh, steps=3):
  """A few steps from the same key and numpy batches; half of the sequences train the generic memory."""
  # The large epsilon keeps Adam from magnifying rounding where a gradient is almost zero.
  optimizer = OptimizerConfig(
    peak_learning_rate=0.02, final_learning_rate=0.01, warmup_steps=1, weight_decay=0.1, epsilon=1e-3
  ).build(steps)
  state = create_state(jax.random.key(0), ANCHOR, MEMORY, optimizer, mesh)
  key = jax.device_put(jax.random.key(1), NamedSharding(mesh, PartitionSpec()))
  step = make_train_step(
    anchor=ANCHOR, memory=MEMORY, optimizer=optimizer, mesh=mesh, generic_probability=0.5, z_loss=1e-3
  )
  rng, losses, compiled = np.random.default_rng(1), [], None
  for _ in range(steps):
    tokens = rng.integers(0, ANCHOR.vocab_size, (2, len(LEAF), 6)).astype(np.int32)
    batch = {
      "decoder_input_tokens": tokens[0],
      "decoder_target_tokens": tokens[1],
      "decoder_segment_ids": np.ones_like(tokens[0]),
      "decoder_positions": np.tile(np.arange(6, dtype=np.int32), (len(LEAF), 1)),
      "decoder_loss_weights": rng.integers(0, 2, tokens[0].shape).astype(np.float32),
      "memory_leaf": rng.permutation(LEAF),
    }
    inputs = (state, jax.device_put(batch, batch_sharding(mesh)), key)
    compiled = compiled or jax.jit(step).lower(*inputs).compile()
    state, metrics = compiled(*inputs)
    losses.append(float(metrics["loss"]))
  return state, losses, collectives(compiled)


def largest_difference(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return max(float(np.abs(np.asarray(x, np.float64) - np.asarray(y)).max()) for x, y in pairs)


def main(run_dir):
  eight, two, one = (make_mesh(jax.devices()[:count]) for count in (8, 2, 1))
  findings = {"devices": jax.device_count()} | check_exchange(eight)

  state, losses, step_collectives = train_steps(eight)
  single, single_losses, _ = train_steps(one)
  moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 2 and leaf.shape[0] in (4, 28)]
  findings |= {
    "step_difference": largest_difference(state.params, single.params),
    "loss_difference": largest_difference(losses, single_losses),
    "step_collectives": step_collectives,
    "bank_specs": [spec(table) for table in state.params["bank"].values()],
    "moment_specs": [spec(moment) for moment in moments],
    "anchor_replicated": all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params["anchor"])),
    "bank_has_moved": float(np.abs(np.asarray(state.params["bank"]["level_1"]).reshape(4, 2, 3, -1)[:, :, 2]).max()),
  }

  store = CheckpointStore(run_dir)
  store.save(state, describe_model(ANCHOR, MEMORY))
  store.wait()
  blank = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), NamedSharding(two, x.sharding.spec)), state)
  restored = store.restore(blank)
  store.close()
  findings |= {
    "restored_difference": largest_difference(restored, state),
    "restored_devices": len(restored.params["bank"]["level_1"].sharding.device_set),
    "loaded_difference": largest_difference(load_model(run_dir, one).params, state.params),
  }

  try:
    odd = MemoryConfig(rows=(1,), branching=2)  # rows of 2 * 3 * 1 * 10 parameters
    narrow = AnchorConfig(num_layers=2, width=10, num_heads=1, head_dim=2, mlp_width=1, vocab_size=2)
    check_mesh(eight, narrow, odd)
    findings["indivisible"] = ""
  except InputError as error:
    findings["indivisible"] = str(error)
  print(json.dumps(findings))


if __name__ == "__main__":
  main(sys.argv[1])
