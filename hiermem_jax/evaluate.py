r"""Measures a trained model: held-out perplexity and answers to probes, for every mode of the memory.

  python -m hiermem_jax.evaluate --gin_file=gin/runs/quickstart.gin --run_dir=runs/quickstart

Prints a table; writes RUN_DIR/evaluation/report.json and report.png, and items.jsonl, the same item by item. A report
that is there and was made of the same model, data and settings is printed again, and nothing is measured.
"""

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refused flag answer at once
  from hiermem_jax import cli

  cli.main("evaluate")

import dataclasses
import os
from typing import Any

from hiermem_jax.data.sources import Source, resolve_data_dir
from hiermem_jax.errors import InputError
from hiermem_jax.evaluation.config import ModelFiles, RagConfig, ScoringConfig


def evaluate(
  *,
  run_dir: str,
  model: ModelFiles = ModelFiles(),  # noqa: B008 (frozen)
  baseline: str | None = None,
  validation: str = "packed/validation",
  probes: Source | None = None,
  buckets: tuple[int, ...] = (1, 4, 16, 64),
  modes: tuple[str, ...] = ("none", "generic", "fetched"),
  rag: RagConfig | None = None,
  attribution: bool = False,
  scoring: ScoringConfig = ScoringConfig(),  # noqa: B008 (frozen)
  directory: str = "evaluation",
  title: str = "Hierarchical memory",
) -> None:
  """Evaluates the newest checkpoint of a training.

  Args:
    run_dir: where relative paths start.
    model: the model with memory, its tree and its tokenizer.
    baseline: training directory of a model without memory, to compare with.
    validation: packed held-out dataset.
    probes: questions with the fields `prompt`, `answer` and `count` (how often the training text states the fact). The
      retriever sees the prompt alone; an answer is correct when greedy decoding gives exactly it and a full stop.
    buckets: ascending first counts of the buckets that answers are reported for.
    modes: memories to measure, e.g. 'none', 'fetched', 'levels 1 2', 'blocked 3', 'rag fetched'; evaluation/modes.py
      lists them. Modes that look at the question's text ('blocked', 'rank', 'cut', 'paraphrased', 'rag') are measured
      on the probes alone. A model without a bank is measured as 'baseline', and in 'rag none'.
    rag: what 'rag' modes put in front of questions.
    attribution: also write, for every probe, by how much its answer gets less likely without each level's block
      (attribution.jsonl).
    scoring: how text is scored.
    directory: where the report goes.
    title: of the plot.

  Raises:
    InputError: a checkpoint or a dataset is missing, they belong to different trees or tokenizers, or a mode is not
      known or needs what is not there.
  """
  from hiermem_jax.evaluation import attribution as attributing
  from hiermem_jax.evaluation import inputs, report, series
  from hiermem_jax.evaluation.loading import load, open_held_out
  from hiermem_jax.evaluation.probes import read_probes
  from hiermem_jax.evaluation.rag import load_documents
  from hiermem_jax.parallel import distributed

  if probes is None and attribution:
    raise InputError("evaluate.attribution: is about questions; bind evaluate.probes, or leave it out")
  parsed = series.parse(modes, has_probes=probes is not None, has_documents=rag is not None)
  settings: dict[str, Any] = {"probes": probes, "buckets": buckets, "modes": modes, "rag": rag, "scoring": scoring}
  settings |= {"attribution": attribution, "title": title, "documents": rag and rag.documents}
  made_of = inputs.describe(run_dir, model, {"baseline": baseline, "validation": validation}, **settings)
  target = os.path.join(run_dir, directory)
  if inputs.is_made_of(target, made_of):
    distributed.on_first(lambda: report.show(target))
    return
  with_documents = any(mode.document for mode in parsed)
  loaded = load(run_dir, model, needs_tree=with_documents)
  parsed = series.check(parsed, loaded.model.memory)
  if loaded.model.memory is None and attribution:
    raise InputError(f"evaluate.attribution: the model in {model.directory} has no bank; leave it out")
  dataset = open_held_out(run_dir, validation, loaded)
  plain = None
  if baseline is not None:
    without = dataclasses.replace(model, directory=baseline)
    plain = load(run_dir, without, mesh=loaded.mesh, setting="evaluate.baseline").in_modes(scoring)
  questions = [] if probes is None else read_probes(resolve_data_dir(probes, run_dir).records(), loaded.tokenizer)
  documents = load_documents(rag, run_dir, loaded) if rag is not None and with_documents else None

  in_modes = loaded.in_modes(scoring)
  found, by_item = series.measure(in_modes, parsed, dataset, questions, buckets, baseline=plain, documents=documents)
  result: dict[str, Any] = {"series": found}
  lines: list[dict[str, Any]] = []
  if questions:
    result["probes"] = {"buckets": report.bucket_labels(buckets), "first_counts": list(buckets)}
  if documents is not None:
    result["documents"] = series.about_documents(questions, documents, scoring.max_length)
  if attribution:
    result["attribution"], lines = attributing.report(in_modes, questions, buckets)

  def write():
    inputs.forget(target)
    report.write(result, lines, target, title, by_item)
    inputs.remember(target, made_of)

  distributed.on_first(write)
