r"""Everything worth measuring on one accelerator, within nine minutes, as one JSON object.

  python experiments/benchmarks/accelerator.py --out=accelerator.json         # one GPU of 80 GB, or one TPU
  python experiments/benchmarks/accelerator.py --preset=small                 # a CPU, in a minute: does it all run?

  ceilings   FLOP/s of a large matmul in bfloat16 and float32, bytes read and written per second by a large copy
  anchors    training step of the 160M, 410M and 1.4B anchors (sequences of 2,048, bfloat16) with every attention kernel
             that the device has: tokens/s, and model FLOP/s as a share of the published peak (`mfu`) and of the matmul
             ceiling (`of_matmul`); `best` is the fastest of each size
  memory     A2's step over its anchor's alone, against the ratio of their FLOPs (see memory_overhead.py)
  encoder    texts/s of an encoder of MiniLM's shape, texts of 256 word pieces; `of_matmul` as above
  scoring    tokens/s of scoring and of greedy generation (see scoring.py)
  bank       milliseconds of the update and of the whole step, lazy and dense, banks of 57M to 4.6B parameters (see
             bank_update.py); `of_copy` is the least bytes that the update moves per second, over the copy ceiling

They run in this order. What fails (out of memory, no such kernel) stands in the report with its `error`; what would
begin after `--seconds` is listed as skipped. `--out` is written after every measurement: a killed run leaves that.
"""

import argparse
import dataclasses
import functools
import gc
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")  # of a GPU's memory, before jax is imported

import anchor_throughput
import bank_update
import jax
import jax.numpy as jnp
import memory_overhead
import numpy as np
import scoring
from common import in_turns, matmul_flops, published_peak, random_batch, seconds_of

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig
from hiermem_jax.retrieval.encoders.bert import BertConfig, BertEncoder

_KERNELS = {"gpu": ("cudnn", "xla"), "tpu": ("splash", "xla"), "cpu": ("xla",)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """Sizes of all measurements.

  Attributes:
    matmul: rows and columns of the ceiling's matrices.
    copied: float32 numbers of the ceiling's array.
    length: tokens of a sequence.
    batch: sequences of a training step.
    anchors: by name.
    encoder: of the texts that are embedded.
    texts: of 256 word pieces, in one batch.
    memory: flags of memory_overhead.py.
    scoring: flags of scoring.py.
    bank: flags of bank_update.py.
    branchings: of the banks.
  """

  matmul: int
  copied: int
  length: int
  batch: int
  anchors: dict[str, AnchorConfig]
  encoder: BertConfig
  texts: int
  memory: tuple[str, ...]
  scoring: tuple[str, ...]
  bank: tuple[str, ...]
  branchings: tuple[int, ...]


def _bert(vocab_size: int, hidden_size: int, layers: int) -> BertConfig:
  sizes = {"vocab_size": vocab_size, "hidden_size": hidden_size, "num_hidden_layers": layers}
  sizes |= {"num_attention_heads": 12, "intermediate_size": 4 * hidden_size, "max_position_embeddings": 512}
  return BertConfig(**sizes, type_vocab_size=2, layer_norm_eps=1e-12)


_WIDE = {"num_layers": 24, "num_heads": 16, "vocab_size": 50432}
FULL = Preset(
  matmul=8192,
  copied=1 << 29,
  length=2048,
  batch=8,
  anchors={
    "160M": AnchorConfig(**memory_overhead.A2, tied_embeddings=True),
    "410M": AnchorConfig(**_WIDE, width=1024, head_dim=64, mlp_width=2816),
    "1.4B": AnchorConfig(**_WIDE, width=2048, head_dim=128, mlp_width=5632),
  },
  encoder=_bert(30522, 384, 6),
  texts=256,
  memory=("--a2", "--batch=8", "--remat=dots", "--bank_update=auto", "--rounds=8"),
  scoring=("--size=160m", "--vocab_size=50432", "--dtype=bfloat16", "--questions=400", "--new_tokens=64"),
  bank=("--dtype=bfloat16", "--rounds=5"),
  branchings=(16, 43, 72),
)
_TINY = ("--layers=1", "--width=16", "--heads=2", "--mlp_width=24")
SMALL = Preset(
  matmul=128,
  copied=1 << 12,
  length=16,
  batch=2,
  anchors={
    "tiny": AnchorConfig(num_layers=2, width=16, num_heads=2, head_dim=8, mlp_width=24, vocab_size=64, dtype="float32")
  },
  encoder=_bert(64, 24, 1),
  texts=2,
  memory=("--layers=1", "--batch=2", "--length=16", "--rounds=1"),
  scoring=("--quick", "--size=tiny", "--vocab_size=64"),
  bank=(*_TINY, "--vocab=32", "--batch=4", "--length=8", "--rounds=1", "--rows", "2", "1"),
  branchings=(2,),
)


def ceilings(preset: Preset, report: dict) -> dict:
  """What the device reaches in the two simplest programs."""
  array = jnp.ones(preset.copied, jnp.float32)
  copy = jax.jit(lambda x: x + 1)
  published = published_peak(jax.devices()[0])
  return {
    "matmul_bfloat16": matmul_flops("bfloat16", preset.matmul),
    "matmul_float32": matmul_flops("float32", preset.matmul),
    "copy_bytes": 2 * array.nbytes / seconds_of(lambda: copy(array)),
    "published_bfloat16": published,
  }


def anchor(preset: Preset, report: dict, *, name: str, attention: str) -> dict:
  """One anchor's training step, keeping as much for the backward pass as fits."""
  batch = random_batch(preset.batch, preset.length, preset.anchors[name].vocab_size)
  for remat in ("none", "dots", "full"):
    config = dataclasses.replace(preset.anchors[name], attention=attention, remat=remat)
    try:
      seconds = seconds_of(anchor_throughput.training_step(config, batch))
      break
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error) or remat == "full":
        raise
    gc.collect()
  rate = preset.batch * preset.length / seconds
  flops, measured = rate * 3 * config.flops_per_token(preset.length), report["ceilings"]
  peak = measured["published_bfloat16"] if config.dtype == "bfloat16" else None
  return {
    "name": name,
    "attention": attention,
    "remat": remat,
    "params": config.params,
    "step_ms": 1e3 * seconds,
    "tokens_per_second": rate,
    "mfu": flops / peak if peak else None,
    "of_matmul": flops / measured[f"matmul_{config.dtype}"],
  }


def memory(preset: Preset, report: dict) -> dict:
  """A2's step over its anchor's, with the kernel that was the fastest for the anchor."""
  best = report["best"][0]["attention"] if report.get("best") else "xla"
  return memory_overhead.measure(memory_overhead.parse([*preset.memory, f"--attention={best}"]))


def encoder(preset: Preset, report: dict) -> dict:
  """Texts per second of the encoder: mean of the positions, unit norm, as FittedSentenceTransformer computes it."""
  config, length = preset.encoder, 256
  model = BertEncoder(config, jnp.bfloat16)
  ids = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (preset.texts, length)), jnp.int32)
  mask = jnp.ones(ids.shape, bool)
  params = jax.jit(model.init)(jax.random.key(0), ids[:1], mask[:1])

  @jax.jit
  def embed(params, ids):
    mean = model.apply(params, ids, mask).mean(axis=1)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)

  rate = preset.texts / seconds_of(lambda: embed(params, ids))
  weights = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
  flops = rate * 2 * length * config.num_hidden_layers * (weights + 2 * length * config.hidden_size)
  return {"texts_per_second": rate, "of_matmul": flops / report["ceilings"]["matmul_bfloat16"]}


def score(preset: Preset, report: dict) -> dict:
  """Scoring and generation; `decode_ratio` is a share of the bandwidth that summing an array reaches."""
  return scoring.measure(scoring.parse(list(preset.scoring)))


def bank(preset: Preset, report: dict, *, optimizer: str, branching: int) -> dict:
  """Update and step of one bank, which is alone in memory."""
  flags = bank_update.parse(list(preset.bank))
  sizes, parts = bank_update.prepare(flags, optimizer, branching)
  times = in_turns({name: parts[name] for name in ("update", "step")}, flags.rounds)
  # Table and two moments in float32 are read and written: all of them, or those of the batch's rows.
  moved = 24 * sizes["bank_params" if optimizer == "dense" else "fetched_params"]
  share = moved / (times["update"] / 1e3) / report["ceilings"]["copy_bytes"]
  return sizes | {"update_ms": times["update"], "step_ms": times["step"], "of_copy": share}


def measurements(preset: Preset) -> list[tuple[str, Callable[[Preset, dict], dict]]]:
  """Section of the report and function of each measurement, in the order in which they run."""
  kernels = _KERNELS.get(jax.default_backend(), ("xla",))
  steps = [functools.partial(anchor, name=name, attention=kernel) for name in preset.anchors for kernel in kernels]
  banks = [
    functools.partial(bank, optimizer=optimizer, branching=branching)
    for branching in preset.branchings
    for optimizer in ("lazy", "dense")
  ]
  alone = [("memory", memory), ("encoder", encoder), ("scoring", score)]
  return [("ceilings", ceilings), *(("anchors", step) for step in steps), *alone, *(("bank", each) for each in banks)]


def measure(preset: Preset, seconds: float, keep: Callable[[dict], None]) -> dict:
  """All measurements that begin within `seconds`; `keep` is given the report after each."""
  start, device = time.monotonic(), jax.devices()[0]
  report: dict[str, Any] = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}
  report |= {"anchors": [], "bank": [], "skipped": []}
  for section, function in measurements(preset):
    settings = getattr(function, "keywords", {})
    if time.monotonic() - start > seconds:
      report["skipped"].append({"section": section, **settings})
      continue
    try:
      result = function(preset, report)
    except Exception as error:  # out of memory in one size must not lose the others
      lines = str(error).strip().splitlines()
      result = settings | {"error": f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]}
    gc.collect()  # the states of this measurement
    if isinstance(report.get(section), list):
      report[section].append(settings | result)
    else:
      report[section] = result
    timed = [row for row in report["anchors"] if "error" not in row]
    report["best"] = [
      max((row for row in timed if row["name"] == name), key=lambda row: row["tokens_per_second"])
      for name in dict.fromkeys(row["name"] for row in timed)
    ]
    report["seconds"] = time.monotonic() - start
    keep(report)
  return report


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--preset", choices=("full", "small"), default="full")
  parser.add_argument("--seconds", type=float, default=480, help="after which no further measurement begins")
  parser.add_argument("--out", type=pathlib.Path, help="file that has the report too, after every measurement")
  flags = parser.parse_args(argv)
  if flags.seconds <= 0:
    raise InputError(f"--seconds={flags.seconds}: must be positive; give more")
  if flags.out and not flags.out.parent.is_dir():
    raise InputError(f"--out={flags.out}: there is no folder {flags.out.parent}; make it")
  return flags


def main(argv: list[str]) -> int:
  """Prints the report; 2 and one line on bad input."""
  try:
    flags = parse(argv)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2

  def keep(report):
    if flags.out:
      flags.out.write_text(json.dumps(report, indent=2))

  report = measure(FULL if flags.preset == "full" else SMALL, flags.seconds, keep)
  print(json.dumps(report, indent=2))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
