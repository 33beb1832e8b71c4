"""Documents in front of prompts."""

import numpy as np
import pytest

from hiermem_jax.data.text.tokenizer import load_tokenizer
from hiermem_jax.evaluation.rag import Documents, relative_flops
from hiermem_jax.models import AnchorConfig, MemoryConfig
from hiermem_jax.retrieval.retriever import load_retriever

TEXTS = ["The owl likes plum. Ask the owl for corn.", "The fox likes kale.", "moss", "hay for the yak"]


@pytest.fixture(scope="module")
def tokenizer(toy_run):
  return load_tokenizer(str(toy_run / "tokenizer.model"))


def test_documents_stand_in_front_and_lose_their_end(toy_run, tokenizer):
  documents = Documents(TEXTS, load_retriever(str(toy_run / "tree")), tokenizer)
  assert documents.text_bytes == sum(map(len, TEXTS))
  questions = [TEXTS[0], TEXTS[1], TEXTS[0]]  # a document is nearest to itself
  prompts = [tokenizer.encode(text) for text in ("The owl", "The fox", "What does the owl like?")]
  whole = documents.prepend(prompts, questions, following=2, max_length=200)
  for prompt, question, ids in zip(prompts, questions, whole):
    assert ids == [*tokenizer.encode(question), *tokenizer.encode("\n"), *prompt]
  short = documents.prepend(prompts, questions, following=2, max_length=20)
  for prompt, question, ids in zip(prompts, questions, short):
    assert len(ids) <= 18
    assert ids[len(ids) - len(prompt) :] == prompt
    assert ids[: len(ids) - len(prompt) - 1] == tokenizer.encode(question)[: len(ids) - len(prompt) - 1]
  assert documents.prepend(prompts, questions, following=2, max_length=4) == prompts


def test_relative_flops():
  anchor = AnchorConfig(num_layers=2, width=8, num_heads=2, head_dim=4, mlp_width=16, vocab_size=11)
  plain, long = np.array([10, 20]), np.array([40, 50])
  assert relative_flops(anchor, None, plain, plain) == 1
  ratio = relative_flops(anchor, None, long, plain)
  expected = sum(n * anchor.flops_per_token(n) for n in (40, 50)) / sum(n * anchor.flops_per_token(n) for n in (10, 20))
  assert ratio == pytest.approx(expected)
  memory = MemoryConfig(rows=(4,), branching=2)
  added = relative_flops(anchor, memory, plain, plain) - 1
  assert added == pytest.approx(30 * 2 * 3 * 4 * 2 * 8 / sum(n * anchor.flops_per_token(n) for n in (10, 20)))
