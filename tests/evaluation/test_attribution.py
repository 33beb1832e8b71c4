"""What a fact owes to each level's block."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from hiermem_jax.evaluation.attribution import ablations, gradients, report
from hiermem_jax.evaluation.modes import Mode
from hiermem_jax.evaluation.probes import read_probes
from hiermem_jax.evaluation.scoring import Scorer


@pytest.fixture(scope="module")
def probes(toy_run, loaded):
  return read_probes(map(json.loads, (toy_run / "probes.jsonl").read_text().splitlines()), loaded.tokenizer)


def with_bank(model, bank):
  return dataclasses.replace(model, params=model.params | {"bank": bank})


def test_ablation_is_the_score_with_the_level_zeroed(loaded, mesh, in_modes, probes):
  prompts, answers = [p.prompt for p in probes], [p.answer for p in probes]
  leaf = in_modes.leaves(Mode.parse("fetched"), [p.text for p in probes])
  whole, lost = ablations(in_modes, probes, leaf)
  model, bos_id = loaded.model, loaded.tokenizer.bos_id
  expected = in_modes.scorer(Mode.parse("fetched")).score_continuations(prompts, answers, leaf)[0]
  np.testing.assert_allclose(whole, expected, atol=1e-5)
  for column, name in enumerate(("level_1", "level_2")):
    zeroed = with_bank(model, model.params["bank"] | {name: 0 * model.params["bank"][name]})
    without = Scorer(zeroed, mesh, 16, bos_id=bos_id).score_continuations(prompts, answers, leaf)[0]
    np.testing.assert_allclose(lost[:, column], expected - without, atol=1e-4)
  assert np.abs(lost).max() > 0.05


def test_report_by_bucket(loaded, in_modes, probes):
  found, lines = report(in_modes, probes, (1, 20, 100))
  assert found["levels"] == [1, 2] and len(lines) == len(probes)
  counts = np.array([line["count"] for line in lines])
  losses = np.array([list(line["lost_without_level"].values()) for line in lines])
  assert 0 < (counts < 20).sum() < len(lines)
  np.testing.assert_allclose(found["lost_without_level"][0], losses[counts < 20].mean(axis=0))
  np.testing.assert_allclose(found["lost_without_level"][1], losses[counts >= 20].mean(axis=0))
  assert np.isnan(found["lost_without_level"][2]).all()
  assert [line["prompt"] for line in lines] == [probe.text for probe in probes]
  np.testing.assert_array_equal([line["leaf"] for line in lines], loaded.retriever.route([p.text for p in probes]))


def test_gradient_shares_add_up_to_the_directional_derivative(loaded, mesh, probes):
  """The sum over units is d/ds of the answer's log-likelihood with the bank scaled by s, at s = 1."""
  step, probe, model = 1e-2, probes[0], loaded.model
  leaf = loaded.retriever.route([probe.text])

  def score(scale):
    scorer = Scorer(with_bank(model, jax.tree.map(lambda table: table * scale, model.params["bank"])), mesh, 1)
    return scorer.score_continuations([probe.prompt], [probe.answer], leaf)[0][0]

  shares = gradients(model, probe, int(leaf[0]), bos_id=0)
  assert {level: share.shape for level, share in shares.items()} == {1: (2, 3), 2: (2, 2)}
  derivative = (score(1 + step) - score(1 - step)) / (2 * step)
  assert sum(share.sum() for share in shares.values()) == pytest.approx(derivative, rel=0.05, abs=5e-3)
