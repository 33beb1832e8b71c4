r"""The data pipeline on one core: its stages, reading batches back, and what DCLM would cost at these rates.

  python experiments/benchmarks/data_pipeline.py [--quick] [--json]
  python experiments/benchmarks/data_pipeline.py --texts=DIRECTORY/train-00000.jsonl.gz \
    --tokenizer=DIRECTORY/tokenizer.model --model=DIRECTORY/all-MiniLM-L6-v2

Without `--texts` documents of random words are made, without `--tokenizer` one is trained on them, without `--model`
the encoder is LSA. Everything is done once, by one process on one core.

stages            tokens of the corpus per second: `read` (parse records), `tokenise` (and cut windows), `embed`,
                  `assign` (descend the tree), `pack` (group, pack, shuffle and write, with the chunks read back)
reading           `tokens_per_second` of one process that reads batches of 8 x 2048, limited by the decoding of records;
                  `consumed`, what training steps of the quickstart's anchor take in on all cores, and the ratio of the
                  two, `read_ratio`; `resume_ratio`, the median time from opening the dataset to the first batch of step
                  100,000 over that to the first batch of step 0
bytes_per_token   of the texts as they are, of the chunks between the two halves of prepare, of the dataset, of the
                  embeddings
dclm              the paper's corpus, 3.2B documents and 4.3T tokens, at these rates: core-hours of every stage, hours
                  of a TPU v5e chip (197 TFLOP/s in bfloat16) for the encoder's FLOPs at 40% of its peak, terabytes
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

_CORES = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(_CORES)})  # before any library counts the cores

import numpy as np
from common import require_positive, table

from hiermem_jax.data.corpus.prepare import prepare
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.packed.batches import Batches
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.data.text.tokenizer import load_tokenizer, train_sentencepiece
from hiermem_jax.data.text.windows import windows_of
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.build import TreeConfig, build_tree
from hiermem_jax.retrieval.encoders import LsaEncoder, SentenceTransformer

_LENGTH, _BATCH = 2048, 8
_TOKENS = 4.3e12  # of DCLM-Baseline (paper, Section 3 and Appendix C)
_V5E_FLOPS, _UTILISATION = 197e12, 0.4
# The anchor of gin/models/tiny.gin on batches of the quickstart.
_QUICKSTART = ["--layers=2", "--width=64", "--heads=2", "--mlp_width=256", "--vocab=1024", "--batch=16", "--length=128"]


def parse(argv: list[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--texts", help="JSON lines with the field text: a path or a glob")
  parser.add_argument("--tokenizer", help="a SentencePiece .model or a Hugging Face tokenizer.json")
  parser.add_argument("--model", help="a sentence-transformers directory; LSA without it")
  parser.add_argument("--count", type=int, default=2000, help="documents")
  parser.add_argument("--batches", type=int, default=400, help="batches to read")
  parser.add_argument("--rounds", type=int, default=7, help="turns of the two starts")
  parser.add_argument("--quick", action="store_true", help="fewer documents and batches")
  parser.add_argument("--json", action="store_true")
  flags = parser.parse_args(argv)
  if flags.quick:
    flags.count, flags.batches, flags.rounds = min(flags.count, 500), min(flags.batches, 100), min(flags.rounds, 5)
  require_positive(flags, "count", "batches", "rounds")
  return flags


def corpus_of(flags: argparse.Namespace, folder: str) -> JsonlSource:
  """The first documents of the files, or random ones of 20 to 2,000 words."""
  if flags.texts is not None:
    return JsonlSource(pattern=flags.texts, max_records=flags.count)
  rng = np.random.default_rng(0)
  words = np.array(["".join(rng.choice(list("aeioulnrstbdm"), rng.integers(2, 10))) for _ in range(20_000)])
  ranks = 1 / np.arange(1, len(words) + 1)
  with open(f"{folder}/corpus.jsonl", "w", encoding="utf-8") as file:
    for _ in range(flags.count):
      text = " ".join(rng.choice(words, int(np.exp(rng.uniform(3, 7.6))), p=ranks / ranks.sum()))
      file.write(json.dumps({"text": text}) + "\n")
  return JsonlSource(pattern=f"{folder}/corpus.jsonl")


def timed(seconds: dict[str, float], name: str, function):
  """The function's result; its time goes into `seconds`."""
  start = time.perf_counter()
  result = function()
  seconds[name] = time.perf_counter() - start
  return result


def measure_stages(flags: argparse.Namespace, folder: str) -> tuple[dict, PackedDataset]:
  """Tokens per second of each stage, bytes per token, and the dataset."""
  source, seconds = corpus_of(flags, folder), {}
  texts = timed(seconds, "read", lambda: [record["text"] for record in source.records()])
  path = flags.tokenizer or train_sentencepiece(texts, f"{folder}/t.model", vocab_size=4096).path
  tokenizer = load_tokenizer(path)
  windows = timed(
    seconds, "tokenise", lambda: list(itertools.chain.from_iterable(windows_of(texts, tokenizer, _LENGTH)))
  )
  tokens = sum(len(w.ids) + w.ends_document for w in windows)
  config = LsaEncoder() if flags.model is None else SentenceTransformer(model=flags.model)
  encoder = config.fit(texts)
  window_texts = [w.text for w in windows]
  if flags.model is not None:
    encoder.encode(window_texts)  # compiles
  embeddings = timed(seconds, "embed", lambda: encoder.encode(window_texts))
  depth = int(np.log(len(windows)) / np.log(4))
  tree = build_tree(embeddings, config=TreeConfig(branching=4, depth=depth), encoder_fingerprint=encoder.fingerprint)
  tree.assign(embeddings[:1])
  timed(seconds, "assign", lambda: tree.assign(embeddings))

  # The time for packing is that of `prepare` without a tree, less that for reading and tokenising.
  here = BeamConfig(options=("--direct_running_mode=in_memory", "--direct_num_workers=1"))
  arguments = {"source": source, "tokenizer": tokenizer, "tree": None, "directory": f"{folder}/packed"}
  dataset = timed(seconds, "prepare", lambda: prepare(**arguments, beam_config=here))
  seconds["pack"] = max(seconds.pop("prepare") - seconds["read"] - seconds["tokenise"], 1e-9)
  stages = [
    {"stage": name, "seconds": seconds[name], "tokens_per_second": tokens / seconds[name]}
    for name in ("read", "tokenise", "embed", "assign", "pack")
  ]
  packed = sum(shard.bytes for shard in dataset.manifest.shards)
  per_token = {
    "texts": sum(len(text.encode()) for text in texts) / tokens,
    "chunks": np.dtype(dataset.manifest.dtype).itemsize + 21 * len(windows) / tokens,  # sizes, ends, keys, leaves
    "dataset": packed / tokens,
    "embeddings": (8 + 4 * encoder.dim) * len(windows) / tokens,
  }
  flops = None if flags.model is None else encoder.flops(encoder.config.max_word_pieces) * len(windows) / tokens
  return {"stages": stages, "bytes_per_token": per_token, "encoder_flops_per_token": flops}, dataset


def measure_reading(flags: argparse.Namespace, dataset: PackedDataset) -> dict:
  """Throughput of the batches, beside what the quickstart trains on, and the time to start at a late step."""
  batches = Batches(dataset, batch_size=_BATCH, seed=0).iterate()
  next(batches)
  start = time.perf_counter()
  for _ in range(flags.batches):
    next(batches)
  per_second = flags.batches * _BATCH * _LENGTH / (time.perf_counter() - start)

  times = {0: [], 100_000: []}
  for _ in range(flags.rounds):
    for step, measured in times.items():
      start = time.perf_counter()
      next(Batches(PackedDataset(dataset.directory), batch_size=_BATCH, seed=0).iterate(step))
      measured.append(time.perf_counter() - start)
  late, first = (statistics.median(times[step]) for step in (100_000, 0))
  consumed = quickstart_appetite()
  return {
    "tokens_per_second": per_second,
    "consumed": consumed,
    "read_ratio": per_second / consumed,
    "resume_ratio": late / first,
  }


def quickstart_appetite() -> float:
  """Tokens per second that the quickstart's anchor trains on with all cores."""
  script = pathlib.Path(__file__).with_name("anchor_throughput.py")
  os.sched_setaffinity(0, _CORES)
  try:
    command = [sys.executable, str(script), "--rounds=20", "--json", *_QUICKSTART]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
  finally:
    os.sched_setaffinity(0, {min(_CORES)})
  return json.loads(done.stdout)["tokens_per_second"]


def dclm(report: dict) -> list[dict]:
  """What the paper's corpus would cost at the measured rates."""
  rows = [
    {"what": f"{row['stage']}, core-hours", "amount": _TOKENS / row["tokens_per_second"] / 3600}
    for row in report["stages"]
  ]
  if report["encoder_flops_per_token"] is not None:
    hours = report["encoder_flops_per_token"] * _TOKENS / (_V5E_FLOPS * _UTILISATION) / 3600
    rows.append({"what": "embed instead, v5e-hours", "amount": hours})
  rows += [{"what": f"{name}, TB", "amount": each * _TOKENS / 1e12} for name, each in report["bytes_per_token"].items()]
  return rows


def main(argv: list[str]) -> int:
  """Prints the report; 2 and one line on bad input."""
  try:
    flags = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
      report, dataset = measure_stages(flags, folder)
      report |= measure_reading(flags, dataset)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  report["dclm"] = dclm(report)
  if flags.json:
    print(json.dumps(report, indent=2))
    return 0
  print(table(["stage", "seconds", "tokens_per_second"], report["stages"]), end="\n\n")
  print(table(["tokens_per_second", "consumed", "read_ratio", "resume_ratio"], [report]), end="\n\n")
  print(table(list(report["bytes_per_token"]), [report["bytes_per_token"]]), end="\n\n")
  print(table(["what", "amount"], report["dclm"]))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
