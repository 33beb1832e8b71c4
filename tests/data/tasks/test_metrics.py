"""Metrics against hand-made and brute-force numbers."""

import math

import numpy as np
import pytest

from hiermem_jax.data.tasks import metrics


def example(item, option=0, tokens=1, correct=True, answers=(), group="", subject=""):
  return {
    "idx": np.array([item, option], np.int32),
    "targets": np.zeros(tokens, np.int32),
    "is_correct": np.bool_(correct),
    "answers": np.array([answer.encode() for answer in answers], object),
    "group": group.encode(),
    "subject": subject.encode(),
  }


def test_multiple_choice():
  examples = [
    example(0, 0, tokens=1, correct=False),
    example(0, 1, tokens=4, correct=True, group="g", subject="s"),
    example(1, 0, tokens=2, correct=True),
    example(1, 1, tokens=2, correct=False),
    example(2, 0, tokens=1, correct=False),
    example(2, 1, tokens=2, correct=True),
  ]
  scores = [-2.0, -4.0, -3.0, -3.0, -1.0, -4.0]  # per token -2, -1; -1.5, -1.5; -1, -2
  results = metrics.item_results("multiple_choice", examples, scores)
  assert results == metrics.item_results("schema", examples, scores)
  assert [r["correct"] for r in results] == [True, True, False]
  assert [r["correct_unnormalized"] for r in results] == [False, True, False]
  assert [r["item"] for r in results] == [0, 1, 2]
  got = metrics.multiple_choice(examples, scores)
  assert got["accuracy"] == pytest.approx(2 / 3) and got["accuracy_unnormalized"] == pytest.approx(1 / 3)
  assert got["stderr"] == got["stderr_unnormalized"] == pytest.approx(math.sqrt(2 / 9 / 3))
  assert got["count"] == 3


def test_multiple_choice_against_brute_force():
  rng = np.random.default_rng(0)
  tokens, scores, gold = rng.integers(1, 9, (200, 4)), -rng.random((200, 4)) * 9, rng.integers(0, 4, 200)
  examples = [example(i, j, tokens[i, j], j == gold[i]) for i in range(200) for j in range(4)]
  got = metrics.multiple_choice(examples, scores.ravel())
  perplexity = np.exp(-scores / tokens)
  assert got["accuracy"] == np.mean([min(range(4), key=lambda j: perplexity[i, j]) == gold[i] for i in range(200)])
  assert got["accuracy_unnormalized"] == np.mean(scores.argmax(1) == gold)


def test_language_modeling():
  examples = [example(0, tokens=2), example(1, tokens=1), example(2, tokens=1), example(3, tokens=1)]
  scores = [(-1.0, True), (-2.0, False), (-0.5, False), (-1.5, False)]
  got = metrics.language_modeling(examples, scores)
  assert got == {
    "accuracy": 0.25,
    "stderr": math.sqrt(0.25 * 0.75 / 4),
    "count": 4,
    "perplexity": pytest.approx(math.e),
  }
  assert metrics.language_modeling(examples, np.array(scores)) == got  # as SeqIO hands them over


@pytest.mark.parametrize(
  "prediction, correct",
  [
    (" Onion", True),
    (" the onion.\nQuestion: what", True),
    (" Onions are it", True),
    (" `RED`  Onion, of course", True),
    (" a vegetable\nOnion", False),
    (" my onion", False),
    ("", False),
  ],
)
def test_generation(prediction, correct):
  examples = [example(0, answers=("Onion", "The Red_Onion", "The"))]
  assert metrics.generation(examples, [prediction])["accuracy"] == correct


def test_number():
  examples = [example(i, answers=("12",)) for i in range(5)]
  assert metrics.number(examples, [" 12.", " about 012 or 13", " 112", " none", "\n12"])["accuracy"] == 0.6


def test_results_name_group_and_subject():
  (result,) = metrics.item_results("number", [example(7, answers=("1",), group="P1", subject="Å")], ["1"])
  assert result == {"item": 7, "group": "P1", "subject": "Å", "correct": True}
