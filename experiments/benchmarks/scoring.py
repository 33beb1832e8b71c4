r"""Throughput of the scoring engine and of greedy generation, beside what the forward pass allows.

  python experiments/benchmarks/scoring.py [--quick] [--json]

Scoring: questions of uneven length (log-normal, 16 to 512 tokens) with four continuations each. `score_ratio` is the
tokens per second of `Scorer.score_continuations`, padding not counted, over those of the bare jitted forward pass, with
logits for every token, on full batches of the median length. Batching by length, padding, host work and transfers cost
something; that only the continuations' tokens get logits saves something. `padding` is the share of positions that are
padding.

Generation: `cache_speedup` is the time to generate by running the whole sequence again for each token over that with
the key/value cache. `decode_ratio` is the bytes per second that decoding steps read (parameters, fetched rows and
cache, once a step) over those of summing an array of that size on the same device: 1.0 when decoding is bound by
memory alone.
"""

import argparse
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from common import random_batch, require_positive, table

from hiermem_jax.errors import InputError
from hiermem_jax.evaluation.scoring import Scorer
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.model import Model, init_params
from hiermem_jax.parallel import make_mesh
from hiermem_jax.parallel.layout import abstract_arrays

SIZES = {
  "tiny": {"num_layers": 1, "width": 16, "num_heads": 2, "head_dim": 8, "mlp_width": 24},
  "small": {"num_layers": 8, "width": 256, "num_heads": 4, "head_dim": 64, "mlp_width": 768},
  "160m": {"num_layers": 35, "width": 512, "num_heads": 12, "head_dim": 32, "mlp_width": 2048},
}
COLUMNS = ["questions", "score_tokens_per_s", "forward_tokens_per_s", "padding", "score_ratio"]
COLUMNS += ["new_tokens_per_s", "cache_speedup", "decode_ratio"]


def model_on(mesh, size: str, dtype: str, vocab_size: int) -> Model:
  """A model whose every number is written."""
  anchor = AnchorConfig(**SIZES[size], dtype=dtype, vocab_size=vocab_size, tied_embeddings=size == "160m")
  memory = MemoryConfig(rows=(16, 16), branching=16)
  config = ModelConfig(anchor=anchor, memory=memory)
  abstract = abstract_arrays(lambda: init_params(jax.random.key(0), config), mesh)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jax.device_put((0.02 * rng.standard_normal(x.shape)).astype(np.float32), x.sharding), abstract
  )
  return Model(config, params, {})


def measure(flags: argparse.Namespace) -> dict:
  """Times both."""
  mesh = make_mesh()
  model = model_on(mesh, flags.size, flags.dtype, flags.vocab_size)
  scorer = Scorer(model, mesh, flags.batch)
  rng = np.random.default_rng(1)
  lengths = np.clip(rng.lognormal(4.3, 0.7, flags.questions), 16, 512).astype(int)
  prompts = [rng.integers(1, flags.vocab_size, length).tolist() for length in np.repeat(lengths, 4)]
  continuations = [rng.integers(1, flags.vocab_size, 6).tolist() for _ in prompts]
  leaf = rng.integers(0, 256, len(prompts)).astype(np.int32)
  tokens = sum(map(len, prompts)) + sum(map(len, continuations))
  scoring = best_of(lambda: scorer.score_continuations(prompts, continuations, leaf), flags.rounds)
  median = -(-int(np.median(lengths) + 6) // 16) * 16
  batch = random_batch(scorer.batch_size, median, flags.vocab_size, 256)
  forward = best_of(lambda: scorer.score_batch(batch), flags.rounds)
  ordered = np.sort(lengths.repeat(4) + 6)[::-1]  # as the engine batches them: by the longest, in multiples of 16
  positions = sum(-(-length // 16) * 16 * scorer.batch_size for length in ordered[:: scorer.batch_size].tolist())

  asked, new = prompts[: scorer.batch_size], flags.new_tokens
  generating = best_of(lambda: scorer.generate(asked, leaf[: len(asked)], new, ()), flags.rounds)
  once = best_of(lambda: scorer.generate(asked, leaf[: len(asked)], 1, ()), flags.rounds)
  longest = -(-(max(map(len, asked)) + new) // 16) * 16
  whole = best_of(lambda: scorer.score_batch(random_batch(len(asked), longest, flags.vocab_size, 256)), flags.rounds)
  step = (generating - once) / (new - 1)
  cache = 2 * len(asked) * longest * model.anchor.num_layers * model.anchor.attention_width
  item = jnp.dtype(flags.dtype).itemsize
  read = 4 * model.anchor.params + item * (len(asked) * model.config.fetched_params + cache)
  return {
    "questions": len(prompts),
    "score_tokens_per_s": tokens / scoring,
    "forward_tokens_per_s": scorer.batch_size * median / forward,
    "padding": 1 - tokens / positions,
    "score_ratio": tokens / scoring / (scorer.batch_size * median / forward),
    "new_tokens_per_s": len(asked) * new / generating,
    "cache_speedup": whole * new / generating,
    "decode_ratio": read / step / copy_bandwidth(int(read)),
  }


def best_of(function, rounds: int) -> float:
  """Seconds of the quickest of some calls, after one that compiles."""
  function()
  times = []
  for _ in range(rounds):
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return min(times)


def copy_bandwidth(size: int) -> float:
  """Bytes per second that a device reads when it sums an array of so many bytes."""
  array = jnp.ones(size // 4, jnp.float32)
  total = jax.jit(jnp.sum)
  return size / best_of(lambda: jax.block_until_ready(total(array)), 5)


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", choices=tuple(SIZES), default="small", help="of the anchor")
  parser.add_argument("--questions", type=int, default=200)
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--new_tokens", type=int, default=32)
  parser.add_argument("--vocab_size", type=int, default=4096)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--quick", action="store_true", help="few questions")
  parser.add_argument("--json", action="store_true", help="print JSON")
  flags = parser.parse_args(argv)
  require_positive(flags, "questions", "batch", "rounds", "vocab_size")
  if flags.new_tokens < 2:
    raise InputError(f"--new_tokens={flags.new_tokens}: the first comes from the prompt; give at least 2")
  if flags.quick:
    flags.questions, flags.batch, flags.new_tokens, flags.rounds = 4, 4, 3, 1
  return flags


def main(argv: list[str]) -> int:
  """Prints the report; 2 and one line on bad input."""
  try:
    flags = parse(argv)
    result = measure(flags)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(json.dumps(result) if flags.json else table(COLUMNS, [result]))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
