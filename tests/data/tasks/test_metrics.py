"""Judging and metrics against hand-made and brute-force numbers, and against scipy's statistics."""

import math

import numpy as np
import pytest
import scipy.stats

from hiermem_jax.data.tasks.metrics import Output, accuracy_and_likelihood, judge, paired_difference, summarize
from hiermem_jax.data.tasks.requests import Request


def request(item, option=0, *, tokens=1, gold=True, continuation=" x", answers=(), group="", subject=""):
  return Request(
    item=item,
    option=option,
    is_gold=gold,
    context="",
    continuation=continuation,
    inputs=(),
    targets=(0,) * tokens,
    retrieval="",
    answers=answers,
    group=group,
    subject=subject,
  )


def measure(kind, requests, outputs):
  return summarize(kind, judge(kind, requests, outputs))


def test_multiple_choice():
  requests = [
    request(0, 0, tokens=1, gold=False),
    request(0, 1, tokens=4, gold=True, continuation=" naïve", group="g", subject="s"),
    request(1, 0, tokens=2, gold=True),
    request(1, 1, tokens=2, gold=False),
    request(2, 0, tokens=1, gold=False),
    request(2, 1, tokens=2, gold=True),
  ]
  # Per token -2, -1; -1.5, -1.5; -1, -2.
  outputs = [Output(score) for score in (-2.0, -4.0, -3.0, -3.0, -1.0, -4.0)]
  results = judge("multiple_choice", requests, outputs)
  assert results == judge("schema", requests, outputs)
  assert [r["correct"] for r in results] == [True, True, False]
  assert [r["correct_unnormalized"] for r in results] == [False, True, False]
  assert [r["item"] for r in results] == [0, 1, 2]
  assert [r["log_likelihood"] for r in results] == [-4, -3, -4]  # of the gold options
  assert [r["tokens"] for r in results] == [4, 2, 2]
  assert [r["bytes"] for r in results] == [7, 2, 2]  # " naïve" has seven
  got = summarize("multiple_choice", results)
  assert got["accuracy"] == pytest.approx(2 / 3) and got["accuracy_unnormalized"] == pytest.approx(1 / 3)
  assert got["stderr"] == got["stderr_unnormalized"] == pytest.approx(math.sqrt(2 / 9 / 3))
  assert got["count"] == 3
  assert got["log_likelihood_per_token"] == pytest.approx(-1.5)
  assert got["log_likelihood_per_byte"] == pytest.approx((-4 / 7 - 1.5 - 2) / 3)


def test_multiple_choice_against_brute_force():
  rng = np.random.default_rng(0)
  tokens, scores, gold = rng.integers(1, 9, (200, 4)), -rng.random((200, 4)) * 9, rng.integers(0, 4, 200)
  requests = [request(i, j, tokens=tokens[i, j], gold=j == gold[i]) for i in range(200) for j in range(4)]
  got = measure("multiple_choice", requests, [Output(score) for score in scores.ravel()])
  perplexity = np.exp(-scores / tokens)
  assert got["accuracy"] == np.mean([min(range(4), key=lambda j: perplexity[i, j]) == gold[i] for i in range(200)])
  assert got["accuracy_unnormalized"] == np.mean(scores.argmax(1) == gold)
  per_token = [scores[i, gold[i]] / tokens[i, gold[i]] for i in range(200)]
  assert got["log_likelihood_per_token"] == pytest.approx(np.mean(per_token))
  assert got["log_likelihood_per_token_stderr"] == pytest.approx(scipy.stats.sem(per_token))


def test_language_modeling():
  requests = [request(0, tokens=2), request(1), request(2), request(3)]
  outputs = [Output(-1.0, True), Output(-2.0, False), Output(-0.5, False), Output(-1.5, False)]
  got = measure("language_modeling", requests, outputs)
  assert (got["accuracy"], got["stderr"], got["count"]) == (0.25, pytest.approx(math.sqrt(0.25 * 0.75 / 4)), 4)
  assert got["perplexity"] == pytest.approx(math.e)  # five nats over five tokens
  assert got["log_likelihood_per_token"] == pytest.approx(-4.5 / 4)  # a mean over items, each over its own tokens


def test_paired_difference_is_the_t_test_s():
  rng = np.random.default_rng(1)
  tokens, sizes = rng.integers(1, 6, 50), rng.integers(3, 20, 50)
  one, other = -9 * rng.random((2, 50))

  def results(scores):
    return [
      {"correct": True, "log_likelihood": s, "tokens": int(t), "bytes": int(b)}
      for s, t, b in zip(scores, tokens, sizes)
    ]

  got = paired_difference(results(one), results(other))
  for unit, size in (("token", tokens), ("byte", sizes)):
    expected = scipy.stats.ttest_rel(one / size, other / size)
    name = f"log_likelihood_per_{unit}"
    assert got[name] / got[f"{name}_stderr"] == pytest.approx(expected.statistic)
    assert got[name] == pytest.approx(np.mean(one / size) - np.mean(other / size))
  assert set(got) == {f"log_likelihood_per_{unit}{end}" for unit in ("token", "byte") for end in ("", "_stderr")}


def test_too_few_items_have_no_number():
  one = [{"correct": True, "log_likelihood": -2.0, "tokens": 2, "bytes": 4}]
  got = accuracy_and_likelihood(one)
  assert (got["count"], got["accuracy"], got["log_likelihood_per_token"]) == (1, 1, -1)
  assert math.isnan(got["log_likelihood_per_token_stderr"]) and math.isnan(
    paired_difference(one, one)["log_likelihood_per_byte_stderr"]
  )
  none = accuracy_and_likelihood([])
  assert none.pop("count") == 0 and all(map(math.isnan, none.values())) and len(none) == 6


def test_without_scores_there_is_accuracy_alone():
  got = measure(
    "number", [request(0, answers=("12",)), request(1, answers=("1",))], [Output(text="12"), Output(text="2")]
  )
  assert got == {"count": 2, "accuracy": 0.5, "stderr": pytest.approx(0.125**0.5)}


@pytest.mark.parametrize(
  "prediction, correct",
  [
    (" Onion", True),
    (" the onion.\nQuestion: what", True),
    (" Onions are it", True),
    (" `RED`  Onion, of course", True),
    (" a vegetable\nOnion", False),
    (" \nOnion", False),  # the first line alone counts, even an empty one
    (" the red\nonion", False),  # and an answer does not go on in the second
    (" my onion", False),
    ("", False),
  ],
)
def test_generation(prediction, correct):
  requests = [request(0, answers=("Onion", "The Red_Onion", "The"))]
  assert measure("generation", requests, [Output(text=prediction)])["accuracy"] == correct


def test_number():
  requests = [request(i, answers=("12",)) for i in range(5)]
  texts = [" 12.", " about 012 or 13", " 112", " none", "\n12"]
  assert measure("number", requests, [Output(text=text) for text in texts])["accuracy"] == 0.6


def test_results_name_group_and_subject():
  asked = request(7, tokens=2, continuation=" 1", answers=("1",), group="P1", subject="Å")
  (result,) = judge("number", [asked], [Output(-3.0, text="1")])
  about = {"item": 7, "group": "P1", "subject": "Å", "correct": True}
  assert result == about | {"log_likelihood": -3.0, "tokens": 2, "bytes": 2}
