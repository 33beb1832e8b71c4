"""Scores against one sequence at a time, without padding, in float64."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.evaluation import scoring
from hiermem_jax.evaluation.modes import keep_levels
from hiermem_jax.evaluation.scoring import Scorer, prompt_batch
from hiermem_jax.models import NO_MEMORY, Anchor
from hiermem_jax.models.bank import table_shapes
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.memory import KINDS, Block
from hiermem_jax.models.model import Model
from hiermem_jax.parallel import make_mesh

ANCHOR = AnchorConfig(
  num_layers=1, width=8, num_heads=2, head_dim=4, mlp_width=12, vocab_size=7, dtype="float32", rope_base=100.0
)
MEMORY = MemoryConfig(rows=(2, 1), branching=3)
CONFIG = ModelConfig(anchor=ANCHOR, memory=MEMORY)
GENERIC = MEMORY.num_leaves
MESH = make_mesh(devices=jax.devices()[:1])
BOS = 5


@pytest.fixture(scope="module")
def model(random_anchor):
  rng = np.random.default_rng(0)
  shapes = table_shapes(CONFIG)
  bank = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
  params = {"anchor": random_anchor(ANCHOR), "bank": bank}
  params["anchor"]["head"]["kernel"] *= 3  # confident enough for greedy decoding to be right now and then
  return Model(CONFIG, jax.tree.map(jax.numpy.asarray, params), {})


@pytest.fixture(scope="module")
def scorer(model):
  return Scorer(model, MESH, batch_size=4, bos_id=BOS)


@pytest.fixture(scope="module")
def log_probabilities(model):
  """From one document's tokens and its leaf to log-probabilities float64 [S, V] of what follows each input."""
  apply = jax.jit(functools.partial(Anchor(ANCHOR).apply, {"params": model.params["anchor"]}))

  def one_block(leaf):
    parts = []
    for name, neurons in (("level_1", 2), ("level_2", 1)):
      table = np.asarray(model.params["bank"][name])
      row = len(table) - 1 if leaf == GENERIC else leaf // (3 if name == "level_1" else 1)
      values = np.zeros_like(table[0]) if leaf < 0 else table[row]
      parts.append(values.reshape(1, neurons, 1, 3, 8).transpose(0, 2, 3, 1, 4))
    return Block(dict(zip(("m1", "m2", "m3"), np.moveaxis(np.concatenate(parts, axis=3), 2, 0))), KINDS["ffn"])

  @functools.cache
  def score(tokens, leaf):
    inputs = np.array([[BOS, *tokens[:-1]]], np.int32)
    positions = np.arange(len(tokens), dtype=np.int32)[None]
    logits = np.asarray(apply(inputs, np.ones_like(inputs), positions, one_block(leaf))[0], np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

  return score


class Questions(NamedTuple):
  prompts: list[list[int]]
  continuations: list[list[int]]
  leaf: np.ndarray


@pytest.fixture(scope="module")
def questions():
  """Lengths on both sides of a padding bucket, an empty prompt, every kind of leaf id."""
  rng = np.random.default_rng(1)
  lengths = [(0, 1), (3, 1), (14, 2), (15, 2), (2, 2), (3, 1), (1, 3), (12, 4), (3, 1), (0, 4)]
  prompts = [rng.integers(0, 7, prompt).tolist() for prompt, _ in lengths]
  continuations = [rng.integers(0, 7, continuation).tolist() for _, continuation in lengths]
  return Questions(prompts, continuations, np.array([0, 8, GENERIC, NO_MEMORY, 4, 5, 1, 2, 3, 6], np.int32))


def naive(questions, log_probabilities):
  """Log-likelihoods, and whether the most likely tokens are the continuation."""
  likelihoods, greedy = [], []
  for prompt, continuation, leaf in zip(*questions):
    rows = log_probabilities((*prompt, *continuation), int(leaf))[len(prompt) :]
    likelihoods.append(sum(row[token] for row, token in zip(rows, continuation)))
    greedy.append(rows.argmax(axis=-1).tolist() == continuation)
  return np.array(likelihoods), np.array(greedy)


def decode(prompt, count, leaf, log_probabilities):
  """Greedy decoding, token by token."""
  tokens = list(prompt)
  for _ in range(count):
    tokens.append(int(log_probabilities((*tokens, 0), leaf)[-1].argmax()))  # the last target is not an input
  return tokens[len(prompt) :]


def test_continuations_one_by_one(scorer, questions, log_probabilities):
  likelihoods, greedy = scorer.score_continuations(*questions)
  expected, expected_greedy = naive(questions, log_probabilities)
  np.testing.assert_allclose(likelihoods, expected, atol=1e-4)
  np.testing.assert_array_equal(greedy, expected_greedy)
  assert likelihoods.dtype == np.float32
  assert greedy.dtype == bool


def test_greedy_means_what_decoding_gives(scorer, questions, log_probabilities):
  chosen = [1, 5, 8, 4]
  prompts, leaf = [questions.prompts[i] for i in chosen], questions.leaf[chosen]
  decoded = [decode(prompt, 2, int(x), log_probabilities) for prompt, x in zip(prompts, leaf)]
  _, greedy = scorer.score_continuations(prompts, decoded, leaf)
  assert greedy.all()
  wrong = [list(tokens) for tokens in decoded]
  for position, tokens in zip((0, 1, 1, 0), wrong):
    tokens[position] = (tokens[position] + 1) % 7
  _, greedy = scorer.score_continuations(prompts, wrong, leaf)
  assert not greedy.any()


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_how_many_logits_exist_at_a_time_does_not_matter(model, scorer, questions, monkeypatch, count):
  monkeypatch.setattr(scoring, "_LOGITS_AT_A_TIME", count)
  likelihoods, greedy = Scorer(model, MESH, batch_size=4, bos_id=BOS).score_continuations(*questions)
  expected, expected_greedy = scorer.score_continuations(*questions)
  np.testing.assert_allclose(likelihoods, expected, atol=1e-5)
  np.testing.assert_array_equal(greedy, expected_greedy)


def test_tokens_without_weight_get_no_logits(scorer, questions):
  """A prompt of any length with a continuation of one token: one row of logits a sequence."""
  pairs = [(prompt, continuation[:1]) for prompt, continuation in zip(*questions[:2])][:4]
  batch = prompt_batch(pairs, questions.leaf[:4], 16, BOS)
  placed = {name: jax.numpy.asarray(array) for name, array in batch.items()}
  text = scorer._score.lower(scorer.model.params, placed, 1).as_text()
  assert "tensor<4x7xf32>" in text and "x16x7xf32>" not in text and "tensor<64x7xf32>" not in text


def test_batch_size_and_order_do_not_matter(model, scorer, questions):
  likelihoods, greedy = scorer.score_continuations(*questions)
  order = np.random.default_rng(2).permutation(len(questions.leaf))
  shuffled = Questions(*([column[i] for i in order] for column in questions[:2]), questions.leaf[order])
  other, other_greedy = Scorer(model, MESH, batch_size=7, bos_id=BOS).score_continuations(*shuffled)
  np.testing.assert_allclose(other, likelihoods[order], atol=1e-5)
  np.testing.assert_array_equal(other_greedy, greedy[order])


@pytest.mark.parametrize("count", [1, 4])
def test_generation_with_the_cache_is_generation_without(scorer, questions, log_probabilities, count):
  generated = scorer.generate(questions.prompts, questions.leaf, count, stop=())
  for prompt, leaf, tokens in zip(questions.prompts, questions.leaf, generated):
    assert tokens == decode(prompt, count, int(leaf), log_probabilities)
  assert len({tuple(tokens) for tokens in generated}) > 3


def test_generation_ends_at_a_stop_token(scorer, questions, log_probabilities):
  everything = scorer.generate(questions.prompts, questions.leaf, 6, stop=())
  stopped = scorer.generate(questions.prompts, questions.leaf, 6, stop=(2, 3))
  ends = 0
  for whole, tokens in zip(everything, stopped):
    expected = whole[: min([whole.index(stop) for stop in (2, 3) if stop in whole], default=6)]
    assert tokens == expected
    ends += len(expected) < 6
  assert ends > 0
  # In a batch of its own, a prompt that ends at once stops the loop at once.
  index = next(i for i, tokens in enumerate(stopped) if len(tokens) == min(map(len, stopped)))
  assert scorer.generate([questions.prompts[index]], questions.leaf[[index]], 6, stop=(2, 3)) == [stopped[index]]


def test_long_prompts_lose_their_beginning(model, scorer, questions):
  short = Scorer(model, MESH, batch_size=4, bos_id=BOS, max_length=8)
  likelihoods, _ = short.score_continuations(*questions)
  cut = [prompt[max(0, len(prompt) + len(c) - 8) :] for prompt, c in zip(questions.prompts, questions.continuations)]
  assert sum(len(a) < len(b) for a, b in zip(cut, questions.prompts)) == 3
  expected, _ = scorer.score_continuations(cut, questions.continuations, questions.leaf)
  np.testing.assert_allclose(likelihoods, expected, atol=1e-5)
  cut = [prompt[max(0, len(prompt) - 5) :] for prompt in questions.prompts]
  expected = scorer.generate(cut, questions.leaf, 3, stop=())
  assert short.generate(questions.prompts, questions.leaf, 3, stop=()) == expected
  with pytest.raises(InputError, match="9 tokens to score or generate: the context has 8"):
    short.score_continuations([[]], [[1] * 9], questions.leaf[:1])


@pytest.mark.parametrize("levels", [(1,), (2,), (1, 2)])
def test_levels_alone_are_the_bank_with_the_others_zeroed(model, questions, levels):
  kept = keep_levels(model, levels)
  result, _ = Scorer(kept, MESH, batch_size=4, bos_id=BOS).score_continuations(*questions)
  bank = {name: table if int(name[-1]) in levels else 0 * table for name, table in model.params["bank"].items()}
  zeroed = dataclasses.replace(model, params=model.params | {"bank": bank})
  expected, _ = Scorer(zeroed, MESH, batch_size=4, bos_id=BOS).score_continuations(*questions)
  np.testing.assert_allclose(result, expected, atol=1e-5)


def test_model_without_memory(model, scorer, questions):
  """Scores as the model with a bank does when nothing is fetched."""
  alone = Model(ModelConfig(anchor=ANCHOR), {"anchor": model.params["anchor"]}, {})
  none = np.full_like(questions.leaf, NO_MEMORY)
  expected, _ = scorer.score_continuations(questions.prompts, questions.continuations, none)
  result, _ = Scorer(alone, MESH, batch_size=4, bos_id=BOS).score_continuations(*questions)
  np.testing.assert_allclose(result, expected, atol=1e-5)


def test_documents_are_scored_in_windows(model, questions, log_probabilities):
  """Lengths below, at and above multiples of the window; no window sees what is before it."""
  rng = np.random.default_rng(5)
  documents = [rng.integers(0, 7, length).tolist() for length in (3, 5, 11, 10, 0, 6)]
  leaf = questions.leaf[: len(documents)]
  found = Scorer(model, MESH, batch_size=4, bos_id=BOS, max_length=5).score_documents(documents, leaf)
  for ids, number, value in zip(documents, leaf, found):
    windows = [ids[start : start + 5] for start in range(0, len(ids), 5)]
    scores = [log_probabilities(tuple(w), int(number))[range(len(w)), w].sum() for w in windows]
    assert value == pytest.approx(sum(scores), abs=1e-4)


@pytest.mark.parametrize("length", [0, 1, 15, 16])
def test_logits_of_every_next_token(scorer, log_probabilities, length):
  ids, leaf = np.random.default_rng(6).integers(0, 7, length).tolist(), 4
  logits = scorer.logits(ids, leaf)
  assert logits.shape == (length + 1, 7) and logits.dtype == np.float32
  found = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=-1, keepdims=True))
  np.testing.assert_allclose(found, log_probabilities((*ids, 0), leaf), atol=1e-4)
