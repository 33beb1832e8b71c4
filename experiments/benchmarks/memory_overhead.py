r"""What fetched FFN-memory adds to a training step, beside the FLOPs that it adds.

  python experiments/benchmarks/memory_overhead.py [--quick] [--json]
  python experiments/benchmarks/memory_overhead.py --a2 --batch=4 --attention=splash   # the paper's A2; needs a TPU

Two training programs on the same batches take turns: the anchor alone, and the anchor with a bank. `step_ratio` is the
median step with memory over the one without, `flop_ratio` the same for model FLOPs (1.1 in the paper, Table 3), and
`overhead` the first over the second: 1.0 when the exchange, the per-sequence matmuls and the row updates are free.

The default is A2's shape scaled down for a CPU: 336 memory neurons to an MLP of 2048 become 84 to 512.
"""

import argparse
import dataclasses
import itertools
import json
import sys

import jax
from common import filled_state, in_turns, random_batch, require_positive, table

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.parallel import make_mesh, place_batch
from hiermem_jax.training.config import TrainingRun
from hiermem_jax.training.optimizer import OptimizerConfig
from hiermem_jax.training.program import make_program

SCALED = {"num_layers": 8, "width": 128, "num_heads": 3, "head_dim": 32, "mlp_width": 512, "vocab_size": 4096}
A2 = {"num_layers": 35, "width": 512, "num_heads": 12, "head_dim": 32, "mlp_width": 2048, "vocab_size": 50432}
COLUMNS = ["batch", "length", "params", "fetched_params", "anchor_ms", "memory_ms", "step_ratio", "flop_ratio"]
COLUMNS += ["overhead"]


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--a2", action="store_true", help="the paper's A2 itself, bfloat16, sequences of 2048")
  parser.add_argument("--layers", type=int, help="of both, where they are not those of A2 or of the smaller shape")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--length", type=int)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"))
  parser.add_argument("--attention", choices=("xla", "splash", "cudnn"), default="xla")
  parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
  parser.add_argument("--logits_chunk", type=int)
  parser.add_argument("--bank_update", choices=("lazy", "dense", "auto"), default="lazy")
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--quick", action="store_true", help="three rounds of shorter sequences")
  parser.add_argument("--json", action="store_true", help="print JSON")
  flags = parser.parse_args(argv)
  flags.length = flags.length or (2048 if flags.a2 else 512)
  flags.dtype = flags.dtype or ("bfloat16" if flags.a2 else "float32")
  require_positive(flags, "batch", "length", "rounds")
  if flags.quick:
    flags.rounds, flags.length = 3, min(flags.length, 256)
  return flags


def measure(flags: argparse.Namespace) -> dict:
  """Times both programs in turns."""
  sizes = dict(A2 if flags.a2 else SCALED)
  sizes["num_layers"] = flags.layers or sizes["num_layers"]
  anchor = AnchorConfig(
    **sizes,
    tied_embeddings=True,
    dtype=flags.dtype,
    attention=flags.attention,
    remat=flags.remat,
    logits_chunk=flags.logits_chunk,
  )
  memory = MemoryConfig(rows=(256, 64, 16, 0)) if flags.a2 else MemoryConfig(rows=(64, 16, 4, 0), branching=12)
  mesh = make_mesh()
  run = TrainingRun(
    model=ModelConfig(anchor=anchor, memory=memory),
    optimizer=OptimizerConfig(
      peak_learning_rate=1e-4,
      final_learning_rate=1e-5,
      warmup_steps=10,
      weight_decay=1e-3,
      bank_update=flags.bank_update,
    ),
    steps=1000,
    batch_size=flags.batch,
  )
  alone = dataclasses.replace(run, model=ModelConfig(anchor=anchor))
  batches = [
    place_batch(random_batch(flags.batch, flags.length, anchor.vocab_size, memory.num_leaves, seed), mesh)
    for seed in range(8)
  ]
  times = in_turns(
    {name: stepper(make_program(side, mesh), batches) for name, side in (("anchor", alone), ("memory", run))},
    flags.rounds,
  )
  step_ratio = times["memory"] / times["anchor"]
  flop_ratio = run.model.flops_per_token(flags.length) / anchor.flops_per_token(flags.length)
  return {
    "batch": flags.batch,
    "length": flags.length,
    "params": anchor.params,
    "fetched_params": run.model.fetched_params,
    "anchor_ms": times["anchor"],
    "memory_ms": times["memory"],
    "step_ratio": step_ratio,
    "flop_ratio": flop_ratio,
    "overhead": step_ratio / flop_ratio,
  }


def stepper(program, batches):
  """A function that runs the program's next step."""
  state, key, batches = filled_state(program), program.replicate(jax.random.key(0)), itertools.cycle(batches)

  def run():
    nonlocal state
    state, metrics = program.step(state, next(batches), key)
    return state, metrics

  return run


def main(argv: list[str]) -> int:
  """Prints the report; 2 and one line on bad input."""
  try:
    flags = parse(argv)
    report = measure(flags)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(json.dumps(report, indent=2) if flags.json else table(COLUMNS, [report]))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
