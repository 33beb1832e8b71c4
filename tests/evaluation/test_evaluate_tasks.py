"""The verb that evaluates a checkpoint on tasks: report, resuming, and bad input."""

import json
import shutil

import numpy as np
import pytest
import scipy.stats

from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.data.tasks.requests import read_requests
from hiermem_jax.errors import InputError
from hiermem_jax.evaluate_tasks import evaluate_tasks
from hiermem_jax.evaluation import task_report, tasks
from hiermem_jax.evaluation.config import FrequencyConfig, ModelFiles, RagConfig, ScoringConfig, TaskSet
from hiermem_jax.retrieval.build import TreeConfig, build_tree
from hiermem_jax.retrieval.retriever import load_retriever, save_retriever

TASKS = ("arc_easy", "nq_open", "elements", "cloze={run}/mine.jsonl")
MODES = ("none", "generic", "fetched", "blocked 1")


def jsonl(run_dir, name):
  return JsonlSource(pattern=f"{run_dir}/{name}.jsonl")


def evaluate(run_dir, directory, names=TASKS, model="model", shots=None, **settings):
  names = tuple(name.format(run=run_dir) for name in names)
  files = {"tree": settings.pop("tree", "tree")}
  evaluate_tasks(
    run_dir=str(run_dir),
    directory=str(directory),
    model=ModelFiles(directory=model, **files),
    tasks=TaskSet(names=names, data=str(run_dir), shots=shots),
    scoring=settings.pop("scoring", ScoringConfig(batch_size=16)),
    **settings,
  )
  return json.loads((directory / "report.json").read_text())


@pytest.fixture
def no_picture(monkeypatch):
  """Leaves out what takes long and other tests look at."""
  monkeypatch.setattr(task_report, "plot", lambda report, path: None)


@pytest.fixture(scope="module")
def report(toy_run, tmp_path_factory):
  directory = tmp_path_factory.mktemp("tasks")
  frequency = FrequencyConfig(corpus=jsonl(toy_run, "corpus"))
  articles = jsonl(toy_run, "articles")
  return directory, evaluate(toy_run, directory, modes=MODES, frequency=frequency, articles=articles)


def test_report_has_every_task_and_mode(report):
  directory, found = report
  assert found["modes"] == list(MODES)
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
  for name in ("accuracy", "log_likelihood_per_byte"):
    expected = np.mean([found["tasks"][task]["modes"]["fetched"][name] for task in ("arc_easy", "nq_open")])
    assert average["modes"]["fetched"][name] == pytest.approx(expected)
  # The error of (x + y) / 2 for independent x and y.
  error = "log_likelihood_per_token_stderr"
  x, y = (found["tasks"][task]["modes"]["fetched"][error] for task in ("arc_easy", "nq_open"))
  assert average["modes"]["fetched"][error] == pytest.approx(np.hypot(x, y) / 2) and x * y > 0
  page = (directory / "report.md").read_text()
  assert "| arc_easy | SK | 36 | 25 |" in page and "**Avg-SK** (2 tasks)" in page
  assert "not run: lambada, boolq, squad, winograd, winogrande, coqa, hellaswag, arc_challenge" in page
  gain = found["tasks"]["nq_open"]["modes"]["fetched"]["minus_none"]
  text = f"{gain['log_likelihood_per_token']:+.3f} ± {gain['log_likelihood_per_token_stderr']:.3f} |"
  assert any(line.startswith("| nq_open |") and line.endswith(text) for line in page.splitlines())
  assert (directory / "report.png").stat().st_size > 10_000


def test_frequency_buckets_are_of_the_corpus(report):
  """The i-th animal is named i times in the corpus, and is the element i + 1."""
  frequency = report[1]["tasks"]["elements"]["by_frequency"]
  assert frequency["occurrences"] == [[0, 2], [3, 5], [6, 7], [8, 9], [10, 11]]
  assert [cell["count"] for cell in frequency["modes"]["fetched"]] == [3, 3, 2, 2, 2]
  assert "by_frequency" not in report[1]["tasks"]["nq_open"]


def questions_of(run_dir, name):
  """Context, gold continuation and what the retriever sees, of the items of a file without few-shot examples."""
  lines = (run_dir / f"{name}.jsonl").read_text().splitlines()
  for record in map(json.loads, lines):
    if name == "arc_easy":
      question = record["query"].removeprefix("Question: ")
      yield f"{record['query']}\nAnswer:", f" {record['choices'][record['gold']]}", question
    else:
      question = record["question"]
      yield f"Question: {question}\nAnswer:", f" {record['answer'][0]}", question


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(("task", "file"), [("arc_easy", "arc_easy"), ("nq_open", "nq_open_dev")])
def test_log_likelihoods_by_brute_force(toy_run, loaded, in_modes, tmp_path, task, file):
  """One gold continuation at a time; scipy's standard errors and paired t-test."""
  found = evaluate(toy_run, tmp_path, names=(task,), shots=0, modes=("none", "fetched"))["tasks"][task]["modes"]
  tokenizer, scorer = loaded.tokenizer, in_modes.scorer
  likelihoods = {"none": [], "fetched": []}
  sizes = []
  for context, continuation, question in questions_of(toy_run, file):
    prompt, ids = tokenizer.encode(context), tokenizer.encode(context + continuation)
    sizes.append((len(ids) - len(prompt), len(continuation.encode())))
    for mode, leaf in (("none", np.array([-1], np.int32)), ("fetched", loaded.retriever.route([question]))):
      (score,), _ = scorer(tasks.Mode.parse(mode)).score_continuations([prompt], [ids[len(prompt) :]], leaf)
      likelihoods[mode].append(score)
  assert len({size for _, size in sizes}) > 1
  for unit, size in zip(("token", "byte"), np.array(sizes).T):
    name = f"log_likelihood_per_{unit}"
    per_unit = {mode: np.array(scores, np.float64) / size for mode, scores in likelihoods.items()}
    for mode, values in per_unit.items():
      assert found[mode][name] == pytest.approx(values.mean(), abs=1e-4)
      assert found[mode][f"{name}_stderr"] == pytest.approx(scipy.stats.sem(values), abs=1e-4)
    gain = found["fetched"]["minus_none"]
    expected = scipy.stats.ttest_rel(per_unit["fetched"], per_unit["none"])
    assert gain[name] == pytest.approx(np.mean(per_unit["fetched"] - per_unit["none"]), abs=1e-4)
    assert gain[name] / gain[f"{name}_stderr"] == pytest.approx(expected.statistic, rel=1e-2)


def test_generated_answers_end_with_the_line(toy_run, loaded, in_modes):
  """Some answers of the toy model have a line break, and some do not; each is that of generating without stops."""
  requests = read_requests("nq_open", str(toy_run / "nq_open_dev.jsonl"), loaded.tokenizer)
  leaf = loaded.retriever.route([request.retrieval for request in requests])
  scorer = in_modes.scorer(tasks.Mode.parse("fetched"))
  outputs = tasks.answer("generation", requests, leaf, scorer, loaded.tokenizer)
  whole = scorer.generate([request.inputs for request in requests], leaf, tasks.NEW_TOKENS["generation"], ())
  texts = [loaded.tokenizer.decode(ids).split("\n")[0] for ids in whole]
  assert [output.text for output in outputs] == texts
  assert 0 < sum("\n" in loaded.tokenizer.decode(ids) for ids in whole) < len(whole)


@pytest.mark.usefixtures("no_picture")
def test_what_is_measured_is_kept(report, toy_run, tmp_path, monkeypatch):
  """The same command measures nothing again; a changed file, and a mode that was not there, are measured."""
  directory = tmp_path / "again"
  shutil.copytree(report[0], directory)
  asked = []
  real = tasks.answer
  monkeypatch.setattr(tasks, "answer", lambda kind, *rest: asked.append(kind) or real(kind, *rest))
  again = evaluate(toy_run, directory, modes=MODES)
  assert asked == [] and again["tasks"]["arc_easy"] == report[1]["tasks"]["arc_easy"]
  evaluate(toy_run, directory, modes=("none", "wrong"), names=TASKS[:2])
  assert asked == ["multiple_choice", "generation"]
  del asked[:]
  evaluate(toy_run, directory, modes=("none",), max_items=5, names=TASKS[1:2])
  assert asked == ["generation"]
  evaluate(toy_run, directory, modes=("none",), names=TASKS[:1], model="plain")  # of the same step, tree and tokenizer
  assert asked == ["generation", "multiple_choice"]


@pytest.mark.usefixtures("no_picture")
def test_long_prompts_are_counted(toy_run, tmp_path):
  scoring = ScoringConfig(batch_size=16, max_length=40)
  found = evaluate(toy_run, tmp_path, scoring=scoring, modes=("none",), names=("arc_easy", "nq_open"))["tasks"]
  assert found["arc_easy"]["truncated"] == 36 * 4
  assert found["nq_open"]["truncated"] == 12  # 32 tokens are generated
  assert "lost their beginning: arc_easy 144, nq_open 12." in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("no_picture")
def test_model_without_a_bank(toy_run, tmp_path):
  own = evaluate(toy_run, tmp_path / "plain", model="plain", tree="nowhere", modes=("none",), names=("arc_easy",))
  bank = evaluate(toy_run, tmp_path / "bank", modes=("none",), names=("arc_easy",))
  assert own["tasks"]["arc_easy"]["modes"]["none"] == pytest.approx(bank["tasks"]["arc_easy"]["modes"]["none"])


def test_articles_alone(report, toy_run, tmp_path):
  found = evaluate(toy_run, tmp_path, names=(), articles=jsonl(toy_run, "articles"), modes=("fetched",))
  assert found["articles"]["fetched"] == pytest.approx(report[1]["articles"]["fetched"])
  assert "| articles, perplexity |" in (tmp_path / "report.md").read_text()
  assert (tmp_path / "report.png").exists()


@pytest.mark.usefixtures("no_picture")
def test_document_in_front(toy_run, tmp_path, monkeypatch):
  """With the articles as documents; the prompts end as without."""
  seen = []
  real = tasks.answer

  def spy(kind, requests, *rest):
    seen.append([list(request.inputs) for request in requests])
    return real(kind, requests, *rest)

  monkeypatch.setattr(tasks, "answer", spy)
  rag, modes = RagConfig(documents=jsonl(toy_run, "articles"), level=1), ("fetched", "rag fetched", "rag none")
  found = evaluate(toy_run, tmp_path, rag=rag, modes=modes, names=("nq_open",))["tasks"]["nq_open"]["modes"]
  for plain, behind in zip(seen[0], seen[1]):
    assert behind[len(behind) - len(plain) :] == plain
  assert seen[1] == seen[2]
  assert max(map(len, seen[1])) > max(map(len, seen[0])) + 5
  assert list(found) == ["fetched", "rag fetched", "rag none"]


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"names": ("arc_medium",)}, "no task 'arc_medium'; give one of lambada"),
    ({"names": ("boolq",)}, "task boolq: no data at .*boolq.jsonl \\(its folder has .*\\); put the file there"),
    ({"names": ("arc_easy", "arc_easy")}, "arc_easy is there twice"),
    ({"names": ()}, "nothing to measure; bind TaskSet.names"),
    ({"names": ("arc_easy={run}/mine.jsonl",)}, "mine.jsonl, line 1: field 'query' is missing"),
    ({"model": "plain"}, "'generic': the checkpoint has no bank; choose 'none'"),
    ({"modes": ("best",)}, "'best': choose from none"),
    ({"modes": ("paraphrased",)}, "'paraphrased': the questions of tasks have no paraphrases; leave it out"),
    ({"model": "untrained"}, "untrained: no checkpoint there .*plain.*; train it first or bind ModelFiles.directory"),
    ({"tree": "other_tree"}, "the tree other_tree has fingerprint .* was made with"),
    ({"tree": "no_tree"}, "no_tree"),
    ({"modes": ("rag none",)}, "'rag' without documents; bind"),
  ],
)
def test_bad_input_is_one_line(toy_run, tmp_path, settings, message):
  if settings.get("tree") == "other_tree":
    _other_tree(toy_run)
  with pytest.raises(InputError, match=message) as error:
    evaluate(toy_run, tmp_path, **{"names": ("arc_easy",)} | settings)
  assert "\n" not in str(error.value)


def _other_tree(toy_run):
  retriever = load_retriever(str(toy_run / "tree"))
  embeddings = np.random.default_rng(0).standard_normal((50, retriever.tree.centroids[0].shape[1])).astype(np.float32)
  fingerprint = retriever.encoder.fingerprint
  tree = build_tree(embeddings, config=TreeConfig(branching=2, depth=2), encoder_fingerprint=fingerprint)
  save_retriever(str(toy_run / "other_tree"), retriever.encoder, tree)
