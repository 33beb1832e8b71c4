"""Contexts and continuations in tokens."""

import pytest

from hiermem_jax.data.text.pairs import encode_pairs
from hiermem_jax.data.text.tokenizer import train_sentencepiece


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  texts = ["The owl likes plum. The fox likes kale and naïve rain."] * 20
  return train_sentencepiece(texts, str(tmp_path_factory.mktemp("tokenizer") / "t.model"), vocab_size=300)


def test_a_pair_is_its_joined_text_cut_behind_the_context(tokenizer):
  pairs = [("The owl likes", " plum"), ("The owl likes", " kale and naïve rain"), ("", "plum"), ("x", "y")]
  for (context, continuation), (inputs, targets) in zip(pairs, encode_pairs(tokenizer, pairs), strict=True):
    assert inputs + targets == tokenizer.encode(context + continuation)
    assert inputs == tokenizer.encode(context)
    assert tokenizer.decode(targets) == continuation


def test_a_continuation_that_merges_into_the_context_has_a_token():
  class Merging:
    """Every text is one token, the number of its letters."""

    def encode_batch(self, texts):
      return [[len(text)] for text in texts]

  assert encode_pairs(Merging(), [("ab", "c")]) == [([], [3])]
