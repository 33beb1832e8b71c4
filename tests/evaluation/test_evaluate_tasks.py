"""The verb that evaluates a checkpoint on tasks: report, resuming, and bad input."""

import json
import math
import shutil

import numpy as np
import pytest

from hiermem_jax import configuration
from hiermem_jax.data.text.tokenizer import load_tokenizer
from hiermem_jax.errors import InputError
from hiermem_jax.evaluation import Scorer, tasks
from hiermem_jax.retrieval.retriever import load_retriever
from hiermem_jax.training.checkpoint import load_model

TASKS = ("arc_easy", "nq_open", "elements", "cloze={run}/mine.jsonl")


def evaluate(run_dir, directory, *bindings, names=TASKS):
  names = tuple(name.format(run=run_dir) for name in names)
  settings = [f"evaluate_tasks.data = '{run_dir}'", "evaluate_tasks.model = 'model'", f"evaluate_tasks.tasks = {names}"]
  settings += [f"evaluate_tasks.directory = '{directory}'", "evaluate_tasks.batch_size = 16", *bindings]
  configuration.load([], settings)
  configuration.call("evaluate_tasks", run_dir=str(run_dir))


@pytest.fixture(scope="module")
def report(toy_run, tmp_path_factory):
  directory = tmp_path_factory.mktemp("tasks")
  evaluate(
    toy_run,
    directory,
    "evaluate_tasks.modes = ('none', 'generic', 'fetched', 'levels 2', 'blocked 1')",
    "evaluate_tasks.corpus = @corpus/JsonlSource()",
    f"corpus/JsonlSource.pattern = '{toy_run}/corpus.jsonl'",
    "evaluate_tasks.articles = @articles/JsonlSource()",
    f"articles/JsonlSource.pattern = '{toy_run}/articles.jsonl'",
  )
  return directory, json.loads((directory / "report.json").read_text())


def test_report_has_every_task_and_mode(report):
  directory, found = report
  assert found["modes"] == ["none", "generic", "fetched", "levels 2", "blocked 1"]
  assert {name: task["group"] for name, task in found["tasks"].items()} == {
    "arc_easy": "SK", "nq_open": "SK", "elements": "extra", "cloze=mine": "extra",
  }  # fmt: skip
  for task in found["tasks"].values():
    assert list(task["modes"]) == found["modes"]
  counts = {name: task["modes"]["none"]["count"] for name, task in found["tasks"].items()}
  assert counts == {"arc_easy": 36, "nq_open": 12, "elements": 12, "cloze=mine": 12}
  accuracies = [found["tasks"]["arc_easy"]["modes"][mode]["accuracy"] for mode in found["modes"]]
  assert len(set(accuracies)) > 1  # the modes are not all the same
  average = found["averages"]["SK"]
  assert average["tasks"] == ["arc_easy", "nq_open"]
  assert "CK" not in found["averages"]
  expected = np.mean([found["tasks"][name]["modes"]["fetched"]["accuracy"] for name in ("arc_easy", "nq_open")])
  assert average["modes"]["fetched"]["accuracy"] == pytest.approx(expected)
  page = (directory / "report.md").read_text()
  assert "| arc_easy | SK | 36 | 25 |" in page and "**Avg-SK** (2 tasks)" in page
  assert "not run: lambada, boolq, squad, winograd, winogrande, coqa, hellaswag, arc_challenge" in page
  assert (directory / "report.png").stat().st_size > 10_000


def test_frequency_buckets_are_of_the_corpus(report):
  """The i-th animal is named i times in the corpus, and is the element i + 1."""
  frequency = report[1]["tasks"]["elements"]["by_frequency"]
  assert frequency["occurrences"] == [[0, 2], [3, 5], [6, 7], [8, 9], [10, 11]]
  assert [cell["count"] for cell in frequency["modes"]["fetched"]] == [3, 3, 2, 2, 2]
  assert "by_frequency" not in report[1]["tasks"]["nq_open"]


def test_articles_perplexity_by_brute_force(report, toy_run, mesh):
  tokenizer, retriever = load_tokenizer(str(toy_run / "tokenizer.model")), load_retriever(str(toy_run / "tree"))
  texts = [json.loads(line)["text"] for line in (toy_run / "articles.jsonl").read_text().splitlines()]
  scorer = Scorer(load_model(str(toy_run / "model"), mesh), mesh, 1, bos_id=tokenizer.bos_id)
  losses, tokens = [], []
  for text, leaf in zip(texts, retriever.route(texts)):
    ids = [*tokenizer.encode(text), tokenizer.eot_id]
    losses.append(-scorer.score_continuations([[]], [ids], np.array([leaf], np.int32))[0][0])
    tokens.append(len(ids))
  found = report[1]["articles"]["fetched"]
  assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / sum(tokens)), rel=1e-4)
  assert found["mean_perplexity"] == pytest.approx(np.mean(np.exp(np.divide(losses, tokens))), rel=1e-4)
  assert (found["articles"], found["tokens"]) == (9, sum(tokens))


def test_what_is_measured_is_kept(report, toy_run, tmp_path, monkeypatch):
  """The same command measures nothing again; a changed file, and a mode that was not there, are measured."""
  directory = tmp_path / "again"
  shutil.copytree(report[0], directory)
  asked = []
  real = tasks.answer
  monkeypatch.setattr(tasks, "answer", lambda kind, *rest: asked.append(kind) or real(kind, *rest))
  same = "evaluate_tasks.modes = ('none', 'generic', 'fetched', 'levels 2', 'blocked 1')"
  evaluate(toy_run, directory, same)
  assert asked == []
  evaluate(toy_run, directory, "evaluate_tasks.modes = ('none', 'wrong')", names=TASKS[:2])
  assert asked == ["multiple_choice", "generation"]
  del asked[:]
  evaluate(toy_run, directory, "evaluate_tasks.modes = ('none',)", "evaluate_tasks.max_items = 5", names=TASKS[1:2])
  assert asked == ["generation"]


def test_long_prompts_are_counted(toy_run, tmp_path):
  evaluate(
    toy_run, tmp_path, "evaluate_tasks.context_length = 40", "evaluate_tasks.modes = ('none',)", names=("arc_easy",)
  )
  found = json.loads((tmp_path / "report.json").read_text())["tasks"]["arc_easy"]
  assert found["truncated"] == 36 * 4
  assert "lost their beginning: arc_easy 144." in (tmp_path / "report.md").read_text()


def test_model_without_a_bank(toy_run, tmp_path):
  plain = ("evaluate_tasks.model = 'plain'", "evaluate_tasks.tree = 'nowhere'", "evaluate_tasks.modes = ('none',)")
  evaluate(toy_run, tmp_path, *plain, names=("arc_easy",))
  own = json.loads((tmp_path / "report.json").read_text())["tasks"]["arc_easy"]["modes"]["none"]
  evaluate(toy_run, tmp_path / "bank", "evaluate_tasks.modes = ('none',)", names=("arc_easy",))
  assert json.loads((tmp_path / "bank/report.json").read_text())["tasks"]["arc_easy"]["modes"]["none"] == own


def test_document_in_front(toy_run, tmp_path, monkeypatch):
  """With the articles as documents; the prompts end as without."""
  seen = {}
  real = tasks.answer

  def spy(kind, examples, leaf, *rest):
    seen[len(seen)] = [example["inputs"].tolist() for example in examples]
    return real(kind, examples, leaf, *rest)

  monkeypatch.setattr(tasks, "answer", spy)
  documents = ["evaluate_tasks.documents = @JsonlSource()", f"JsonlSource.pattern = '{toy_run}/articles.jsonl'"]
  modes = "evaluate_tasks.modes = ('fetched', 'rag fetched', 'rag none')"
  evaluate(toy_run, tmp_path, *documents, modes, "evaluate_tasks.document_level = 1", names=("nq_open",))
  for plain, behind in zip(seen[0], seen[1]):
    assert behind[len(behind) - len(plain) :] == plain
  assert seen[1] == seen[2]
  assert max(map(len, seen[1])) > max(map(len, seen[0])) + 5
  found = json.loads((tmp_path / "report.json").read_text())["tasks"]["nq_open"]["modes"]
  assert list(found) == ["fetched", "rag fetched", "rag none"]


@pytest.mark.parametrize(
  ("names", "bindings", "message"),
  [
    (("arc_medium",), (), "no task 'arc_medium'; give one of lambada"),
    (("boolq",), (), "task boolq: no data at .*boolq.jsonl; put the file there"),
    (("arc_easy", "arc_easy"), (), "arc_easy is there twice"),
    ((), (), "nothing to measure; bind evaluate_tasks.tasks"),
    (("arc_easy={run}/mine.jsonl",), (), "mine.jsonl, line 1: field 'query' is missing"),
    (("arc_easy",), ("evaluate_tasks.model = 'plain'",), "'generic': the checkpoint has no bank; choose 'none'"),
    (("arc_easy",), ("evaluate_tasks.modes = ('best',)",), "'best': choose from none"),
    (("arc_easy",), ("evaluate_tasks.model = 'untrained'",), "untrained: no checkpoint there; train it first"),
    (("arc_easy",), ("evaluate_tasks.tree = 'other_tree'",), "the tree other_tree has fingerprint .* trained with"),
    (("arc_easy",), ("evaluate_tasks.tree = 'no_tree'",), "no_tree"),
    (("arc_easy",), ("evaluate_tasks.modes = ('rag none',)",), "'rag' without documents; bind"),
  ],
)
def test_bad_input_is_one_line(toy_run, tmp_path, names, bindings, message):
  if "other_tree" in message:
    _other_tree(toy_run)
  with pytest.raises(InputError, match=message) as error:
    evaluate(toy_run, tmp_path, *bindings, names=names)
  assert "\n" not in str(error.value)


def _other_tree(toy_run):
  from hiermem_jax.retrieval.build import TreeConfig, build_tree
  from hiermem_jax.retrieval.retriever import save_retriever

  retriever = load_retriever(str(toy_run / "tree"))
  embeddings = np.random.default_rng(0).standard_normal((50, retriever.tree.centroids[0].shape[1])).astype(np.float32)
  fingerprint = retriever.encoder.fingerprint
  tree = build_tree(embeddings, config=TreeConfig(branching=2, depth=2), encoder_fingerprint=fingerprint)
  save_retriever(str(toy_run / "other_tree"), retriever.encoder, tree)
