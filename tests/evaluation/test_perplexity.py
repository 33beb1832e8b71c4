"""Perplexity against sums over single documents."""

import json
import math
import types

import numpy as np
import pytest

from hiermem_jax.data.packed.batches import in_order
from hiermem_jax.evaluation.config import ModelFiles, ScoringConfig
from hiermem_jax.evaluation.loading import load, open_held_out
from hiermem_jax.evaluation.modes import Mode
from hiermem_jax.evaluation.perplexity import article_perplexity, held_out_loss


@pytest.fixture(scope="module")
def texts(toy_run):
  return [json.loads(line)["text"] for line in (toy_run / "articles.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["none", "generic", "fetched", "levels 2"])
def test_held_out_loss_is_the_mean_over_tokens(toy_run, loaded, in_modes, name):
  """The packed text has one document per sequence; the last batch is short."""
  dataset, mode = open_held_out(str(toy_run), "packed/validation", loaded), Mode.parse(name)
  leaves, targets, segments = dataset.read(np.arange(len(dataset)))
  assert len(leaves) % 4
  total, tokens = 0.0, 0
  for leaf, ids, parts in zip(leaves, targets, segments):
    leaf = {"none": -1, "generic": 4}.get(name, leaf)
    document = ids[parts > 0].tolist()
    total -= in_modes.scorer(mode).score_continuations([[]], [document], np.array([leaf], np.int32))[0][0]
    tokens += len(document)
  found = held_out_loss(in_modes.scorer(mode), in_order(dataset, 4), mode)
  assert found == pytest.approx(total / tokens, rel=1e-5)


def test_weights_choose_the_tokens(toy_run, loaded, in_modes):
  dataset, mode = open_held_out(str(toy_run), "packed/validation", loaded), Mode.parse("fetched")
  (batch, *_) = in_order(dataset, 4)
  first = np.zeros_like(batch["decoder_loss_weights"])
  first[:, 0] = 1
  found = held_out_loss(in_modes.scorer(mode), [batch | {"decoder_loss_weights": first}], mode)
  starts = batch["decoder_target_tokens"][:, :1].tolist()
  scores, _ = in_modes.scorer(mode).score_continuations([[]] * 4, starts, batch["memory_leaf"])
  assert found == pytest.approx(-scores.mean(), rel=1e-5)


def test_sums_are_in_float64():
  """2^24 is where float32 stops counting by one."""
  losses = np.array([[2.0**24, 1, 1, 1, 1]], np.float32)
  scorer = types.SimpleNamespace(
    model=types.SimpleNamespace(memory=None), score_batch=lambda batch: (losses, np.ones_like(losses), None)
  )
  assert held_out_loss(scorer, [{}], Mode.parse("none")) == (2**24 + 4) / 5


def test_held_out_text_without_memory(toy_run, loaded, in_modes, mesh):
  """A model without a bank has the loss that the same anchor has when nothing is fetched."""
  plain = load(str(toy_run), ModelFiles(directory="plain"), mesh=mesh)
  dataset, none = open_held_out(str(toy_run), "packed/validation", plain), Mode.parse("none")
  alone = held_out_loss(plain.in_modes(ScoringConfig(batch_size=4)).scorer(none), in_order(dataset, 4), none)
  assert alone == pytest.approx(held_out_loss(in_modes.scorer(none), in_order(dataset, 4), none), rel=1e-6)


def test_articles_one_by_one(loaded, in_modes, texts):
  scorer, leaf = in_modes.scorer(Mode.parse("fetched")), loaded.retriever.route(texts)
  documents = [[*loaded.tokenizer.encode(text), loaded.tokenizer.eot_id] for text in texts]
  losses = [-scorer.score_continuations([[]], [ids], leaf[[i]])[0][0] for i, ids in enumerate(documents)]
  tokens = list(map(len, documents))
  found = article_perplexity(documents, leaf, scorer)
  assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / sum(tokens)), rel=1e-4)
  assert found["mean_perplexity"] == pytest.approx(np.mean(np.exp(np.divide(losses, tokens))), rel=1e-4)
  assert (found["articles"], found["tokens"]) == (9, sum(tokens))
