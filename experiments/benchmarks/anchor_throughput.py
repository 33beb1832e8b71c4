r"""Tokens per second and MFU of the anchor's training step, alone or beside other decoders of the same shape.

  python experiments/benchmarks/anchor_throughput.py [--quick] [--json] \
    --peer experiments/benchmarks/peers/lm1b.py=DIRECTORY/flax/examples/lm1b

The step is the one that `train` runs (forward, backward, clipping, AdamW, donated state) on one batch in memory, whose
sequences hold `--documents` documents each: a token attends within its own. A peer is a Python file that defines
`training_step(flags, batch)`, which returns a function that starts one more step of another decoder on the same batch
and returns its results; what stands after `=` is the folder that its imports are found in.

All sides live in this process and take turns of one step, `--rounds` times; the order rotates from round to round. A
ratio is the median over the rounds of their step's time over ours in the same round, with the 95% interval of that
median (bootstrap over rounds). By CPU time (of all threads of this process) a ratio counts no time in which other work
had the cores; on an accelerator it says nothing. `control` is our step a second time, with a state of its own: what its
ratio differs from 1.00 is noise, and so is that much of any other.

The default shape is a small one for a CPU: 4 layers of width 256, tied embeddings, and a SwiGLU of 688, which has the
parameters of a two-matrix feed-forward layer of 1,032 (3 * 688 = 2 * 1,032; the peers have 1,024). For an accelerator:

  --dtype=bfloat16 --layers=12 --width=768 --heads=12 --mlp_width=2048 --vocab=50432 --length=2048 --batch=8
"""

import argparse
import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable

import jax
import numpy as np
from common import in_rotated_turns, matmul_flops, published_peak, random_batch, require_positive

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, ModelConfig
from hiermem_jax.parallel import MeshConfig, make_mesh, place_batch
from hiermem_jax.training.config import Objective, TrainingRun
from hiermem_jax.training.optimizer import OptimizerConfig
from hiermem_jax.training.program import make_program

SIDES = ("ours", "control")


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  sizes = {"layers": 4, "width": 256, "heads": 4, "head_dim": 64, "mlp_width": 688, "vocab": 8192}
  for name, default in (sizes | {"length": 256, "batch": 4, "documents": 4}).items():
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
  parser.add_argument("--unroll", type=int, help="layers in each round of the scan; default: all on a CPU, else one")
  parser.add_argument("--attention", choices=("xla", "splash", "cudnn"), default="xla")
  parser.add_argument("--rounds", type=int, default=40, help="turns of one step that every side takes")
  parser.add_argument("--peer", action="append", default=[], metavar="FILE[=FOLDER]", help="may be repeated")
  parser.add_argument("--peak_flops", type=float, help="FLOP/s of one device, for MFU; default: see `peak_source`")
  parser.add_argument("--quick", action="store_true", help="at most five rounds: under a minute without peers")
  parser.add_argument("--json", action="store_true", help="print JSON")
  flags = parser.parse_args(argv)
  require_positive(flags, "length", "batch", "documents", "rounds")
  if flags.unroll is None:
    flags.unroll = flags.layers if jax.default_backend() == "cpu" else 1
  if flags.quick:
    flags.rounds = min(flags.rounds, 5)
  if flags.documents > flags.length:
    raise InputError(f"--documents={flags.documents}: more than --length={flags.length} tokens; give fewer")
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
    unroll=flags.unroll,
    attention=flags.attention,
  )


def peers_of(flags: argparse.Namespace) -> dict[str, tuple[pathlib.Path, str]]:
  """File and folder of each peer, by the file's name."""
  peers = {}
  for text in flags.peer:
    file, _, folder = text.partition("=")
    path = pathlib.Path(file)
    if path.stem in (*peers, *SIDES):
      raise InputError(f"--peer={text}: a second side named {path.stem}; give every peer's file a name of its own")
    for kind, place in (("file", file), ("folder", folder)):
      if place and not pathlib.Path(place).exists():
        raise InputError(f"--peer={text}: there is no {kind} {place}; write FILE=FOLDER")
    peers[path.stem] = path, folder
  return peers


def load_peer(path: pathlib.Path, folder: str) -> Callable:
  """`training_step` of a peer's file. The next peer's modules may have the names of its own: they are forgotten."""
  before = set(sys.modules)
  sys.path.insert(0, folder)
  try:
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.training_step
  except (ImportError, AttributeError) as error:
    raise InputError(f"--peer={path}={folder}: {error}; mend the file or the folder") from error
  finally:
    sys.path.remove(folder)
    for name in set(sys.modules) - before:
      if folder and (getattr(sys.modules[name], "__file__", None) or "").startswith(folder):
        del sys.modules[name]


def packed_batch(flags: argparse.Namespace) -> dict[str, np.ndarray]:
  """Random tokens; every sequence is cut at random places into `flags.documents` documents."""
  batch = random_batch(flags.batch, flags.length, flags.vocab)
  rng = np.random.default_rng(1)
  starts = np.zeros((flags.batch, flags.length), np.int32)
  for row in starts:
    row[np.append(0, 1 + rng.choice(flags.length - 1, flags.documents - 1, replace=False))] = 1
  batch["decoder_segment_ids"] = starts.cumsum(axis=1, dtype=np.int32)
  batch["decoder_input_tokens"] = batch["decoder_input_tokens"] * (1 - starts)
  index = np.arange(flags.length, dtype=np.int32)
  batch["decoder_positions"] = index - np.maximum.accumulate(index * starts, axis=1)
  return batch


def training_step(anchor: AnchorConfig, batch: dict[str, np.ndarray]) -> Callable[[], object]:
  """A function that starts one more of our training steps on the batch, and returns its results."""
  mesh = make_mesh(MeshConfig(), jax.devices())
  run = TrainingRun(
    model=ModelConfig(anchor=anchor),
    optimizer=OptimizerConfig(peak_learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=100, weight_decay=0.1),
    steps=10_000,
    batch_size=len(batch["memory_leaf"]),
    objective=Objective(z_loss=1e-4),
  )
  program = make_program(run, mesh)
  placed = place_batch(batch, mesh)
  state, key = program.init(jax.random.key(0)), program.replicate(jax.random.key(1))

  def step():
    nonlocal state
    state, metrics = program.step(state, placed, key)
    return state, metrics

  return step


def measure(flags: argparse.Namespace) -> dict:
  """Lets all sides take turns."""
  anchor, devices = anchor_config(flags), jax.devices()
  peers = {name: load_peer(*peer) for name, peer in peers_of(flags).items()}
  peak, source = peak_flops(flags, devices[0])
  batch = packed_batch(flags)
  steps = {name: training_step(anchor, batch) for name in SIDES}
  steps |= {name: make(flags, batch) for name, make in peers.items()}
  times = in_rotated_turns(steps, flags.rounds)
  tokens = flags.batch * flags.length
  speed = tokens / np.median(times["ours"][0])
  # Forward, and twice that backward; what remat computes again is not counted.
  flops = 3 * anchor.flops_per_token(flags.length)
  return {
    "tokens_per_second": speed,
    "step_ms": 1e3 * tokens / speed,
    "flops_per_token": flops,
    "mfu": speed * flops / (peak * len(devices)) if peak else None,
    "peak_flops": peak,
    "peak_source": source,
    "device": devices[0].device_kind,
    "devices": len(devices),
    "params": anchor.params,
    "dtype": flags.dtype,
    "remat": flags.remat,
    "unroll": flags.unroll,
    "attention": flags.attention,
    "documents": flags.documents,
    "rounds": flags.rounds,
    "sides": [side(name, times, tokens) for name in steps],
  }


def side(name: str, times: dict[str, np.ndarray], tokens: int) -> dict:
  """Speed of one side, and its step's time over ours."""
  ratios, cpu_ratios = times[name] / times["ours"]
  resampled = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
  low, high = np.quantile(np.median(resampled, axis=1), (0.025, 0.975))
  slow, middle, fast = np.quantile(tokens / times[name][0], (0.25, 0.5, 0.75)).tolist()
  quartiles = {"tokens_per_second": middle, "lower_quartile": slow, "upper_quartile": fast}
  ratio = {"ratio": float(np.median(ratios)), "interval": [float(low), float(high)]}
  return {"name": name, **quartiles, **ratio, "cpu_ratio": float(np.median(cpu_ratios))}


def peak_flops(flags: argparse.Namespace, device) -> tuple[float | None, str]:
  """FLOP/s of one jax device that MFU is a share of, and where the number comes from."""
  if flags.peak_flops is not None:
    return flags.peak_flops, "--peak_flops"
  if device.platform == "cpu":
    return matmul_flops(flags.dtype), f"fastest {flags.dtype} matmul of 2048 x 2048 in this run"
  if flags.dtype == "bfloat16" and (published := published_peak(device)):
    return published, "published bfloat16 peak"
  return None, "unknown for this device and dtype; give --peak_flops"


def as_table(report: dict) -> str:
  """The report as text, one row per side."""
  rows = [("", "tokens/s (median)", "quartiles", "ours / theirs", "95% interval", "by CPU time")]
  for row in report["sides"]:
    speeds = f"{row['lower_quartile']:,.0f} to {row['upper_quartile']:,.0f}"
    ratio = (f"{row['ratio']:.3f}", "{:.3f} to {:.3f}".format(*row["interval"]), f"{row['cpu_ratio']:.3f}")
    rows.append((row["name"], f"{row['tokens_per_second']:,.0f}", speeds, *ratio))
  width = max(len(row[0]) for row in rows)
  lines = [f"{a:{width}}  {b:>17}  {c:>22}  {d:>13}  {e:>14}  {f:>11}" for a, b, c, d, e, f in rows]
  mfu = "unknown" if report["mfu"] is None else f"{report['mfu']:.1%}"
  peak = "" if report["peak_flops"] is None else f"{report['peak_flops'] / 1e12:,.3f} TFLOP/s, "
  lines += [
    "",
    f"step {report['step_ms']:,.1f} ms, {report['params']:,} parameters, {report['dtype']}, remat {report['remat']},"
    f" unroll {report['unroll']}, attention {report['attention']},",
    f"{report['documents']} documents a sequence, {report['rounds']} rounds",
    f"training FLOPs per token {report['flops_per_token']:,}, MFU {mfu} ({peak}{report['peak_source']})",
    f"device {report['device']} x {report['devices']}",
  ]
  return "\n".join(lines)


def main(argv: list[str]) -> int:
  """Prints the report; 2 and one line on bad input."""
  try:
    flags = parse(argv)
    report = measure(flags)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(json.dumps(report, indent=2) if flags.json else as_table(report))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
