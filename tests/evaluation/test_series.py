"""What `evaluate` measures: a model's series, against scores of single questions."""

import json
import math

import numpy as np
import pytest

from hiermem_jax.data.packed.batches import in_order
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.errors import InputError
from hiermem_jax.evaluate import evaluate
from hiermem_jax.evaluation import series
from hiermem_jax.evaluation.config import ModelFiles, RagConfig
from hiermem_jax.evaluation.loading import load, open_held_out
from hiermem_jax.evaluation.modes import Mode, parse_modes
from hiermem_jax.evaluation.perplexity import held_out_loss
from hiermem_jax.evaluation.probes import read_probes
from hiermem_jax.evaluation.rag import load_documents

MODES = ("none", "fetched", "levels 2", "rank 2", "paraphrased", "rag none")


@pytest.fixture(scope="module")
def probes(toy_run, loaded):
  return read_probes(map(json.loads, (toy_run / "probes.jsonl").read_text().splitlines()), loaded.tokenizer)


@pytest.fixture(scope="module")
def documents(toy_run, loaded):
  return load_documents(RagConfig(documents=JsonlSource(pattern=f"{toy_run}/articles.jsonl")), str(toy_run), loaded)


@pytest.fixture(scope="module")
def measured(toy_run, loaded, in_modes, mesh, probes, documents):
  plain = load(str(toy_run), ModelFiles(directory="plain"), mesh=mesh).in_modes(in_modes.config)
  dataset, modes = open_held_out(str(toy_run), "packed/validation", loaded), parse_modes(MODES, loaded.model.memory)
  return series.measure(in_modes, modes, dataset, probes, (1, 20), baseline=plain, documents=documents)[0]


def mean_likelihood(in_modes, mode, probes, leaf):
  scorer = in_modes.scorer(Mode.parse(mode))
  scores = [
    scorer.score_continuations([p.prompt], [p.answer], np.array([x], np.int32))[0][0] for p, x in zip(probes, leaf)
  ]
  return np.mean([score / len(p.answer) for score, p in zip(scores, probes)])


def test_series(loaded, in_modes, toy_run, measured):
  assert list(measured) == ["baseline", *MODES]
  assert [name for name in measured if "loss" in measured[name]] == ["baseline", "none", "fetched", "levels 2"]
  dataset = open_held_out(str(toy_run), "packed/validation", loaded)
  for name in ("none", "fetched", "levels 2"):
    mode = Mode.parse(name)
    expected = held_out_loss(in_modes.scorer(mode), in_order(dataset, 16), mode)
    assert measured[name]["loss"] == pytest.approx(expected, rel=1e-6)
    assert measured[name]["perplexity"] == pytest.approx(math.exp(expected))
  assert measured["baseline"]["loss"] == pytest.approx(measured["none"]["loss"], rel=1e-6)  # the same anchor
  assert len({round(values["loss"], 4) for values in measured.values() if "loss" in values}) == 3


def test_probes_by_mode(loaded, in_modes, probes, measured):
  texts = [probe.text for probe in probes]
  route = loaded.retriever.route(texts)
  leaves = {"none": np.full_like(route, -1), "fetched": route, "levels 2": route}
  leaves["paraphrased"] = loaded.retriever.route([probe.paraphrase for probe in probes])
  assert (leaves["paraphrased"] != route).any()
  for name, leaf in leaves.items():
    cells = measured[name]["probes"]
    assert [cell["count"] for cell in cells] == [sum(p.count < 20 for p in probes), sum(p.count >= 20 for p in probes)]
    found = sum(cell["count"] * cell["log_likelihood_per_token"] for cell in cells) / len(probes)
    assert found == pytest.approx(mean_likelihood(in_modes, name, probes, leaf), abs=1e-4)
  assert "minus_none" not in measured["none"]["probes"][0]
  gain = measured["fetched"]["probes"][1]["minus_none"]["log_likelihood_per_token"]
  means = [measured[name]["probes"][1]["log_likelihood_per_token"] for name in ("fetched", "none")]
  assert gain == pytest.approx(means[0] - means[1]) and abs(gain) > 0.01
  assert measured["baseline"]["probes"][0]["minus_none"]["log_likelihood_per_byte"] == pytest.approx(0, abs=1e-6)


def test_documents(in_modes, probes, documents, measured):
  prompts = documents.prepend([p.prompt for p in probes], [p.text for p in probes], 10, 2048)
  scorer, none = in_modes.scorer(Mode.parse("none")), np.full(len(probes), -1, np.int32)
  scores, _ = scorer.score_continuations(prompts, [p.answer for p in probes], none)
  expected = np.mean([score / len(p.answer) for score, p in zip(scores, probes)])
  cells = measured["rag none"]["probes"]
  found = sum(cell["count"] * cell["log_likelihood_per_token"] for cell in cells) / len(probes)
  assert found == pytest.approx(expected, abs=1e-4)
  about = series.about_documents(probes, documents, in_modes.config.max_length)
  assert about["tokens"] - about["plain_tokens"] == pytest.approx(
    np.mean([len(a) - len(p.prompt) for a, p in zip(prompts, probes)])
  )
  assert measured["rag none"]["relative_flops"] > about["tokens"] / about["plain_tokens"] > 1


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"modes": ("best",)}, "mode 'best': choose from none"),
    ({"modes": ("rank 2",), "probes": None}, "mode 'rank 2': is about questions; bind evaluate.probes"),
    ({"attribution": True, "probes": None}, "evaluate.attribution: is about questions; bind evaluate.probes"),
    ({"modes": ("rag none",)}, "mode 'rag none': without documents; bind evaluate.rag"),
    ({"model": ModelFiles(directory="plain"), "modes": ("rank 2",)}, "mode 'rank 2': the checkpoint has no bank"),
    ({"model": ModelFiles(directory="plain"), "attribution": True}, "the model in plain has no bank; leave it out"),
    ({"baseline": "nowhere"}, "nowhere: no checkpoint there"),
    ({"validation": "nowhere"}, "nowhere"),
  ],
)
def test_bad_input_is_one_line(toy_run, settings, message):
  arguments = {"model": ModelFiles(directory="model"), "probes": JsonlSource(pattern=f"{toy_run}/probes.jsonl")}
  with pytest.raises(InputError, match=message) as error:
    evaluate(run_dir=str(toy_run), directory="bad", **arguments | settings)
  assert "\n" not in str(error.value)
  assert not (toy_run / "bad").exists()


def test_a_model_without_a_bank_is_a_baseline(toy_run, tmp_path, capsys):
  evaluate(run_dir=str(toy_run), model=ModelFiles(directory="plain", tree="nowhere"), directory=str(tmp_path))
  assert list(json.loads((tmp_path / "report.json").read_text())["series"]) == ["baseline"]
  assert "baseline (no memory, same tokens)" in capsys.readouterr().out
