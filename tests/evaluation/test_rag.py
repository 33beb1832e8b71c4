"""Documents in front of prompts."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from hiermem_jax.evaluation.rag import Documents, relative_flops
from hiermem_jax.models.anchor import Anchor
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.memory import KINDS, Block

TEXTS = ["The owl likes plum. Ask the owl for corn.", "The fox likes kale.", "moss", "hay for the yak"]


def test_documents_stand_in_front_and_lose_their_end(loaded):
  tokenizer = loaded.tokenizer
  documents = Documents(TEXTS, loaded.retriever, tokenizer)
  assert documents.text_bytes == 79
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


def test_relative_flops_of_memory_are_the_compilers():
  """What fetched memory adds to the FLOPs of a forward pass, as XLA counts them.

  XLA counts attention to all positions and we to half of them, so the attention is made small here.
  """
  anchor = AnchorConfig(num_layers=1, width=64, num_heads=1, head_dim=2, mlp_width=256, vocab_size=512, dtype="float32")
  memory = MemoryConfig(rows=(128, 64), branching=2)
  model, length = Anchor(anchor), 16
  inputs, positions = np.zeros((1, length), np.int32), np.arange(length, dtype=np.int32)[None]
  variables = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), inputs, inputs + 1, positions, None))

  def flops(block):
    compiled = jax.jit(model.apply).lower(variables, inputs, inputs + 1, positions, block).compile()
    return compiled.cost_analysis()["flops"]

  block = Block({name: np.zeros((1, 1, 192, 64), np.float32) for name in ("m1", "m2", "m3")}, KINDS["ffn"])
  lengths = np.array([length])
  found = relative_flops(ModelConfig(anchor=anchor, memory=memory), lengths, lengths)
  assert found == pytest.approx(flops(block) / flops(None), rel=0.03)
  assert found > 1.3


def test_relative_flops_grow_with_the_prompt():
  config = ModelConfig(anchor=AnchorConfig(num_layers=2, width=8, num_heads=2, head_dim=4, mlp_width=16, vocab_size=11))
  plain, doubled = np.array([10, 20]), np.array([20, 40])
  assert relative_flops(config, plain, plain) == 1
  # Twice the tokens cost twice the FLOPs, and attention, which looks further, more.
  assert 2 < relative_flops(config, doubled, plain) < 4
