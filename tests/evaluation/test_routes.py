"""Routes of questions, and what a fact owes to each level's block."""

import jax
import numpy as np
import pytest

from hiermem_jax.data.text.tokenizer import load_tokenizer
from hiermem_jax.errors import InputError
from hiermem_jax.evaluation import Probe, Scorer
from hiermem_jax.evaluation.attribution import ablations, gradients
from hiermem_jax.evaluation.memory_modes import MemoryModes
from hiermem_jax.evaluation.routes import Routes, is_route
from hiermem_jax.retrieval.retriever import load_retriever
from hiermem_jax.training.checkpoint import load_model

TEXTS = ["The owl likes plum.", "Ask the fox for corn.", "What does the yak like?", "kale and figs", "moss"]


@pytest.fixture(scope="module")
def retriever(toy_run):
  return load_retriever(str(toy_run / "tree"))


@pytest.fixture(scope="module")
def model(toy_run, mesh):
  return load_model(str(toy_run / "model"), mesh)


@pytest.fixture(scope="module")
def probes(toy_run, retriever):
  tokenizer, leaf = load_tokenizer(str(toy_run / "tokenizer.model")), retriever.route(TEXTS)
  return [Probe(tokenizer.encode(text), tokenizer.encode(" corn"), 1, int(x)) for text, x in zip(TEXTS, leaf)]


def test_which_modes_are_routes():
  assert all(map(is_route, ("blocked 3", "blocked 1:0 2:17", "rank 12", "cut 50", "paraphrased")))
  assert not any(map(is_route, ("blocked", "rank 0", "cut 100", "fetched", "levels 1", "blocked 0")))


def test_routes(retriever, model):
  routes = Routes(retriever, TEXTS, [text.upper() for text in TEXTS])
  np.testing.assert_array_equal(routes.leaf, retriever.route(TEXTS))
  np.testing.assert_array_equal(routes.leaves("fetched", model.memory), routes.leaf)
  np.testing.assert_array_equal(routes.leaves("generic", model.memory), [4] * 5)
  assert (routes.leaves("blocked 1", model.memory) // 2 != routes.leaf // 2).all()
  blocked = routes.leaves("blocked 2", model.memory)
  np.testing.assert_array_equal(blocked, routes.leaf ^ 1)  # the other child
  np.testing.assert_array_equal(
    routes.leaves("cut 50", model.memory), retriever.route(["The owl", "Ask the", "What does", "kale", "moss"])
  )
  np.testing.assert_array_equal(routes.leaves("paraphrased", model.memory), retriever.route([t.upper() for t in TEXTS]))
  assert (routes.leaves("blocked 2:0 2:1", model.memory) >= 2).all()
  with pytest.raises(InputError, match="no field `paraphrase`"):
    Routes(retriever, TEXTS).leaves("paraphrased", model.memory)
  with pytest.raises(InputError, match="'blocked 3': the tree has levels 1 to 2"):
    routes.leaves("blocked 3", model.memory)


def test_memory_modes(retriever, model, mesh):
  modes = MemoryModes(model, mesh, retriever, ["none", "fetched", "levels 2", "rank 2"], batch_size=4)
  scorer, leaf = modes.of_questions("fetched", [*TEXTS, TEXTS[0]])
  np.testing.assert_array_equal(leaf, retriever.route([*TEXTS, TEXTS[0]]))
  assert modes.of_questions("rank 2", TEXTS)[0] is scorer
  assert modes.of_questions("levels 2", TEXTS)[0].model.memory.rows == (0, 2)
  np.testing.assert_array_equal(modes.of_questions("none", TEXTS)[1], [-1] * 5)
  plain = model._replace(memory=None, params={"anchor": model.params["anchor"]})
  with pytest.raises(InputError, match="'rank 2': the checkpoint has no bank|mode = 'rank 2'"):
    MemoryModes(plain, mesh, None, ["rank 2"], batch_size=4)


def test_ablation_is_the_score_without_the_level(model, mesh, probes):
  whole, lost = ablations(model, mesh, probes, batch_size=4, bos_id=0)
  prompts, answers = [p.prompt for p in probes], [p.answer for p in probes]
  leaf = np.array([p.leaf for p in probes], np.int32)
  np.testing.assert_allclose(whole, Scorer(model, mesh, 4).score_continuations(prompts, answers, leaf)[0], atol=1e-5)
  for column, name in enumerate(("level_1", "level_2")):
    bank = model.params["bank"] | {name: 0 * model.params["bank"][name]}
    without = Scorer(model._replace(params=model.params | {"bank": bank}), mesh, 4)
    expected = whole - without.score_continuations(prompts, answers, leaf)[0]
    np.testing.assert_allclose(lost[:, column], expected, atol=1e-4)
  assert np.abs(lost).max() > 0.05


def test_gradient_shares_add_up_to_the_directional_derivative(model, mesh, probes):
  """The sum over units is d/ds of the answer's log-likelihood with the bank scaled by s, at s = 1."""
  step, probe = 1e-2, probes[0]

  def score(scale):
    bank = jax.tree.map(lambda table: table * scale, model.params["bank"])
    scorer = Scorer(model._replace(params=model.params | {"bank": bank}), mesh, 1)
    return scorer.score_continuations([probe.prompt], [probe.answer], np.array([probe.leaf], np.int32))[0][0]

  shares = gradients(model, probe, bos_id=0)
  assert {level: share.shape for level, share in shares.items()} == {1: (2, 3), 2: (2, 2)}
  derivative = (score(1 + step) - score(1 - step)) / (2 * step)
  assert sum(share.sum() for share in shares.values()) == pytest.approx(derivative, rel=0.05, abs=5e-3)
