"""Windows cover their document, in order, within the limit, and on character borders."""

import numpy as np
import pytest

from hiermem_jax.data.text.tokenizer import train_sentencepiece
from hiermem_jax.data.text.windows import windows_of

TEXTS = ["the otter swims. " * 30, "", "short", "漢字かな交じり文" * 9, "a 😀" * 20, "\ufffd" * 30]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "t.model"
  return train_sentencepiece(["the otter swims. short a"] * 5, str(path), vocab_size=280)


@pytest.mark.parametrize("window_tokens", [4, 5, 7, 16, 1000])
def test_windows_join_to_the_document(tokenizer, window_tokens):
  documents = list(windows_of(TEXTS, tokenizer, window_tokens))
  assert len(documents) == len(TEXTS)
  for text, windows in zip(TEXTS, documents):
    assert "".join(w.text for w in windows) == text
    assert [i for w in windows for i in w.ids] == tokenizer.encode(text)
    assert [w.ends_document for w in windows] == [False] * (len(windows) - 1) + [True] * bool(windows)
    for window in windows:
      assert window.ids.dtype == np.int32
      assert 1 <= len(window.ids) <= window_tokens
      assert tokenizer.decode(window.ids) == window.text
  for window in documents[0][:-1]:  # one token never cuts a letter: these windows are full
    assert len(window.ids) == window_tokens


def test_a_document_of_exactly_one_window(tokenizer):
  size = len(tokenizer.encode(TEXTS[0]))
  assert [len(d) for limit in (size - 1, size, size + 1) for d in windows_of(TEXTS[:1], tokenizer, limit)] == [
    2,
    1,
    1,
  ]


def test_window_smaller_than_a_character(tokenizer):
  with pytest.raises(ValueError, match="window_tokens is 3"):
    list(windows_of(TEXTS, tokenizer, 3))
