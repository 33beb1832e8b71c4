"""One model, measured in several modes of its memory: held-out loss, and answers to questions about facts."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from hiermem_jax import console
from hiermem_jax.data.packed.batches import in_order
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.errors import InputError
from hiermem_jax.evaluation import items
from hiermem_jax.evaluation import probes as probing
from hiermem_jax.evaluation.modes import MemoryModes, Mode, parse_modes
from hiermem_jax.evaluation.perplexity import sequence_losses
from hiermem_jax.evaluation.probes import Probe
from hiermem_jax.evaluation.rag import Documents, relative_flops
from hiermem_jax.models.config import MemoryConfig, ModelConfig

BASELINE, NONE = "baseline", "none"


def parse(names: Sequence[str], *, has_probes: bool, has_documents: bool) -> list[Mode]:
  """Parses modes, and checks that what they need besides the model is there.

  Raises:
    InputError: there is no such mode, or it needs probes or documents that are not there.
  """
  modes = list(map(Mode.parse, names))
  for mode in modes:
    if mode.needs_questions and not has_probes:
      raise InputError(f"mode {mode.name!r}: is about questions; bind evaluate.probes, or leave it out")
    if mode.document and not has_documents:
      raise InputError(f"mode {mode.name!r}: without documents; bind evaluate.rag = @RagConfig(), or leave it out")
  return modes


def check(modes: Sequence[Mode], memory: MemoryConfig | None) -> list[Mode]:
  """The modes that a model can be measured in: of one without a bank those that are about questions.

  Raises:
    InputError: the model has not the memory for one of these.
  """
  return parse_modes([mode.name for mode in modes if memory is not None or mode.needs_questions], memory)


def measure(
  model: MemoryModes,
  modes: Sequence[Mode],
  dataset: PackedDataset,
  probes: Sequence[Probe],
  buckets: Sequence[int],
  *,
  baseline: MemoryModes | None = None,
  documents: Documents | None = None,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
  """Measures a model in some modes, and a baseline without memory.

  Args:
    model: the model; one without a bank is a baseline itself.
    modes: those to measure.
    dataset: held-out text.
    probes: questions about facts; may be empty.
    buckets: ascending first counts of the buckets that answers are reported for.
    baseline: a model without memory.
    documents: what 'rag' modes put in front of questions.

  Returns:
    By name of the series (`baseline`, then the modes): `loss` and `perplexity` of the held-out text, unless the mode
    needs questions; with probes, `probes`, a list with what `probes.by_bucket` gives for each bucket; of 'rag' modes
    `relative_flops`, forward FLOPs over those of the plain questions without memory. And the same item by item, the
    lines of `items.lines`.
  """
  runs = [(mode.name, model, mode) for mode in modes]
  plain = model if model.model.memory is None else baseline
  if plain is not None:
    runs.insert(0, (BASELINE, plain, Mode.parse(NONE)))
  texts, paraphrases = [probe.text for probe in probes], [probe.paraphrase for probe in probes]
  leaves = {name: held.leaves(mode, texts, paraphrases) for name, held, mode in runs}  # bad modes fail here, early
  bucket = probing.bucket_numbers(probes, buckets)
  series: dict[str, dict[str, Any]] = {}
  losses: dict[str, np.ndarray] = {}
  results: dict[str, list[dict[str, Any]]] = {}
  with console.Progress("mode", len(runs)) as progress:
    for number, (name, held, mode) in enumerate(runs):
      progress.update(number, name)
      series[name], scorer = {}, held.scorer(mode)
      if not mode.needs_questions:
        loss, losses[name] = sequence_losses(scorer, in_order(dataset, held.config.batch_size), mode)
        series[name] = {"loss": loss, "perplexity": math.exp(loss)}
        logging.info("%s: loss %.4f", name, loss)
      if probes:
        asked = probes
        if mode.document:
          assert documents is not None
          asked = _behind_documents(probes, documents, held.config.max_length)
          series[name]["relative_flops"] = _relative_flops(scorer.model.config, mode, asked, probes)
        results[name] = probing.score_probes(scorer, asked, leaves[name])
        correct = 100 * np.mean([result["correct"] for result in results[name]])
        logging.info("%s: %.1f%% of the answers", name, correct)
  for name, found in results.items():
    without = results.get(NONE) if name != NONE else None
    series[name]["probes"] = probing.by_bucket(found, bucket, len(buckets), without)
  return series, list(items.lines(dataset, losses, probes, results))


def _behind_documents(probes: Sequence[Probe], documents: Documents, max_length: int) -> list[Probe]:
  """The probes, each with the document in front that is nearest to it."""
  longest = max(len(probe.answer) for probe in probes)
  prompts = documents.prepend([p.prompt for p in probes], [p.text for p in probes], longest, max_length)
  return [dataclasses.replace(probe, prompt=prompt) for probe, prompt in zip(probes, prompts)]


def about_documents(probes: Sequence[Probe], documents: Documents, max_length: int) -> dict[str, float]:
  """What documents cost: their bytes of text, and mean tokens of a question and its answer with and without them."""
  tokens = {"tokens": _lengths(_behind_documents(probes, documents, max_length)), "plain_tokens": _lengths(probes)}
  return {"text_bytes": documents.text_bytes} | {name: float(lengths.mean()) for name, lengths in tokens.items()}


def _lengths(probes: Sequence[Probe]) -> np.ndarray:
  """Tokens of each prompt with its answer, int [n]."""
  return np.array([len(probe.prompt) + len(probe.answer) for probe in probes])


def _relative_flops(config: ModelConfig, mode: Mode, asked: Sequence[Probe], plain: Sequence[Probe]) -> float:
  if mode.path == "none":
    config = dataclasses.replace(config, memory=None)
  return relative_flops(config, _lengths(asked), _lengths(plain))
