r"""Measures a trained model: held-out perplexity and probe accuracy, for every mode of the memory.

  python -m hiermem_jax.evaluate --gin_file=gin/runs/quickstart.gin --run_dir=runs/quickstart

Prints a table; writes RUN_DIR/evaluation/report.json and report.png.
"""

import math
import os

import numpy as np
from absl import logging

from hiermem_jax.data.sources import Source, resolve_data_dir
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
  rag: tuple[str, ...] = (),
  documents: Source | None = None,
  document_level: int = 3,
  max_length: int = 2560,
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
    rag: modes to measure the probes in with a document in front: the nearest one in the probe's cluster of
      `document_level`. A model without a bank has 'none'.
    documents: where these come from, as a rule the training text.
    document_level: of the tree.
    max_length: tokens of a document with probe and answer; the document loses its end.
    attribution: also write, for every probe, what its answer loses without each level's block (attribution.jsonl).
    tokenizer: path of the tokenizer.
    tree: directory of the tree and its encoder.
    directory: where the report goes.
    batch_size: sequences scored at once.
    title: of the plot.

  Raises:
    InputError: a checkpoint or a dataset is missing, or they belong to different trees or tokenizers.
  """
  from hiermem_jax.data.packed.reading import PackedDataset
  from hiermem_jax.data.text.tokenizer import load_tokenizer
  from hiermem_jax.evaluation import check_mode, report
  from hiermem_jax.evaluation.attribution import ablations
  from hiermem_jax.evaluation.rag import Documents
  from hiermem_jax.evaluation.routes import is_route
  from hiermem_jax.parallel import distributed, make_mesh
  from hiermem_jax.retrieval.retriever import load_retriever
  from hiermem_jax.training.checkpoint import load_model

  if unknown := [mode for mode in routes if not is_route(mode)]:
    raise InputError(f"evaluate.routes: {unknown} unknown; write e.g. 'blocked 3', 'blocked 1:5', 'rank 2', 'cut 50'")
  if probes is None and (routes or attribution or rag):
    raise InputError("evaluate.routes, .attribution and .rag are about questions: bind evaluate.probes, or none")
  if rag and documents is None:
    raise InputError("evaluate.rag: without documents; bind evaluate.documents, e.g. the training text")
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
  for mode in (*modes, *rag) if trained.memory else rag:
    check_mode(mode, trained.memory, "evaluate.modes")
  records = [] if probes is None else list(resolve_data_dir(probes, run_dir).records())
  questions = route_probes(records, loaded_tokenizer, retriever)
  logging.info("%d probes", len(questions))

  settings = {"batch_size": batch_size, "bos_id": loaded_tokenizer.bos_id, "max_length": max_length}
  plain = None if baseline is None else load_model(os.path.join(run_dir, baseline), mesh)
  series = _measure_modes(trained, plain, modes, dataset, questions, buckets, mesh, settings)
  series |= _measure_routes(trained, routes, records, questions, buckets, retriever, mesh, settings)
  result, lines = {"series": series}, []
  if questions:
    result["probes"] = {"buckets": report.bucket_labels(buckets), "first_counts": list(buckets)}
  if rag:
    texts = [record["text"] for record in resolve_data_dir(documents, run_dir).records()]
    found = Documents(texts, retriever, loaded_tokenizer, document_level)
    measured, result["documents"] = _measure_rag(trained, rag, records, questions, buckets, found, mesh, settings)
    series |= measured
  if attribution:
    likelihoods, lost = ablations(trained, mesh, questions, **settings)
    by_bucket = report.by_bucket(lost, [probe.count for probe in questions], buckets)
    result["attribution"] = {"levels": list(trained.memory.levels), "lost_without_level": by_bucket}
    lines = _attribution_lines(records, questions, likelihoods, lost, trained.memory.levels)
  distributed.on_first(lambda: _report(result, lines, os.path.join(run_dir, directory), title))


def _measure_modes(trained, plain, modes, dataset, questions, buckets, mesh, settings) -> dict[str, dict]:
  """Loss on the held-out dataset and accuracy on the questions, of the baseline and of every mode of the memory."""
  from hiermem_jax.data.packed.batches import in_order
  from hiermem_jax.evaluation import Scorer, held_out_loss, keep_levels, mode_levels, probe_accuracy

  whole = Scorer(trained, mesh, **settings)
  runs = [] if plain is None else [("baseline", Scorer(plain, mesh, **settings), "none")]
  if trained.memory is None:
    runs.append(("baseline", whole, "none"))
  for mode in modes if trained.memory else ():
    levels = mode_levels(mode)
    kept = Scorer(keep_levels(trained, levels), mesh, **settings) if levels else whole
    runs.append((mode, kept, "fetched" if levels else mode))
  series = {}
  for name, scorer, mode in runs:
    loss = held_out_loss(scorer, in_order(dataset, settings["batch_size"]), mode)
    series[name] = {"loss": loss, "perplexity": math.exp(loss)}
    if questions:
      series[name]["probes"] = probe_accuracy(scorer, questions, buckets, mode)
    logging.info("%s: loss %.4f", name, loss)
  return series


def _measure_routes(trained, routes, records, questions, buckets, retriever, mesh, settings) -> dict[str, dict]:
  """Accuracy on the questions with the memory of other paths."""
  from hiermem_jax.evaluation import Scorer, probe_accuracy
  from hiermem_jax.evaluation.routes import Routes

  if not routes:
    return {}
  scorer, series = Scorer(trained, mesh, **settings), {}
  ways = Routes(retriever, [r["prompt"] for r in records], [r.get("paraphrase") for r in records])
  for mode in routes:
    moved = [probe._replace(leaf=int(leaf)) for probe, leaf in zip(questions, ways.leaves(mode, trained.memory))]
    series[mode] = {"probes": probe_accuracy(scorer, moved, buckets, "fetched")}
    logging.info("%s: done", mode)
  return series


def _measure_rag(trained, modes, records, questions, buckets, documents, mesh, settings) -> tuple[dict, dict]:
  """Accuracy on the questions with a document in front, with the FLOPs of it; and what the documents are."""
  from hiermem_jax.evaluation import Scorer, probe_accuracy
  from hiermem_jax.evaluation.rag import relative_flops

  scorer, series = Scorer(trained, mesh, **settings), {}
  answer_length = max(len(probe.answer) for probe in questions)
  texts = [record["prompt"] for record in records]
  prompts = documents.prepend([p.prompt for p in questions], texts, answer_length, settings["max_length"])
  longer = [probe._replace(prompt=prompt) for probe, prompt in zip(questions, prompts)]
  lengths, plain = (np.array([len(p.prompt) + len(p.answer) for p in probes]) for probes in (longer, questions))
  for mode in modes:
    fetched = None if mode == "none" else trained.memory
    series[f"rag {mode}"] = {
      "probes": probe_accuracy(scorer, longer, buckets, mode),
      "relative_flops": relative_flops(trained.anchor, fetched, lengths, plain),
    }
    logging.info("rag %s: done", mode)
  about = {"text_bytes": documents.text_bytes, "tokens": float(lengths.mean()), "plain_tokens": float(plain.mean())}
  return series, about


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
