"""Counts of names against a regular expression."""

import re

import numpy as np

from hiermem_jax.data.text.mentions import count_mentions


def test_whole_words_whatever_the_case():
  texts = ["Lead leads. The LEAD role; lead-free, mislead.", "New York, new york; New\nYork's newest York"]
  assert count_mentions(["Lead", "New York", "York", "Iron", "!"], texts) == {
    "Lead": 3, "New York": 3, "York": 4, "Iron": 0, "!": 0,
  }  # fmt: skip


def test_against_a_regular_expression():
  rng = np.random.default_rng(0)
  texts = [" ".join(rng.choice(["a", "b", "ab", "A", "c."], 200)) for _ in range(20)]
  names = ["a", "a b", "b a b", "ab c", "a a"]
  expected = {
    name: sum(len(re.findall(r"(?=\b" + r"\W+".join(name.split()) + r"\b)", text.lower())) for text in texts)
    for name in names
  }
  assert count_mentions(names, iter(texts)) == expected
  assert min(expected.values()) > 0
