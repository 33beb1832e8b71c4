r"""The sentence encoder beside transformers in torch: the same vectors, and as many texts per second?

  python experiments/benchmarks/encoder.py [--quick] [--json]
  python experiments/benchmarks/encoder.py --model=DIRECTORY/all-MiniLM-L6-v2 --texts=DIRECTORY/train-00000.jsonl.gz

Without `--model` a model of MiniLM's shape with random weights is made, without `--texts` documents of random words.
Both sides run the same batches on all cores: texts sorted by length, `--batch` of them, or more where they are shorter;
torch pads to the longest, ours to a multiple of 32. The tokenizer is outside the timing. torch runs as
sentence-transformers runs it (BertModel in inference mode, its default attention, mean pooling, unit norm). They take
turns. `cosine_min` is the smallest cosine between the two vectors of a text in float32, `cosine_min_bfloat16` where
ours computes in bfloat16, `throughput_ratio` our texts per second over torch's (medians). The limit is FLOPs:
`flops_share` is our rate, padding included, over that of a float32 matmul of 2048 x 2048 in the same run.
"""

import argparse
import itertools
import json
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from common import in_turns, require_positive, table

from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.encoders import SentenceTransformer

COLUMNS = ["texts", "word_pieces", "cosine_min", "cosine_min_bfloat16", "texts_per_second", "torch_texts_per_second"]
COLUMNS += ["throughput_ratio", "word_pieces_per_second", "flops_share"]
_MATMUL = 2048


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", help="a sentence-transformers directory")
  parser.add_argument("--texts", help="JSON lines with the field text: a path or a glob")
  parser.add_argument("--count", type=int, default=1000, help="texts to compare")
  parser.add_argument("--timed", type=int, default=128, help="of these, texts to time")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--max_word_pieces", type=int, default=256)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--quick", action="store_true", help="48 texts at most, 2 rounds: under a minute")
  parser.add_argument("--json", action="store_true", help="print JSON")
  flags = parser.parse_args(argv)
  if flags.quick:
    flags.count, flags.timed, flags.rounds = min(flags.count, 48), min(flags.timed, 32), min(flags.rounds, 2)
  require_positive(flags, "count", "timed", "batch", "max_word_pieces", "rounds")
  return flags


def make_model(directory: str) -> None:
  """Writes a sentence-transformers directory of MiniLM's shape with random weights and a vocabulary of words."""
  import tokenizers
  import transformers

  transformers.BertModel(
    transformers.BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
  ).save_pretrained(directory)
  vocabulary = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(word, range(30_000))])}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
  tokenizer.save(f"{directory}/tokenizer.json")
  kinds = [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Normalize")]
  pooling = {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True}
  (pathlib.Path(directory) / "1_Pooling").mkdir()
  (pathlib.Path(directory) / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
  (pathlib.Path(directory) / "modules.json").write_text(json.dumps(kinds))


def word(i: int) -> str:
  """A word of the random documents."""
  return f"word{i}"


def read_texts(pattern: str | None, count: int) -> list[str]:
  """The first texts of the files, or random documents of 20 to 400 words."""
  if pattern is not None:
    return [record["text"] for record in itertools.islice(JsonlSource(pattern=pattern).records(), count)]
  rng = np.random.default_rng(0)
  return [" ".join(map(word, rng.integers(0, 30_000, rng.integers(20, 400)))) for _ in range(count)]


class TorchEncoder:
  """The reference."""

  def __init__(self, directory: str):
    import torch
    import transformers

    self._model = transformers.BertModel.from_pretrained(directory, dtype=torch.float32).eval()

  def run(self, ids: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Unit vectors [b, D] of padded word pieces [b, S] and their numbers [b]."""
    import torch

    ids = ids[:, : sizes.max()]
    mask = torch.arange(ids.shape[1]) < torch.tensor(sizes)[:, None]
    with torch.inference_mode():
      hidden = self._model(torch.tensor(ids), attention_mask=mask.long()).last_hidden_state
      pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
      return torch.nn.functional.normalize(pooled).numpy()


def measure(flags: argparse.Namespace, directory: str) -> dict:
  """All numbers of the report."""
  texts = read_texts(flags.texts, flags.count)
  settings = {"model": directory, "max_word_pieces": flags.max_word_pieces}
  settings["batch_word_pieces"] = flags.batch * flags.max_word_pieces
  ours = SentenceTransformer(dtype="float32", **settings).fit([])
  torch_side = TorchEncoder(directory)

  reference = np.empty((len(texts), ours.dim), np.float32)
  for rows, ids, sizes in ours.batches(texts):
    reference[rows] = torch_side.run(ids, sizes)[: len(rows)]
  cosines = {}
  for dtype in ("float32", "bfloat16"):
    encoder = SentenceTransformer(dtype=dtype, **settings).fit([])
    cosines[dtype] = float(np.sum(encoder.encode(texts) * reference, axis=1).min())

  timed = texts[: flags.timed]
  batches = [(ids, sizes) for _, ids, sizes in ours.batches(timed)]
  square = jnp.ones((_MATMUL, _MATMUL), jnp.float32)
  matmul = jax.jit(lambda x: x @ x)
  times = in_turns(
    {
      "ours": lambda: [ours.run(*batch) for batch in batches],
      "torch": lambda: [torch_side.run(*batch) for batch in batches],
      "matmul": lambda: matmul(square),
    },
    flags.rounds,
  )
  per_second = {name: 1e3 * len(timed) / times[name] for name in ("ours", "torch")}
  peak = 2 * _MATMUL**3 / times["matmul"]
  flops = sum(len(ids) * ours.flops(ids.shape[1]) for ids, _ in batches)
  pieces = int(sum(sizes[: len(rows)].sum() for rows, _, sizes in ours.batches(timed)))
  return {
    "texts": len(texts),
    "word_pieces": pieces / len(timed),
    "cosine_min": cosines["float32"],
    "cosine_min_bfloat16": cosines["bfloat16"],
    "texts_per_second": per_second["ours"],
    "torch_texts_per_second": per_second["torch"],
    "throughput_ratio": per_second["ours"] / per_second["torch"],
    "word_pieces_per_second": 1e3 * pieces / times["ours"],
    "flops_share": flops / times["ours"] / peak,
  }


def main(argv: list[str]) -> int:
  """Prints the report; 2 and one line on bad input."""
  try:
    flags = parse(argv)
    with tempfile.TemporaryDirectory() as directory:
      if flags.model is None:
        make_model(directory)
      report = measure(flags, flags.model or directory)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  if flags.json:
    print(json.dumps(report, indent=2))
    return 0
  # The cosines are too near to 1 for two decimals.
  print(table(COLUMNS, [{k: f"{v:.7f}" if k.startswith("cosine") else v for k, v in report.items()}]))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
