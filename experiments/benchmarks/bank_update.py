r"""Cost of a training step as the bank grows and the batch stays: forward, backward, update, whole step, memory.

  python experiments/benchmarks/bank_update.py [--quick] [--json]

All banks hang on the same small anchor and give a sequence the same number of fetched parameters; they differ in the
branching of their tree. The banks of one optimizer are in memory together and take turns, so that what else the machine
does meets all of them. The leaves of a batch are random and change from step to step.

  lazy    only fetched rows are updated. What bounds the step is the anchor's compute; the update reads and writes the
          batch's rows of table and moments, which does not depend on the bank.
  dense   whole tables are updated (the paper's optimizer). The update reads and writes table and both moments, 24 bytes
          a parameter in float32, so it is bound by memory bandwidth and grows with the bank.

forward_ms is fetch and loss, backward_ms what gradients of anchor and rows take beyond it, update_ms clipping and
AdamW, step_ms the whole step as `train` runs it (not the sum: the parts are compiled on their own). peak_bytes is what
the compiled step holds: arguments, results that do not reuse them, temporaries.
"""

import argparse
import functools
import itertools
import json
import sys

import jax
from common import filled_state, in_turns, peak_bytes, random_batch, require_positive, table

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.losses import anchor_losses
from hiermem_jax.parallel import fetch, make_mesh, place_batch
from hiermem_jax.training.config import TrainingRun
from hiermem_jax.training.optimizer import OptimizerConfig
from hiermem_jax.training.program import make_program
from hiermem_jax.training.step import make_gradients, make_update

COLUMNS = ["optimizer", "bank_params", "fetched_params", "forward_ms", "backward_ms", "update_ms", "step_ms"]
COLUMNS += ["peak_bytes"]
BATCHES = 8  # different ones, in turn


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  for name, default in {"layers": 4, "width": 128, "heads": 4, "mlp_width": 512, "vocab": 1024}.items():
    parser.add_argument(f"--{name}", type=int, default=default, help="of the anchor")
  parser.add_argument("--rows", type=int, nargs="+", default=[32, 16, 8], help="r_1 .. r_K")
  parser.add_argument("--branching", type=int, nargs="+", default=[16, 24, 43], help="one bank for each")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--length", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--optimizers", nargs="+", choices=("lazy", "dense", "auto"), default=["lazy", "dense"])
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="that the anchor computes in")
  parser.add_argument("--table_dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--moment_dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--attention", choices=("xla", "splash", "cudnn"), default="xla")
  parser.add_argument("--quick", action="store_true", help="three rounds of banks of at most 200M parameters")
  parser.add_argument("--json", action="store_true", help="print JSON")
  flags = parser.parse_args(argv)
  require_positive(flags, "layers", "width", "heads", "mlp_width", "vocab", "batch", "length", "rounds")
  if flags.quick:
    flags.rounds, flags.branching = 3, [b for b in flags.branching if b <= 24] or flags.branching[:1]
  return flags


def prepare(flags: argparse.Namespace, optimizer: str, branching: int):
  """One bank: its sizes, and functions that each run one part of the training step."""
  anchor = AnchorConfig(
    num_layers=flags.layers,
    width=flags.width,
    num_heads=flags.heads,
    head_dim=flags.width // flags.heads,
    mlp_width=flags.mlp_width,
    vocab_size=flags.vocab,
    dtype=flags.dtype,
    attention=flags.attention,
  )
  memory = MemoryConfig(rows=tuple(flags.rows), branching=branching, dtype=flags.table_dtype)
  config = OptimizerConfig(
    peak_learning_rate=1e-4,
    final_learning_rate=1e-5,
    warmup_steps=10,
    weight_decay=1e-3,
    bank_update=optimizer,
    bank_moment_dtype=flags.moment_dtype,
  )
  mesh = make_mesh()
  model = ModelConfig(anchor=anchor, memory=memory)
  run = TrainingRun(model=model, optimizer=config, steps=1000, batch_size=flags.batch)
  program = make_program(run, mesh)
  batches = [
    place_batch(random_batch(flags.batch, flags.length, flags.vocab, memory.num_leaves, seed), mesh)
    for seed in range(BATCHES)
  ]
  key, state = program.replicate(jax.random.key(0)), filled_state(program)
  next_batch = functools.partial(next, itertools.cycle(batches))

  @jax.jit
  def forward(params, batch):
    block = fetch(params["bank"], batch["memory_leaf"], model, mesh)
    return anchor_losses(anchor, params["anchor"], batch, block)[0].mean()

  gradients = make_gradients(model, mesh, objective=run.objective)
  backward = jax.jit(lambda params, batch: gradients(params, batch["memory_leaf"], batch))
  make_step = make_update(run.transformation())
  update = jax.jit(lambda state, grads, key: make_step(state, grads, key)[0], donate_argnums=0)
  grads = [backward(state.params, batch)[0] for batch in batches]
  next_grads = functools.partial(next, itertools.cycle(grads))
  compiled = program.lower(flags.length).compile()

  def run_update():
    nonlocal state
    state = update(state, next_grads(), key)
    return state

  def run_step():
    nonlocal state
    state, metrics = compiled(state, next_batch(), key)
    return state, metrics

  sizes = {
    "optimizer": optimizer,
    "bank_params": model.bank_params,
    "fetched_params": flags.batch * model.fetched_params,
    "peak_bytes": peak_bytes(compiled),
  }
  parts = {
    "forward": lambda: forward(state.params, next_batch()),
    "gradients": lambda: backward(state.params, next_batch()),
    "update": run_update,
    "step": run_step,
  }
  return sizes, parts


def measure(flags: argparse.Namespace, optimizer: str) -> list[dict]:
  """A row for each bank, all of them timed in turns."""
  banks = [prepare(flags, optimizer, branching) for branching in flags.branching]
  functions = {(index, name): run for index, (_, parts) in enumerate(banks) for name, run in parts.items()}
  times = in_turns(functions, flags.rounds)
  rows = []
  for index, (sizes, _) in enumerate(banks):
    forward, gradients, update, step = (times[index, name] for name in ("forward", "gradients", "update", "step"))
    rows.append(
      sizes | {"forward_ms": forward, "backward_ms": gradients - forward, "update_ms": update, "step_ms": step}
    )
  return rows


def main(argv: list[str]) -> int:
  """Prints the table; 2 and one line on bad input."""
  try:
    flags = parse(argv)
    rows = [row for optimizer in flags.optimizers for row in measure(flags, optimizer)]
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  if flags.json:
    print(json.dumps([{column: row[column] for column in COLUMNS} for row in rows], indent=2))
    return 0
  print(table(COLUMNS, rows))
  for optimizer in flags.optimizers:
    own = [row for row in rows if row["optimizer"] == optimizer]
    first, last = own[0], own[-1]
    print(
      f"{optimizer}: a bank of {last['bank_params'] / first['bank_params']:.1f} times the parameters takes"
      f" {last['step_ms'] / first['step_ms']:.2f} times as long a step"
    )
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
