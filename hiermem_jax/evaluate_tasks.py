r"""Evaluates a checkpoint on public question sets and on articles, for every mode of the memory.

  python -m hiermem_jax.evaluate_tasks --gin_file=gin/evaluation/paper.gin --run_dir=runs/a2 \
    --gin_bindings="TaskSet.data = '/data/eval'"

Writes RUN_DIR/evaluation_tasks/report.json, report.md and report.png, and a file for each task and mode with what was
right and wrong item by item. They are kept: the same command continues where it was stopped.
"""

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refused flag answer at once
  from hiermem_jax import cli

  cli.main("evaluate_tasks")

import os

from hiermem_jax.data.sources import Source
from hiermem_jax.errors import InputError
from hiermem_jax.evaluation.config import FrequencyConfig, ModelFiles, RagConfig, ScoringConfig, TaskSet


def evaluate_tasks(
  *,
  run_dir: str,
  model: ModelFiles = ModelFiles(),  # noqa: B008 (frozen)
  tasks: TaskSet = TaskSet(),  # noqa: B008 (frozen)
  max_items: int | None = None,
  articles: Source | None = None,
  modes: tuple[str, ...] = ("none", "generic", "fetched"),
  rag: RagConfig | None = None,
  frequency: FrequencyConfig | None = None,
  scoring: ScoringConfig = ScoringConfig(),  # noqa: B008 (frozen)
  directory: str = "evaluation_tasks",
  title: str = "Evaluation",
) -> None:
  """Evaluates the newest checkpoint of a training.

  Args:
    run_dir: where relative paths start.
    model: the model, its tree and its tokenizer.
    tasks: question sets.
    max_items: of each task and of the articles, the first ones; None: all.
    articles: documents whose perplexity is measured, each with the memory of its own path.
    modes: memories to measure, e.g. 'none', 'fetched', 'levels 1 2', 'blocked 3', 'rag fetched'; evaluation/modes.py
      lists them. A model without a bank has 'none' and 'rag none'.
    rag: what 'rag' modes put in front of questions.
    frequency: adds accuracy by how often the training text names the subject of a question.
    scoring: how text is scored.
    directory: where the report goes.
    title: of the report.

  Raises:
    InputError: a checkpoint, a task or its data is missing, a file is of another format, a mode is not known or needs
      what is not there, or bank, tree and tokenizer do not belong together.
  """
  from hiermem_jax.data.tasks.table import TASKS, task_spec
  from hiermem_jax.evaluation import task_report
  from hiermem_jax.evaluation.loading import load
  from hiermem_jax.evaluation.modes import Mode, parse_modes
  from hiermem_jax.evaluation.tasks import TaskEvaluation, task_files
  from hiermem_jax.parallel import distributed

  files = task_files(tasks)
  if not files and articles is None:
    raise InputError("evaluate_tasks: nothing to measure; bind TaskSet.names or evaluate_tasks.articles")
  with_documents = any(Mode.parse(name).document for name in modes)
  if with_documents and rag is None:
    raise InputError("evaluate_tasks.modes: 'rag' without documents; bind evaluate_tasks.rag = @RagConfig()")
  loaded = load(run_dir, model, needs_tree=with_documents)
  parsed = parse_modes(modes, loaded.model.memory)
  target = os.path.join(run_dir, directory)
  evaluation = TaskEvaluation(loaded, parsed, scoring, target, rag=rag, max_items=max_items)

  results = {name: evaluation.task(name, file, tasks.shots) for name, file in files.items()}
  subjects = {item["subject"] for by_mode in results.values() for item in by_mode[modes[0]]["items"]} - {""}
  counts = evaluation.mentions(subjects, frequency.corpus) if frequency and subjects else None
  perplexities = {} if articles is None else evaluation.articles(articles)

  specs = {name: task_spec(name.split("=")[0]) for name in files}
  run = {spec.name for spec in specs.values()}
  report = {"title": title, "model": model.directory, "modes": list(modes), **evaluation.about, "shots": tasks.shots}
  report["not_run"] = [name for name, spec in TASKS.items() if spec.group in ("CK", "SK") and name not in run]
  report |= task_report.assemble(specs, results, perplexities, counts, frequency.buckets if frequency else 0)
  distributed.on_first(lambda: task_report.write(report, target))
