r"""Measures runs of the regimes and puts them side by side, as the paper's Table 1.

  python experiments/table1_regimes/table1.py measure runs/regimes_world_0 world >> results.jsonl
  python experiments/table1_regimes/table1.py report results.jsonl          # Markdown tables; writes table1.png

Of every regime, with its generic memory and the fetched one, on held-out text:

perplexity   of all tokens
common       the world: perplexity of its everyday documents, which state no facts; Wikipedia: of the tokens that make
             up the more frequent half of the training text
rare         the world: share of the questions about facts that training states 1 to 15 times that are answered exactly;
             Wikipedia: perplexity of the tokens that make up the rarest tenth of the training text
"""

import dataclasses
import json
import math
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Iterator

import numpy as np

REGIMES = ("anchor", "cotrain", "frozen", "joint", "alone")
LABELS = {
  "anchor": "A1: anchor",
  "cotrain": "A2: co-trained after the anchor",
  "frozen": "A3: beside the frozen anchor",
  "joint": "A4: joint, from scratch",
  "alone": "anchor alone, same tokens (like B3)",
}
RARE = 16  # a fact is rare below this many statements


def measure(run_dir: str, corpus: str) -> dict:
  """One line of results.jsonl: regime -> mode of the memory -> measures."""
  from hiermem_jax.data.packed.reading import PackedDataset
  from hiermem_jax.evaluation.config import ModelFiles, ScoringConfig
  from hiermem_jax.evaluation.loading import load

  seed = int(re.search(r"^SEED = (\d+)", pathlib.Path(run_dir, "config.gin").read_text(), re.MULTILINE)[1])
  held_out = PackedDataset(f"{run_dir}/packed/validation")
  if corpus == "world":
    special = world_measures(run_dir, seed)
  else:
    special = text_measures(held_out, PackedDataset(f"{run_dir}/packed/train"))
  regimes = {}
  for regime in REGIMES:
    loaded = load(run_dir, ModelFiles(directory=regime))
    modes = loaded.in_modes(ScoringConfig())
    regimes[regime] = {
      mode: {"perplexity": perplexity(modes, held_out, mode)} | special(modes, mode)
      for mode in (("generic", "fetched") if loaded.model.memory else ("none",))
    }
    print(f"{regime}: {regimes[regime]}", file=sys.stderr)
  steps = {regime: json.loads(pathlib.Path(run_dir, regime, "report.json").read_text())["steps"] for regime in REGIMES}
  return {"corpus": corpus, "seed": seed, "steps": steps, "regimes": regimes}


def perplexity(modes, dataset, mode: str, weights: np.ndarray | None = None) -> float:
  """Of all tokens, or of those whose weight, by vocabulary number, is one."""
  from hiermem_jax.data.packed.batches import in_order
  from hiermem_jax.evaluation.modes import Mode
  from hiermem_jax.evaluation.perplexity import held_out_loss

  def batches() -> Iterator[dict[str, np.ndarray]]:
    for batch in in_order(dataset, 64):
      if weights is not None:
        batch["decoder_loss_weights"] = batch["decoder_loss_weights"] * weights[batch["decoder_target_tokens"]]
      yield batch

  parsed = Mode.parse(mode)
  return math.exp(held_out_loss(modes.scorer(parsed), batches(), parsed))


def text_measures(held_out, train) -> Callable:
  """Perplexity of frequent and of rare tokens."""
  _, targets, segments = train.read(np.arange(min(len(train), 20_000)))
  counts = np.bincount(targets[segments > 0], minlength=train.manifest.vocab_size)
  order = np.argsort(-counts, kind="stable")
  share = np.cumsum(counts[order]) / counts.sum()
  frequent, rare = np.zeros(len(counts), np.float32), np.zeros(len(counts), np.float32)
  frequent[order[: np.searchsorted(share, 0.5) + 1]] = 1
  rare[order[np.searchsorted(share, 0.9) :]] = 1

  def special(modes, mode):
    return {name: perplexity(modes, held_out, mode, w) for name, w in (("common", frequent), ("rare", rare))}

  return special


def world_measures(run_dir: str, seed: int) -> Callable:
  """Perplexity of everyday documents, and rare facts that are answered."""
  from hiermem_jax import configuration
  from hiermem_jax.data.sources import resolve_data_dir
  from hiermem_jax.data.text.tokenizer import load_tokenizer
  from hiermem_jax.evaluation.modes import Mode
  from hiermem_jax.evaluation.perplexity import article_perplexity
  from hiermem_jax.evaluation.probes import read_probes, score_probes

  configuration.load([str(pathlib.Path(__file__).with_name("world.gin"))], [f"SEED = {seed}"])
  source = configuration.bound_argument("prepare", "validation")
  texts = [record["text"] for record in resolve_data_dir(source, run_dir).records() if record["kind"] == "common"]
  tokenizer = load_tokenizer(f"{run_dir}/tokenizer.model")
  documents = [[*ids, tokenizer.eot_id] for ids in tokenizer.encode_batch(texts)]
  records = resolve_data_dir(dataclasses.replace(source, split="probes"), run_dir).records()
  probes = [probe for probe in read_probes(records, tokenizer) if probe.count < RARE]

  def special(modes, mode):
    mode = Mode.parse(mode)
    scorer = modes.scorer(mode)
    answers = score_probes(scorer, probes, modes.leaves(mode, [probe.text for probe in probes]))
    return {
      "common": article_perplexity(documents, modes.leaves(mode, texts), scorer)["perplexity"],
      "rare": sum(answer["correct"] for answer in answers) / len(answers),
    }

  return special


def report(path: str) -> None:
  """Prints a table per corpus and the orderings by seed; draws both."""
  lines = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
  for corpus in dict.fromkeys(line["corpus"] for line in lines):
    runs = [line for line in lines if line["corpus"] == corpus]
    rare = "rare facts, %" if corpus == "world" else "rare tokens, ppl"
    print(f"\n{corpus}, {len(runs)} seeds: mean ± standard deviation, generic / fetched\n")
    print(f"| regime | steps | common text, ppl | {rare} | perplexity |\n|---|---|---|---|---|")
    for regime in REGIMES:
      cells = [LABELS[regime], str(runs[0]["steps"][regime])]
      for name in ("common", "rare", "perplexity"):
        scale = 100 if (corpus, name) == ("world", "rare") else 1
        cells.append(
          " / ".join(
            spread([scale * run["regimes"][regime][mode][name] for run in runs]) for mode in runs[0]["regimes"][regime]
          )
        )
      print("| " + " | ".join(cells) + " |")
    print("\n| ordering | " + " | ".join(f"seed {run['seed']}" for run in runs) + " |\n|" + "---|" * (len(runs) + 1))
    for what, holds in orderings(corpus).items():
      print(f"| {what} | " + " | ".join("yes" if holds(run["regimes"]) else "no" for run in runs) + " |")
  draw(lines, pathlib.Path(path).with_name("table1.png"))


def spread(values: list[float]) -> str:
  """Mean and standard deviation."""
  return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def orderings(corpus: str) -> dict[str, Callable[[dict], bool]]:
  """What the paper's Table 1 says, as far as it can be said here."""
  better = (lambda a, b: a > b) if corpus == "world" else (lambda a, b: a < b)

  def of(regimes, regime, name, mode):
    held = regimes[regime]
    return held[mode if mode in held else "none"][name]

  def pair(a, b, name, mode="fetched", mode_b=None):
    compare = better if name == "rare" else (lambda x, y: x < y)
    return lambda regimes: compare(of(regimes, a, name, mode), of(regimes, b, name, mode_b or mode))

  return {
    "A2 better than A3, perplexity, fetched": pair("cotrain", "frozen", "perplexity"),
    "A2 better than A4, perplexity, fetched": pair("cotrain", "joint", "perplexity"),
    "A3 better than A4, perplexity, fetched": pair("frozen", "joint", "perplexity"),
    "A2 better than A3, rare, fetched": pair("cotrain", "frozen", "rare"),
    "A2 better than A4, rare, fetched": pair("cotrain", "joint", "rare"),
    "A4 better than A3, rare, fetched": pair("joint", "frozen", "rare"),
    "A2 better than A4, common, fetched": pair("cotrain", "joint", "common"),
    "A2 fetched better than its generic, rare": pair("cotrain", "cotrain", "rare", "fetched", "generic"),
    "A3 fetched better than A1, rare": pair("frozen", "anchor", "rare"),
    "A2 fetched better than the anchor alone, rare": pair("cotrain", "alone", "rare"),
    "A2 fetched better than the anchor alone, perplexity": pair("cotrain", "alone", "perplexity"),
    "A2 generic at least the anchor alone, common": lambda regimes: (
      of(regimes, "cotrain", "common", "generic") <= of(regimes, "alone", "common", "none")
    ),
  }


def draw(lines: list[dict], path: pathlib.Path) -> None:
  """A row of bars per corpus, one panel per measure."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  corpora = list(dict.fromkeys(line["corpus"] for line in lines))
  figure, axes = plt.subplots(len(corpora), 3, figsize=(12, 3.4 * len(corpora)), squeeze=False, layout="constrained")
  colors = {"none": "#4c4c4c", "generic": "#e0a030", "fetched": "#2a7ab9"}
  for row, corpus in zip(axes, corpora):
    runs = [line["regimes"] for line in lines if line["corpus"] == corpus]
    for axis, name in zip(row, ("common", "rare", "perplexity")):
      facts = (corpus, name) == ("world", "rare")
      for place, regime in enumerate(REGIMES):
        modes = list(runs[0][regime])
        for number, mode in enumerate(modes):
          values = [(100 if facts else 1) * run[regime][mode][name] for run in runs]
          x = place + (number - (len(modes) - 1) / 2) * 0.38
          error = statistics.stdev(values) if len(values) > 1 else 0
          axis.bar(x, statistics.mean(values), 0.36, yerr=error, color=colors[mode], capsize=2)
      axis.set_xticks(range(len(REGIMES)), ("A1", "A2", "A3", "A4", "alone"))
      rare = "rare facts" if facts else "rare tokens"
      title = {"common": "common text", "rare": rare, "perplexity": "all text"}[name]
      axis.set_title(f"{corpus}: {title}, {'% answered' if facts else 'perplexity'}", fontsize=10)
      axis.spines[["top", "right"]].set_visible(False)
      if not facts:
        low = min(run[r][m][name] for run in runs for r in REGIMES for m in run[r])
        axis.set_ylim(bottom=max(1, low - 0.3 * (axis.get_ylim()[1] - low)))
  handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
  figure.legend(handles, ("no memory", "generic memory", "fetched memory"), loc="outside lower center", ncols=3)
  figure.savefig(path, dpi=150)


def main(argv: list[str]) -> None:
  """The command line."""
  if len(argv) == 3 and argv[0] == "measure" and argv[2] in ("world", "wikipedia"):
    print(json.dumps(measure(argv[1], argv[2])))
  elif len(argv) == 2 and argv[0] == "report":
    report(argv[1])
  else:
    sys.exit("usage: table1.py measure RUN_DIR world|wikipedia, or table1.py report results.jsonl")


if __name__ == "__main__":
  main(sys.argv[1:])
