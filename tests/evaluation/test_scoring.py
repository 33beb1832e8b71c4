"""Scores against one sequence at a time, without padding, in float64."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.evaluation import (
  MODES,
  Probe,
  Scorer,
  check_mode,
  held_out_loss,
  keep_levels,
  mode_leaves,
  mode_levels,
  probe_accuracy,
  scoring,
)
from hiermem_jax.evaluation.scoring import prompt_batch
from hiermem_jax.models import NO_MEMORY, Anchor, AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.bank import table_shapes
from hiermem_jax.models.memory import KINDS, Block
from hiermem_jax.models.model import Model
from hiermem_jax.parallel import make_mesh

ANCHOR = AnchorConfig(
  num_layers=1, width=8, num_heads=2, head_dim=4, mlp_width=12, vocab_size=7, dtype="float32", rope_base=100.0
)
MEMORY = MemoryConfig(rows=(2, 1), branching=3)
GENERIC = MEMORY.num_leaves
MESH = make_mesh(devices=jax.devices()[:1])
BOS = 5


@pytest.fixture(scope="module")
def model(random_anchor):
  rng = np.random.default_rng(0)
  shapes = table_shapes(ModelConfig(anchor=ANCHOR, memory=MEMORY))
  bank = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
  params = {"anchor": random_anchor(ANCHOR), "bank": bank}
  params["anchor"]["head"]["kernel"] *= 3  # confident enough for greedy decoding to be right now and then
  return Model(ModelConfig(anchor=ANCHOR, memory=MEMORY), jax.tree.map(jax.numpy.asarray, params), {})


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


def test_long_prompts_lose_their_beginning_and_are_counted(model, scorer, questions):
  short = Scorer(model, MESH, batch_size=4, bos_id=BOS, max_length=8)
  likelihoods, _ = short.score_continuations(*questions)
  cut = [prompt[max(0, len(prompt) + len(c) - 8) :] for prompt, c in zip(questions.prompts, questions.continuations)]
  assert short.truncated == sum(len(a) < len(b) for a, b in zip(cut, questions.prompts)) == 3
  expected, _ = scorer.score_continuations(cut, questions.continuations, questions.leaf)
  np.testing.assert_allclose(likelihoods, expected, atol=1e-5)
  cut = [prompt[max(0, len(prompt) - 5) :] for prompt in questions.prompts]
  expected = scorer.generate(cut, questions.leaf, 3, stop=())
  assert short.generate(questions.prompts, questions.leaf, 3, stop=()) == expected
  with pytest.raises(InputError, match="9 tokens to score or generate: the context has 8"):
    short.score_continuations([[]], [[1] * 9], questions.leaf[:1])


@pytest.mark.parametrize("mode", ["levels 1", "levels 2", "levels 1 2"])
def test_levels_alone_are_the_bank_with_the_others_zeroed(model, questions, mode):
  check_mode(mode, MEMORY)
  kept = keep_levels(model, mode_levels(mode))
  result, _ = Scorer(kept, MESH, batch_size=4, bos_id=BOS).score_continuations(*questions)
  bank = {name: table if name[-1] in mode else 0 * table for name, table in model.params["bank"].items()}
  zeroed = Scorer(model._replace(params=model.params | {"bank": bank}), MESH, batch_size=4, bos_id=BOS)
  expected, _ = zeroed.score_continuations(*questions)
  np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(
  ("mode", "memory", "message"),
  [
    ("best", MEMORY, "mode = 'best': choose from none, generic, fetched, wrong, or 'levels 1 2'"),
    ("levels", MEMORY, "mode = 'levels': choose from"),
    ("fetched", None, "mode = 'fetched': the checkpoint has no bank; choose 'none'"),
    ("levels 1 3", MEMORY, r"mode = 'levels 1 3': rows \(2, 1\) has none on levels \[3\]"),
  ],
)
def test_bad_modes_are_named(mode, memory, message):
  with pytest.raises(InputError, match=message):
    check_mode(mode, memory)


def random_batches(rng):
  """Packed sequences, documents of their own, some tokens not counted; the last batch is short."""
  result = []
  for size in (4, 4, 2):
    segments = np.tile(np.array([1, 1, 1, 2, 2, 2, 2, 0], np.int32), (size, 1))
    targets = rng.integers(0, 7, segments.shape).astype(np.int32)
    inputs = np.pad(targets, [(0, 0), (1, 0)])[:, :-1]
    inputs[:, [0, 3]] = BOS
    result.append(
      {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_segment_ids": segments,
        "decoder_positions": np.tile(np.array([0, 1, 2, 0, 1, 2, 3, 0], np.int32), (size, 1)),
        "decoder_loss_weights": ((segments > 0) & (rng.random(segments.shape) < 0.6)).astype(np.float32),
        "memory_leaf": rng.integers(0, MEMORY.num_leaves, size).astype(np.int32),
      }
    )
  return result


@pytest.mark.parametrize("mode", ["none", "generic", "fetched"])
def test_held_out_loss_is_the_mean_over_tokens(scorer, log_probabilities, mode):
  batches, losses = random_batches(np.random.default_rng(3)), []
  for batch in batches:
    for row, leaf in enumerate(batch["memory_leaf"]):
      used = {"none": NO_MEMORY, "generic": GENERIC, "fetched": int(leaf)}[mode]
      for document in (slice(0, 3), slice(3, 7)):
        tokens = tuple(batch["decoder_target_tokens"][row, document].tolist())
        scores = log_probabilities(tokens, used)[range(len(tokens)), tokens]
        losses += list(-scores[batch["decoder_loss_weights"][row, document] > 0])
  assert held_out_loss(scorer, batches, mode) == pytest.approx(np.mean(losses), rel=1e-5)


def test_model_without_memory(model, scorer, questions):
  """Scores as the model with a bank does when nothing is fetched."""
  alone = Scorer(
    Model(ModelConfig(anchor=ANCHOR, memory=None), {"anchor": model.params["anchor"]}, {}),
    MESH,
    batch_size=4,
    bos_id=BOS,
  )
  batches = random_batches(np.random.default_rng(3))
  assert held_out_loss(alone, batches, "fetched") == pytest.approx(held_out_loss(scorer, batches, "none"), rel=1e-6)
  none = np.full_like(questions.leaf, NO_MEMORY)
  expected, _ = scorer.score_continuations(questions.prompts, questions.continuations, none)
  result, _ = alone.score_continuations(*questions)
  np.testing.assert_allclose(result, expected, atol=1e-5)


def test_probe_accuracy_by_bucket(scorer, log_probabilities):
  """Probes whose answers are right or wrong by construction; a count below the first bucket is in none."""
  rng, probes, hits = np.random.default_rng(4), [], {0: [], 1: [], 2: []}
  for index, count in enumerate([1, 2, 3, 3, 4, 8, 15, 15, 4, 0]):
    prompt, leaf = rng.integers(0, 7, 3).tolist(), int(rng.integers(0, 9))
    answer = decode(prompt, 2, leaf, log_probabilities)
    right = index % 3 != 0
    probes.append(Probe(prompt, answer if right else [answer[0], (answer[1] + 1) % 7], count, leaf))
    if count:
      hits[0 if count < 4 else 1].append(right)
  result = probe_accuracy(scorer, probes, buckets=(1, 4, 16), mode="fetched")
  assert [cell["count"] for cell in result] == [4, 5, 0]
  for bucket in (0, 1):
    accuracy = np.mean(hits[bucket])
    assert 0 < accuracy < 1
    assert result[bucket]["accuracy"] == pytest.approx(accuracy)
    assert result[bucket]["stderr"] == pytest.approx(np.std(hits[bucket]) / np.sqrt(len(hits[bucket])))
  assert np.isnan(result[2]["accuracy"])
  assert np.isnan(result[2]["stderr"])


def test_mode_leaves():
  leaf = np.arange(MEMORY.num_leaves, dtype=np.int32)
  np.testing.assert_array_equal(mode_leaves("none", leaf, MEMORY), np.full(9, NO_MEMORY))
  np.testing.assert_array_equal(mode_leaves("generic", leaf, MEMORY), np.full(9, 9))
  np.testing.assert_array_equal(mode_leaves("fetched", leaf, MEMORY), leaf)
  for mode in MODES:
    assert mode_leaves(mode, leaf, MEMORY).dtype == np.int32
  with pytest.raises(ValueError, match="best"):
    mode_leaves("best", leaf, MEMORY)


def test_wrong_path_shares_no_level():
  memory = MemoryConfig(rows=(1, 1, 1), branching=4)
  leaf = np.random.default_rng(1).integers(0, 64, 2000).astype(np.int32)
  wrong = mode_leaves("wrong", leaf, memory)
  assert ((wrong >= 0) & (wrong < 64)).all()
  for below in (16, 4, 1):
    assert (wrong // below != leaf // below).all()
  np.testing.assert_array_equal(wrong % 16, leaf % 16)  # the same place in the other subtree
  np.testing.assert_array_equal(mode_leaves("wrong", leaf, memory), wrong)
  for subtree in range(4):  # every other subtree is used
    assert len(set(wrong[leaf // 16 == subtree] // 16)) == 3
