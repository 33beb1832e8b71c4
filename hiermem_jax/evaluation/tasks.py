"""Public question sets, measured in several modes of the memory; what is measured is kept at once."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from hiermem_jax.data.corpus.reading import good_texts
from hiermem_jax.data.sources import Source
from hiermem_jax.data.tasks.metrics import Output, judge, summarize
from hiermem_jax.data.tasks.requests import Request, read_requests
from hiermem_jax.data.tasks.table import GENERATED_KINDS, task_spec
from hiermem_jax.data.text.mentions import count_mentions
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.errors import InputError, listed
from hiermem_jax.evaluation.config import RagConfig, ScoringConfig, TaskSet
from hiermem_jax.evaluation.inputs import source_state
from hiermem_jax.evaluation.loading import LoadedModel
from hiermem_jax.evaluation.modes import Mode
from hiermem_jax.evaluation.perplexity import article_perplexity
from hiermem_jax.evaluation.rag import load_documents
from hiermem_jax.evaluation.scoring import Scorer
from hiermem_jax.evaluation.store import ResultStore

NEW_TOKENS = {"generation": 32, "number": 10}  # how many are generated
_RESULTS = 2  # what a stored result holds; an older one is measured again


def task_files(tasks: TaskSet) -> dict[str, str]:
  """Path of every task's file, by the name that the report has for the task.

  Raises:
    InputError: there is no such task or no such file, or a task is named twice.
  """
  files = {}
  for entry in tasks.names:
    name, _, path = entry.partition("=")
    spec = task_spec(name)
    if path:
      file = path
    elif tasks.data is not None:
      file = os.path.join(tasks.data, spec.file)
    else:
      raise InputError(f"task {name}: bind TaskSet.data, the directory of {spec.file}, or give '{name}=PATH'")
    if not os.path.isfile(file):
      folder = os.path.dirname(file) or "."
      entries = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
      raise InputError(
        f"task {name}: no data at {file} (its folder has {listed(entries)}); put the file there, give '{name}=PATH', or"
        " leave the task out"
      )
    label = name if pathlib.Path(file).name == spec.file else f"{name}={pathlib.Path(file).stem}"
    if label in files:
      raise InputError(f"TaskSet.names: {label} is there twice; leave one out")
    files[label] = file
  return files


def answer(
  kind: str, requests: Sequence[Request], leaf: np.ndarray, scorer: Scorer, tokenizer: Tokenizer
) -> list[Output]:
  """What a model answers to the requests of a task.

  1. The continuation of every request is scored; of generation tasks that is the first accepted answer.
  2. Of generation tasks, the context is continued greedily, up to the end of the text or of the line.

  Args:
    kind: of the task.
    requests: n requests.
    leaf: int32 [n] leaf ids.
    scorer: the model.
    tokenizer: of the requests.

  Returns:
    One output per request.
  """
  prompts = [request.inputs for request in requests]
  scores, greedy = scorer.score_continuations(prompts, [request.targets for request in requests], leaf)
  outputs = [Output(log_likelihood=s, is_greedy=g) for s, g in zip(scores.tolist(), greedy.tolist())]
  if kind in GENERATED_KINDS:
    newline = tokenizer.encode("\n")
    stop = [tokenizer.eot_id, *(newline if len(newline) == 1 else [])]
    texts = map(tokenizer.decode, scorer.generate(prompts, leaf, NEW_TOKENS[kind], stop))
    outputs = [dataclasses.replace(output, text=text) for output, text in zip(outputs, texts)]
  return outputs


class TaskEvaluation:
  """Measures one model on tasks and on articles, in some modes; each result is kept as soon as it exists."""

  def __init__(
    self,
    loaded: LoadedModel,
    modes: Sequence[Mode],
    scoring: ScoringConfig,
    directory: str,
    *,
    rag: RagConfig | None = None,
    max_items: int | None = None,
  ):
    """Prepares to measure.

    Args:
      loaded: the model.
      modes: those to measure.
      scoring: how text is scored.
      directory: where results are kept; one that was measured in the same way before is not measured again.
      rag: what 'rag' modes put in front of questions.
      max_items: of each task and of the articles, the first ones; None: all.

    Raises:
      InputError: a mode needs paraphrases, which tasks do not have.
    """
    if any(mode.path == "paraphrased" for mode in modes):
      raise InputError("mode 'paraphrased': the questions of tasks have no paraphrases; leave it out")
    self._loaded, self._modes, self._scoring = loaded, modes, scoring
    self._rag, self._max_items, self._store = rag, max_items, ResultStore(directory)
    self._in_modes = loaded.in_modes(scoring)
    self._documents = functools.cache(lambda: None if rag is None else load_documents(rag, ".", loaded))

  @property
  def about(self) -> dict[str, Any]:
    """What the results are of, JSON."""
    about = {"step": self._loaded.model.metadata["step"], "context_length": self._scoring.max_length}
    fingerprints = {name: self._loaded.model.metadata[f"{name}_fingerprint"] for name in ("tree", "tokenizer")}
    return about | {"max_items": self._max_items} | fingerprints

  def task(self, label: str, file: str, shots: int | None) -> dict[str, Any]:
    """Measures a task.

    Args:
      label: name of the task, maybe with the name of its file behind '='.
      file: its path.
      shots: few-shot examples; None: the task's own number.

    Returns:
      Per mode `metrics` (see `summarize`), `items` (see `judge`) and `truncated`, the number of prompts that were too
      long and lost their beginning.
    """
    name = label.split("=")[0]
    read = functools.partial(read_requests, name, file, self._loaded.tokenizer)
    requests = functools.cache(lambda: read(shots=shots, max_items=self._max_items))
    content = hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:16]
    results = {}
    for mode in self._modes:
      settings = self._key(
        shots=shots,
        file=content,
        documents=[repr(self._rag), *source_state(self._rag.documents)] if self._rag and mode.document else None,
      )
      measure = functools.partial(self._measure_task, name, requests, mode)
      metrics = (result := self._store.get(f"{label}.{mode.name}", settings, measure))["metrics"]
      results[mode.name] = result
      likelihood = metrics["log_likelihood_per_token"]
      share, count = 100 * metrics["accuracy"], metrics["count"]
      logging.info("%s, %s: %.1f%% of %d, %.3f nats per token", label, mode.name, share, count, likelihood)
    return results

  def articles(self, source: Source) -> dict[str, Any]:
    """Perplexity of articles by mode, each with the memory of its own path; 'rag' modes are left out."""
    texts = functools.cache(lambda: list(good_texts(source))[: self._max_items])
    results = {}
    for mode in self._modes:
      if mode.document:  # an article would be its own document
        continue
      measure = functools.partial(self._measure_articles, texts, mode)
      results[mode.name] = self._store.get(f"articles.{mode.name}", self._key(articles=source_state(source)), measure)
      logging.info("articles, %s: perplexity %.2f", mode.name, results[mode.name]["perplexity"])
    return results

  def mentions(self, names: Iterable[str], corpus: Source) -> dict[str, int]:
    """How often a corpus mentions each name."""
    names = sorted(set(names))
    key = {"corpus": source_state(corpus), "names": hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]}
    return self._store.get("counts", key, lambda: count_mentions(names, good_texts(corpus)))

  def _key(self, **settings: Any) -> Mapping[str, Any]:
    digests = self._loaded.model.metadata["digests"]
    return {
      "results": _RESULTS,
      "parameters": {name: digests[name] for name in ("anchor", "bank") if name in digests},
    } | (self.about | settings | ({} if (dtype := self._loaded.files.bank_dtype) is None else {"bank_dtype": dtype}))

  def _measure_task(self, name: str, requests, mode: Mode) -> dict[str, Any]:
    asked, kind, scorer = requests(), task_spec(name).kind, self._in_modes.scorer(mode)
    questions = [request.retrieval for request in asked]
    leaf = self._in_modes.leaves(mode, questions)
    shown = self._behind_documents(kind, asked, questions) if mode.document else asked
    items = judge(kind, asked, answer(kind, shown, leaf, scorer, self._loaded.tokenizer))
    lengths = [len(r.inputs) + (NEW_TOKENS.get(kind) or len(r.targets)) for r in shown]
    truncated = sum(length > self._scoring.max_length for length in lengths)
    return {"metrics": summarize(kind, items), "truncated": truncated, "items": items}

  def _behind_documents(self, kind: str, requests: Sequence[Request], questions: Sequence[str]) -> list[Request]:
    following = max(NEW_TOKENS.get(kind, 0), *(len(request.targets) for request in requests))
    documents = self._documents()
    assert documents is not None  # a mode with documents needs a `RagConfig`
    plain = [request.inputs for request in requests]
    prompts = documents.prepend(plain, questions, following, self._scoring.max_length)
    return [dataclasses.replace(request, inputs=tuple(prompt)) for request, prompt in zip(requests, prompts)]

  def _measure_articles(self, texts, mode: Mode) -> dict[str, float]:
    tokenizer = self._loaded.tokenizer
    documents = [[*ids, tokenizer.eot_id] for ids in tokenizer.encode_batch(texts())]
    return article_perplexity(documents, self._in_modes.leaves(mode, texts()), self._in_modes.scorer(mode))
