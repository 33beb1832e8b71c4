r"""Measures a trained model: held-out perplexity and probe accuracy, for every mode of the memory.

  python -m hiermem_jax.evaluate --gin_file=gin/runs/quickstart.gin --run_dir=runs/quickstart

Prints a table; writes RUN_DIR/evaluation/report.json and report.png.
"""

import math
import os

from absl import logging

from hiermem_jax.data.sources import Source, under
from hiermem_jax.errors import InputError


def evaluate(
  *,
  run_dir: str,
  model: str = ".",
  validation: str = "packed/validation",
  baseline: str | None = None,
  probes: Source | None = None,
  buckets: tuple[int, ...] = (1, 4, 16, 64),
  modes: tuple[str, ...] = ("none", "generic", "fetched"),
  routes: tuple[str, ...] = (),
  attribution: bool = False,
  tokenizer: str = "tokenizer.model",
  tree: str = "tree",
  directory: str = "evaluation",
  batch_size: int = 64,
  title: str = "Hierarchical memory",
) -> None:
  """Evaluates the newest checkpoint of a training.

  Args:
    run_dir: where relative paths start.
    model: training directory of the model with memory.
    validation: packed held-out dataset.
    baseline: training directory of a model without memory, to compare with.
    probes: questions with the fields `prompt`, `answer` and `count` (times the training text states the fact). The
      retriever sees the prompt alone; an answer counts when greedy decoding gives exactly it and a full stop.
    buckets: ascending first counts of the buckets that accuracy is reported for.
    modes: memories to measure: none, generic, fetched, wrong, or some levels, e.g. 'levels 1 2'; see evaluation/modes.
    routes: other ways to a probe's memory: 'blocked 3', 'rank 2', 'cut 50', 'paraphrased'; see evaluation/routes. The
      probes alone are measured with them.
    attribution: also write, for every probe, what its answer loses without each level's block (attribution.jsonl).
    tokenizer: path of the tokenizer.
    tree: directory of the tree and its encoder.
    directory: where the report goes.
    batch_size: sequences scored at once.
    title: of the plot.

  Raises:
    InputError: a checkpoint or a dataset is missing, or they belong to different trees or tokenizers.
  """
  from hiermem_jax.data.batches import in_order
  from hiermem_jax.data.packed import PackedDataset
  from hiermem_jax.data.tokenizer import load_tokenizer
  from hiermem_jax.evaluation import Scorer, check_mode, held_out_loss, keep_levels, mode_levels, probe_accuracy, report
  from hiermem_jax.evaluation.attribution import ablations
  from hiermem_jax.evaluation.routes import Routes, is_route
  from hiermem_jax.parallel import distributed, make_mesh
  from hiermem_jax.retrieval.retriever import load_retriever
  from hiermem_jax.training.checkpoint import load_model

  if unknown := [mode for mode in routes if not is_route(mode)]:
    raise InputError(f"evaluate.routes: {unknown} unknown; write e.g. 'blocked 3', 'blocked 1:5', 'rank 2', 'cut 50'")
  if probes is None and (routes or attribution):
    raise InputError("evaluate.routes and evaluate.attribution are about questions: bind evaluate.probes, or neither")
  mesh = make_mesh()
  dataset = PackedDataset(os.path.join(run_dir, validation))
  loaded_tokenizer = load_tokenizer(os.path.join(run_dir, tokenizer))
  retriever = load_retriever(os.path.join(run_dir, tree))
  trained = load_model(os.path.join(run_dir, model), mesh)
  fingerprint = retriever.tree.fingerprint
  _require_same(f"the tree {tree}", fingerprint, f"the bank of {model}", trained.metadata["tree_fingerprint"])
  _require_same(f"the tree {tree}", fingerprint, validation, dataset.manifest.tree_fingerprint)
  _require_same(tokenizer, loaded_tokenizer.fingerprint, validation, dataset.manifest.tokenizer_fingerprint)

  if trained.memory is None and (routes or attribution):
    raise InputError(f"{model}: has no bank, which evaluate.routes and evaluate.attribution are about; bind neither")
  for mode in modes if trained.memory else ():
    check_mode(mode, trained.memory, "evaluate.modes")
  records = [] if probes is None else list(under(probes, run_dir).records())
  questions = route_probes(records, loaded_tokenizer, retriever)
  logging.info("%d probes", len(questions))

  def scorer(model):
    return Scorer(model, mesh, batch_size, bos_id=loaded_tokenizer.bos_id)

  whole, series = scorer(trained), {}
  runs = [] if baseline is None else [("baseline", scorer(load_model(os.path.join(run_dir, baseline), mesh)), "none")]
  if trained.memory is None:
    runs.append(("baseline", whole, "none"))
  for mode in modes if trained.memory else ():
    levels = mode_levels(mode)
    runs.append((mode, scorer(keep_levels(trained, levels)), "fetched") if levels else (mode, whole, mode))
  for name, model_scorer, mode in runs:
    loss = held_out_loss(model_scorer, in_order(dataset, batch_size), mode)
    series[name] = {"loss": loss, "perplexity": math.exp(loss)}
    if questions:
      series[name]["probes"] = probe_accuracy(model_scorer, questions, buckets, mode)
    logging.info("%s: loss %.4f", name, loss)
  ways = Routes(retriever, [r["prompt"] for r in records], [r.get("paraphrase") for r in records]) if routes else None
  for mode in routes:
    moved = [probe._replace(leaf=int(leaf)) for probe, leaf in zip(questions, ways.leaves(mode, trained.memory))]
    series[mode] = {"probes": probe_accuracy(whole, moved, buckets, "fetched")}
    logging.info("%s: done", mode)
  result = {"series": series}
  if questions:
    result["probes"] = {"buckets": report.bucket_labels(buckets), "first_counts": list(buckets)}
  lines = []
  if attribution:
    settings = {"batch_size": batch_size, "bos_id": loaded_tokenizer.bos_id}
    likelihoods, lost = ablations(trained, mesh, questions, **settings)
    by_bucket = report.by_bucket(lost, [probe.count for probe in questions], buckets)
    result["attribution"] = {"levels": list(trained.memory.levels), "lost_without_level": by_bucket}
    lines = _attribution_lines(records, questions, likelihoods, lost, trained.memory.levels)
  distributed.on_first(lambda: _report(result, lines, os.path.join(run_dir, directory), title))


def _attribution_lines(records, questions, likelihoods, lost, levels) -> list[dict]:
  """What each answer owes to each level's block, nats."""
  return [
    {name: record[name] for name in ("prompt", "answer", "count")}
    | {"leaf": probe.leaf, "log_likelihood": likelihood, "lost_without_level": dict(zip(levels, row))}
    for record, probe, likelihood, row in zip(records, questions, likelihoods.tolist(), lost.tolist())
  ]


def _report(result: dict, attribution: list[dict], directory: str, title: str) -> None:
  """Writes and prints."""
  from hiermem_jax.evaluation import report

  os.makedirs(directory, exist_ok=True)
  if attribution:
    report.write_jsonl(attribution, os.path.join(directory, "attribution.jsonl"))
  report.write_json(result, os.path.join(directory, "report.json"))
  report.plot(result, os.path.join(directory, "report.png"), title)
  print(report.table(result))
  print(f"\nwritten: {directory}/report.json and report.png")


def _require_same(name: str, fingerprint: str, other: str, other_fingerprint: str) -> None:
  if fingerprint != other_fingerprint:
    raise InputError(
      f"{name} has fingerprint {fingerprint}, {other} was made with {other_fingerprint}; use the ones of the same run"
    )


def route_probes(records, tokenizer, retriever):
  """Tokenises probe records and routes each by the text of its prompt alone."""
  from hiermem_jax.evaluation import Probe

  if not records:
    return []
  prompts = [record["prompt"] for record in records]
  prompt_ids = tokenizer.encode_batch(prompts)
  full_ids = tokenizer.encode_batch([f"{record['prompt']} {record['answer']}." for record in records])
  leaves = retriever.route(prompts)
  return [
    Probe(prompt=full[: len(prompt)], answer=full[len(prompt) :], count=record["count"], leaf=int(leaf))
    for record, prompt, full, leaf in zip(records, prompt_ids, full_ids, leaves)
  ]


if __name__ == "__main__":
  from hiermem_jax import cli

  cli.main("evaluate")
