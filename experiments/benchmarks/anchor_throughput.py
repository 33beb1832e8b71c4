r"""Tokens per second and MFU of the anchor's training step, alone or beside other decoders of the same shape.

  python experiments/benchmarks/anchor_throughput.py [--quick] [--json] \
    --peer "lm1b=python /tmp/peers/lm1b_driver.py"

The step is the one that `train` runs (forward, backward, clipping, AdamW, donated state) on one random batch in memory.
A peer is any shell command whose last line of output is JSON with `tokens_per_second`. Ours and the peers take turns,
`--rounds` times, each in a process of its own with the same environment, so that what else the machine does meets all
of them; `ratio` is our median over theirs.

The default shape is a small one for a CPU: 4 layers of width 256, tied embeddings, and a SwiGLU of 688, which has the
parameters of a two-matrix feed-forward layer of 1,032 (3 * 688 = 2 * 1,032; the peers have 1,024). For an accelerator:

  --dtype=bfloat16 --layers=12 --width=768 --heads=12 --mlp_width=2048 --vocab=50432 --length=2048 --batch=8
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig

# jax's `device_kind` of the TPUs whose peaks `hiermem_jax.pod.topology` has.
_TPUS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "TPU7x": "tpu7x"}
# Dense bfloat16 FLOP/s by the start of `device_kind`, from NVIDIA's data sheets (their figures with sparsity, halved).
_GPU_PEAK_FLOPS = {"NVIDIA A100": 312e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12}


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  sizes = {"layers": 4, "width": 256, "heads": 4, "head_dim": 64, "mlp_width": 688, "vocab": 8192}
  for name, default in (sizes | {"length": 256, "batch": 4}).items():
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
  parser.add_argument("--steps", type=int, default=30, help="timed steps in each round")
  parser.add_argument("--rounds", type=int, default=3, help="turns that ours and every peer take")
  parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="may be repeated")
  parser.add_argument("--peak_flops", type=float, help="FLOP/s of one device, for MFU; default: see `peak_source`")
  parser.add_argument("--quick", action="store_true", help="one round of 10 steps: under a minute without peers")
  parser.add_argument("--json", action="store_true", help="print JSON")
  parser.add_argument("--single", action="store_true", help="one round of ours, in this process, as one line of JSON")
  flags = parser.parse_args(argv)
  if flags.quick:
    flags.steps, flags.rounds = min(flags.steps, 10), 1
  for name in ("length", "batch", "steps", "rounds"):
    if getattr(flags, name) < 1:
      raise InputError(f"--{name}={getattr(flags, name)}: must be positive; give another number")
  if flags.peak_flops is not None and flags.peak_flops <= 0:
    raise InputError(f"--peak_flops={flags.peak_flops}: must be positive; give the FLOP/s of one device")
  return flags


def anchor_config(flags: argparse.Namespace) -> AnchorConfig:
  """The anchor that the flags describe."""
  return AnchorConfig(
    num_layers=flags.layers,
    width=flags.width,
    num_heads=flags.heads,
    head_dim=flags.head_dim,
    mlp_width=flags.mlp_width,
    vocab_size=flags.vocab,
    tied_embeddings=True,
    dtype=flags.dtype,
    remat=flags.remat,
  )


def peers_of(flags: argparse.Namespace) -> dict[str, str]:
  """Shell command of each peer by name."""
  peers = {}
  for text in flags.peer:
    name, equals, command = text.partition("=")
    if not (name and equals and command) or name in peers or name == "ours":
      raise InputError(f"--peer={text}: write NAME=COMMAND, each peer with a name of its own that is not 'ours'")
    peers[name] = command
  return peers


def run_command(name: str, command: str | list[str]) -> dict:
  """Runs one side's turn and returns the JSON object on the last line of its output."""
  done = subprocess.run(command, shell=isinstance(command, str), capture_output=True, text=True)
  lines = done.stdout.strip().splitlines()
  if done.returncode:
    said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
    raise InputError(f"{name}: the command ended with status {done.returncode} ({said}); run it alone and mend it")
  try:
    result = json.loads(lines[-1])
    if result["tokens_per_second"] > 0:
      return result
  except (IndexError, KeyError, TypeError, ValueError):
    pass
  raise InputError(f"{name}: the last line of its output is not JSON with a positive tokens_per_second; print that")


def compare(flags: argparse.Namespace, argv: list[str]) -> dict:
  """Lets ours and the peers take turns; medians over the rounds. This process never touches the device."""
  commands = {"ours": [sys.executable, __file__, *argv, "--single"], **peers_of(flags)}
  rounds = {name: [] for name in commands}
  for _ in range(flags.rounds):
    for name, command in commands.items():
      rounds[name].append(run_command(name, command))
  speeds = {name: [result["tokens_per_second"] for result in results] for name, results in rounds.items()}
  ours = statistics.median(speeds["ours"])
  middle = min(rounds["ours"], key=lambda result: abs(result["tokens_per_second"] - ours))
  report = middle | {"tokens_per_second": ours, "rounds": speeds["ours"]}
  report["peers"] = [
    {
      "name": name,
      "tokens_per_second": statistics.median(speeds[name]),
      "rounds": speeds[name],
      "ratio": ours / statistics.median(speeds[name]),
    }
    for name in commands
    if name != "ours"
  ]
  return report


def single(flags: argparse.Namespace) -> dict:
  """Times our step in this process: median over `flags.steps` steps, each waited for."""
  import jax
  import numpy as np

  anchor = anchor_config(flags)
  devices = jax.devices()
  peak, source = peak_flops(flags, devices[0])
  run = training_step(anchor, flags, devices)
  for _ in range(3):  # compiles, and warms the allocator up
    run()
  times = []
  for _ in range(flags.steps):
    start = time.perf_counter()
    run()
    times.append(time.perf_counter() - start)
  seconds = float(np.median(times))
  tokens_per_second = flags.batch * flags.length / seconds
  # Forward, and twice that backward; what remat computes again is not counted.
  flops = 3 * anchor.flops_per_token(flags.length)
  return {
    "tokens_per_second": tokens_per_second,
    "step_ms": 1e3 * seconds,
    "flops_per_token": flops,
    "mfu": tokens_per_second * flops / (peak * len(devices)) if peak else None,
    "peak_flops": peak,
    "peak_source": source,
    "device": devices[0].device_kind,
    "devices": len(devices),
    "params": anchor.params,
    "dtype": flags.dtype,
    "remat": flags.remat,
  }


def training_step(anchor: AnchorConfig, flags: argparse.Namespace, devices) -> Callable[[], None]:
  """A function that runs one more training step on a fixed random batch and waits for it."""
  import jax
  import numpy as np

  from hiermem_jax.models.config import ModelConfig
  from hiermem_jax.parallel import MeshConfig, make_mesh, place_batch
  from hiermem_jax.training.config import Objective, TrainingRun
  from hiermem_jax.training.optimizer import OptimizerConfig
  from hiermem_jax.training.program import make_program

  mesh = make_mesh(MeshConfig(), devices)
  run = TrainingRun(
    model=ModelConfig(anchor=anchor),
    optimizer=OptimizerConfig(peak_learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=100, weight_decay=0.1),
    steps=10_000,
    batch_size=flags.batch,
    objective=Objective(z_loss=1e-4),
  )
  program = make_program(run, mesh)
  shape = (flags.batch, flags.length)
  tokens = np.random.default_rng(0).integers(1, anchor.vocab_size, shape, dtype=np.int32)
  batch = {
    "decoder_input_tokens": np.pad(tokens[:, :-1], ((0, 0), (1, 0))),
    "decoder_target_tokens": tokens,
    "decoder_segment_ids": np.ones(shape, np.int32),
    "decoder_positions": np.tile(np.arange(flags.length, dtype=np.int32), (flags.batch, 1)),
    "decoder_loss_weights": np.ones(shape, np.float32),
    "memory_leaf": np.zeros(flags.batch, np.int32),
  }
  batch = place_batch(batch, mesh)
  state, key = program.init(jax.random.key(0)), program.replicate(jax.random.key(1))

  def step():
    nonlocal state
    state, metrics = program.step(state, batch, key)
    jax.block_until_ready((state, metrics))

  return step


def peak_flops(flags: argparse.Namespace, device) -> tuple[float | None, str]:
  """FLOP/s of one jax device that MFU is a share of, and where the number comes from."""
  from hiermem_jax.pod.topology import CHIPS

  kind = device.device_kind
  if flags.peak_flops is not None:
    return flags.peak_flops, "--peak_flops"
  if device.platform == "cpu":
    return _matmul_flops(flags.dtype), f"fastest {flags.dtype} matmul of 2048 x 2048 in this run"
  if flags.dtype == "bfloat16" and kind in _TPUS:
    chip = CHIPS[_TPUS[kind]]
    return chip.peak_flops / chip.devices, "published bfloat16 peak"
  # The longest name that fits: "NVIDIA H100 PCIe" before "NVIDIA H100".
  gpu = max((name for name in _GPU_PEAK_FLOPS if kind.startswith(name)), key=len, default=None)
  if flags.dtype == "bfloat16" and gpu:
    return _GPU_PEAK_FLOPS[gpu], "published bfloat16 peak"
  return None, "unknown for this device and dtype; give --peak_flops"


def _matmul_flops(dtype: str, size: int = 2048) -> float:
  """FLOP/s of the fastest of six square matmuls, the first of which compiles."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones((size, size), dtype)
  multiply = jax.jit(jnp.matmul)
  times = []
  for _ in range(6):
    start = time.perf_counter()
    multiply(x, x).block_until_ready()
    times.append(time.perf_counter() - start)
  return 2 * size**3 / min(times)


def as_table(report: dict) -> str:
  """The report as text, one row per side."""
  rows = [("", "tokens/s (median)", "lowest", "highest", "ours / theirs")]
  for name, side in [("ours", report)] + [(peer["name"], peer) for peer in report["peers"]]:
    speeds = (side["tokens_per_second"], min(side["rounds"]), max(side["rounds"]))
    rows.append((name, *(f"{speed:,.0f}" for speed in speeds), f"{side['ratio']:.2f}" if "ratio" in side else ""))
  width = max(len(row[0]) for row in rows)
  lines = [f"{a:{width}}  {b:>17}  {c:>10}  {d:>10}  {e:>13}".rstrip() for a, b, c, d, e in rows]
  mfu = "unknown" if report["mfu"] is None else f"{report['mfu']:.1%}"
  peak = "" if report["peak_flops"] is None else f"{report['peak_flops'] / 1e12:,.3f} TFLOP/s, "
  lines += [
    "",
    f"step {report['step_ms']:,.1f} ms, {report['params']:,} parameters, {report['dtype']}, remat {report['remat']}",
    f"training FLOPs per token {report['flops_per_token']:,}, MFU {mfu} ({peak}{report['peak_source']})",
    f"device {report['device']} x {report['devices']}",
  ]
  return "\n".join(lines)


def main(argv: list[str]) -> int:
  """Prints the report; 2 and one line on bad input."""
  try:
    flags = parse(argv)
    anchor_config(flags)  # what is wrong with the flags is said before anything starts
    peers_of(flags)
    if flags.single:
      print(json.dumps(single(flags)))
    else:
      report = compare(flags, argv)
      print(json.dumps(report, indent=2) if flags.json else as_table(report))
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
