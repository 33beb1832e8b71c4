"""The real lm-evaluation-harness on a toy checkpoint, against our own evaluation of the same items."""

import json

import lm_eval
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from hiermem_jax.errors import InputError
from hiermem_jax.evaluate_tasks import evaluate_tasks
from hiermem_jax.evaluation.config import ModelFiles, TaskSet
from hiermem_jax.evaluation.harness import HiermemLM
from hiermem_jax.evaluation.modes import Mode

TASK = """
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
num_fewshot: 0
metric_list:
  - metric: acc
"""


def lm(toy_run, **settings):
  return HiermemLM(run_dir=str(toy_run), model="model", **settings)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fetched", "none"])
def test_harness_accuracy_is_ours(toy_run, tmp_path, monkeypatch, mode):
  for name in ("HF_HOME", "HF_DATASETS_CACHE"):
    monkeypatch.setenv(name, str(tmp_path / "cache"))
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  (tmp_path / "local.yaml").write_text(TASK.format(path=toy_run / "arc_easy.jsonl"))
  manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
  results = lm_eval.simple_evaluate(
    model=lm(toy_run, mode=mode), tasks=["local_choice"], task_manager=manager, bootstrap_iters=0, log_samples=True
  )
  tasks, files = TaskSet(names=("arc_easy",), data=str(toy_run), shots=0), ModelFiles(directory="model")
  evaluate_tasks(run_dir=str(toy_run), model=files, tasks=tasks, modes=(mode,), directory=str(tmp_path / "ours"))
  ours = json.loads((tmp_path / "ours/report.json").read_text())["tasks"]["arc_easy"]["modes"][mode]
  assert results["results"]["local_choice"]["acc,none"] == pytest.approx(ours["accuracy_unnormalized"])
  assert ours["count"] == len(results["samples"]["local_choice"]) == 36
  assert 0 < ours["accuracy_unnormalized"] < 1


def requests(kind, arguments):
  return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def test_loglikelihoods_are_the_engines(toy_run, loaded, in_modes):
  pairs = [("The owl likes", " corn"), ("", "plum"), ("Ask the fox", " for kale. Ask"), ("x", "y")]
  found = lm(toy_run).loglikelihood(requests("loglikelihood", pairs))
  tokenizer = loaded.tokenizer
  whole = [tokenizer.encode(context + continuation) for context, continuation in pairs]
  sizes = [min(len(tokenizer.encode(context)), len(ids) - 1) for (context, _), ids in zip(pairs, whole)]
  leaf = loaded.retriever.route([context for context, _ in pairs])
  scores, greedy = in_modes.scorer(Mode.parse("fetched")).score_continuations(
    [ids[:size] for ids, size in zip(whole, sizes)], [ids[size:] for ids, size in zip(whole, sizes)], leaf
  )
  np.testing.assert_allclose([score for score, _ in found], scores, atol=1e-4)
  assert [agrees for _, agrees in found] == greedy.tolist()


def test_rolling_is_the_sum_over_windows(toy_run, loaded, in_modes):
  texts = ["The owl likes plum. Ask the owl for corn.", "moss"]
  model = lm(toy_run, max_length=5, mode="generic")
  found = model.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts]))
  for text, value in zip(texts, found):
    ids = loaded.tokenizer.encode(text)
    windows = [ids[start : start + 5] for start in range(0, len(ids), 5)]
    scores, _ = in_modes.scorer(Mode.parse("fetched")).score_continuations(
      [[]] * len(windows), windows, np.full(len(windows), 4, np.int32)
    )
    assert value == pytest.approx(float(scores.sum()), abs=1e-3)


def test_generation_is_cut_and_the_retriever_may_see_the_last_example_alone(toy_run):
  asked = ["Ask the fox\n\nThe owl likes", "The owl likes"]
  both = requests("generate_until", [(text, {"until": ["e"], "max_gen_toks": 6}) for text in asked])
  plain = lm(toy_run)
  whole = plain.generate_until(both)
  assert all("e" not in text for text in whole)
  model = lm(toy_run, example_delimiter="\n\n")
  _, leaves = model._fetch(asked)
  assert leaves[0] == leaves[1]
  # The harness's command line and YAML files may give numbers as text.
  written = requests(
    "generate_until", [(asked[0], {"until": ["e"], "max_gen_toks": "6"}), (asked[0], {"until": ["e"]})]
  )
  assert lm(toy_run, max_gen_toks="6").generate_until(written) == [whole[0]] * 2
  longer = requests("generate_until", [(asked[0], {"until": [], "max_gen_toks": 6})])
  assert plain.generate_until(longer)[0].startswith(whole[0])
  sampled = requests("generate_until", [(asked[0], {"do_sample": True, "temperature": 1.0})])
  with pytest.raises(InputError, match="asks for sampling"):
    model.generate_until(sampled)


def test_modes_that_cannot_be(toy_run):
  with pytest.raises(InputError, match="mode 'rag fetched': the harness has no documents; choose 'fetched'"):
    lm(toy_run, mode="rag fetched")
  with pytest.raises(InputError, match="mode 'levels 3': rows"):
    lm(toy_run, mode="levels 3")
  with pytest.raises(ValueError, match="many"):  # before anything is generated
    lm(toy_run, max_gen_toks="many")
  asked = requests("loglikelihood", [("The owl likes", " corn")])
  plain = HiermemLM(run_dir=str(toy_run), model="plain", tree="nowhere")  # has no memory, in whatever mode
  assert plain.loglikelihood(asked)[0][0] == pytest.approx(
    lm(toy_run, mode="none").loglikelihood(asked)[0][0], abs=1e-4
  )
