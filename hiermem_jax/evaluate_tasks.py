r"""Evaluates a checkpoint on public question sets and on articles, for every mode of the memory.

  python -m hiermem_jax.evaluate_tasks --gin_file=gin/evaluation/paper.gin --run_dir=runs/a2 \
    --gin_bindings="evaluate_tasks.data = '/data/eval'"

Writes RUN_DIR/evaluation_tasks/report.json, report.md and report.png, and a file for each task and mode with what was
right and wrong item by item. They are kept, so the same command goes on where it was stopped.
"""

import functools
import hashlib
import os
import pathlib

import numpy as np
from absl import logging

from hiermem_jax.data.sources import Source
from hiermem_jax.errors import InputError


def evaluate_tasks(
  *,
  run_dir: str,
  data: str | None = None,
  tasks: tuple[str, ...] = (),
  model: str = ".",
  modes: tuple[str, ...] = ("none", "generic", "fetched"),
  shots: int | None = None,
  max_items: int | None = None,
  context_length: int = 2048,
  articles: Source | None = None,
  corpus: Source | None = None,
  documents: Source | None = None,
  document_level: int = 3,
  frequency_buckets: int = 5,
  tokenizer: str = "tokenizer.model",
  tree: str = "tree",
  directory: str = "evaluation_tasks",
  batch_size: int = 64,
  title: str = "Evaluation",
) -> None:
  """Evaluates the newest checkpoint of a training.

  Args:
    run_dir: where relative paths start.
    data: directory of the tasks' files.
    tasks: names, see data/tasks/table.py; 'cloze=/data/mine.jsonl' gives the path of the file as well.
    model: training directory.
    modes: memories to measure: none, generic, fetched, wrong, 'levels 1 2', and for tasks also 'blocked 3', 'rank 2',
      'cut 50', or any of them behind 'rag ', for a document in front of the question; see evaluation/modes, routes and
      rag. A model without a bank has 'none' and 'rag none'.
    shots: exemplars in front of each question; None: as many as the paper has for the task.
    max_items: of each task and of the articles, the first ones; None: all.
    context_length: tokens of a prompt with its continuation; longer prompts lose their beginning, and are counted.
    articles: documents whose perplexity is measured, each with the memory of its own path.
    corpus: training text, in which elements and subjects of questions are counted, for accuracy by frequency.
    documents: what 'rag' modes retrieve from: the nearest one in the question's cluster.
    document_level: tree level of these clusters.
    frequency_buckets: parts of nearly equal size.
    tokenizer: path of the tokenizer.
    tree: directory of the tree and its encoder.
    directory: where the report goes.
    batch_size: sequences scored at once.
    title: of the report.

  Raises:
    InputError: a checkpoint, a task or its data is missing, a file is of another format, a mode needs a bank that is
      not there, or bank and tree do not belong together.
  """
  from hiermem_jax.data.corpus.reading import good_texts
  from hiermem_jax.data.tasks.table import TASKS, task_spec
  from hiermem_jax.data.text.mentions import count_mentions
  from hiermem_jax.data.text.tokenizer import load_tokenizer
  from hiermem_jax.evaluation import task_report
  from hiermem_jax.evaluation.memory_modes import MemoryModes
  from hiermem_jax.evaluation.rag import Documents
  from hiermem_jax.evaluation.store import ResultStore
  from hiermem_jax.parallel import distributed, make_mesh
  from hiermem_jax.retrieval.retriever import load_retriever
  from hiermem_jax.training.checkpoint import load_model

  files = _files(data, tasks)
  if not files and articles is None:
    raise InputError("evaluate_tasks: nothing to measure; bind evaluate_tasks.tasks or evaluate_tasks.articles")
  mesh = make_mesh()
  trained = load_model(os.path.join(run_dir, model), mesh)
  path = os.path.join(run_dir, tokenizer)
  loaded_tokenizer = load_tokenizer(path)
  _require_same(f"the tokenizer {tokenizer}", loaded_tokenizer.fingerprint, trained.metadata, "tokenizer", model)
  retriever, rag = None, any(mode.startswith("rag ") for mode in modes)
  if rag and documents is None:
    raise InputError("evaluate_tasks.modes: 'rag' without documents; bind evaluate_tasks.documents")
  if trained.memory is not None or rag:
    retriever = load_retriever(os.path.join(run_dir, tree))
    _require_same(f"the tree {tree}", retriever.tree.fingerprint, trained.metadata, "tree", model)
  settings = {"batch_size": batch_size, "bos_id": loaded_tokenizer.bos_id, "max_length": context_length}
  scored = MemoryModes(trained, mesh, retriever, [mode.removeprefix("rag ") for mode in modes], **settings)
  library = functools.cache(lambda: Documents(list(good_texts(documents)), retriever, loaded_tokenizer, document_level))
  about = {"step": trained.metadata["step"], "context_length": context_length, "max_items": max_items, "shots": shots}
  about |= {name: trained.metadata[f"{name}_fingerprint"] for name in ("tree", "tokenizer")}
  store = ResultStore(os.path.join(run_dir, directory))

  results = {}
  for number, (name, file) in enumerate(files.items(), start=1):
    logging.info("task %d of %d: %s", number, len(files), name)
    requests = functools.cache(functools.partial(_requests, name, file, path, shots, max_items))
    key = about | {"file": hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:16]}
    results[name] = {}
    for mode in modes:
      measure = functools.partial(_measure_task, requests, mode, scored, loaded_tokenizer, library, context_length)
      settings = key | ({"documents": repr(documents)} if mode.startswith("rag ") else {})
      result = results[name][mode] = store.get(f"{name}.{mode}", settings, measure)
      logging.info("%s, %s: %.1f%% of %d", name, mode, 100 * result["metrics"]["accuracy"], result["metrics"]["count"])

  counts = None
  subjects = sorted({item["subject"] for result in results.values() for item in result[modes[0]]["items"]} - {""})
  if corpus is not None and subjects:
    key = {"corpus": repr(corpus), "names": hashlib.sha256("\n".join(subjects).encode()).hexdigest()[:16]}
    counts = store.get("counts", key, lambda: count_mentions(subjects, good_texts(corpus)))

  perplexities = {}
  texts = functools.cache(lambda: list(good_texts(articles))[:max_items])
  article_modes = [mode for mode in modes if not mode.startswith("rag ")]  # an article would be its own document
  for mode in article_modes if articles is not None else ():
    measure = functools.partial(_measure_articles, texts, mode, scored, loaded_tokenizer, context_length)
    perplexities[mode] = store.get(f"articles.{mode}", about | {"articles": repr(articles)}, measure)
    logging.info("articles, %s: perplexity %.2f", mode, perplexities[mode]["perplexity"])

  specs = {name: task_spec(name.split("=")[0]) for name in files}
  report = {"title": title, "model": model, "modes": list(modes), **about}
  run = {spec.name for spec in specs.values()}
  report["not_run"] = [name for name, spec in TASKS.items() if spec.group in ("CK", "SK") and name not in run]
  report |= task_report.assemble(specs, results, perplexities, counts, frequency_buckets)
  distributed.on_first(lambda: task_report.write(report, os.path.join(run_dir, directory)))


def _files(data: str | None, tasks: tuple[str, ...]) -> dict[str, str]:
  """Path of every task's file, by the name that the report has for it."""
  from hiermem_jax.data.tasks.table import task_spec

  files = {}
  for entry in tasks:
    name, _, path = entry.partition("=")
    spec = task_spec(name)
    if not path and data is None:
      raise InputError(f"task {name}: bind evaluate_tasks.data, the directory of {spec.file}, or give '{name}=PATH'")
    file = path or os.path.join(data, spec.file)
    if not os.path.isfile(file):
      raise InputError(f"task {name}: no data at {file}; put the file there, give '{name}=PATH', or leave the task out")
    label = name if pathlib.Path(file).name == spec.file else f"{name}={pathlib.Path(file).stem}"
    if label in files:
      raise InputError(f"evaluate_tasks.tasks: {label} is there twice; leave one out")
    files[label] = file
  return files


def _require_same(name: str, fingerprint: str, metadata: dict, kind: str, model: str) -> None:
  if fingerprint != metadata[f"{kind}_fingerprint"]:
    raise InputError(
      f"{name} has fingerprint {fingerprint}, {model} was trained with {metadata[f'{kind}_fingerprint']}; use the ones"
      " of the same run"
    )


def _requests(name: str, file: str, tokenizer_path: str, shots: int | None, max_items: int | None):
  """The task's kind, SeqIO task and requests."""
  from hiermem_jax.data.tasks.registry import SPLIT, register
  from hiermem_jax.data.tasks.table import task_spec

  name = name.split("=")[0]
  task = register(name, file, tokenizer_path, shots=shots, max_items=max_items)
  dataset = task.get_dataset(sequence_length=None, split=SPLIT, shuffle=False)
  return task_spec(name).kind, task, list(dataset.as_numpy_iterator())


def _measure_task(requests, mode: str, scored, tokenizer, library, length: int) -> dict:
  """Metrics and items of a task in one mode of the memory."""
  from hiermem_jax.data.tasks.metrics import item_results
  from hiermem_jax.evaluation.tasks import NEW_TOKENS, answer

  kind, task, examples = requests()
  questions = [example["retrieval"].decode() for example in examples]
  scorer, leaf = scored.of_questions(mode.removeprefix("rag "), questions)
  if mode.startswith("rag "):
    after = NEW_TOKENS.get(kind) or max(len(example["targets"]) for example in examples)
    prompts = library().prepend([example["inputs"].tolist() for example in examples], questions, after, length)
    examples = [example | {"inputs": np.array(prompt, np.int32)} for example, prompt in zip(examples, prompts)]
  before = scorer.truncated
  outputs = answer(kind, examples, leaf, scorer, tokenizer)
  metric_fn = (task.predict_metric_fns + task.score_metric_fns)[0]
  items = item_results(kind, examples, outputs)
  return {"metrics": metric_fn(examples, outputs), "truncated": scorer.truncated - before, "items": items}


def _measure_articles(texts, mode: str, scored, tokenizer, length: int) -> dict:
  """Perplexity of the articles in one mode of the memory."""
  from hiermem_jax.evaluation.tasks import article_perplexity

  documents = [[*ids, tokenizer.eot_id] for ids in tokenizer.encode_batch(texts())]
  scorer, leaf = scored.of_questions(mode, texts())
  return article_perplexity(documents, leaf, scorer, length)


if __name__ == "__main__":
  from hiermem_jax import cli

  cli.main("evaluate_tasks")
