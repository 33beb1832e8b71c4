"""A trained model in a notebook: `hiermem_jax.load` and what it gives."""

import json
import subprocess
import sys

import numpy as np
import pytest

import hiermem_jax as hm
from hiermem_jax.evaluation.modes import Mode
from hiermem_jax.evaluation.topics import title, top_terms

TEXT = "The owl likes"


@pytest.fixture(scope="module")
def model(toy_run):
  return hm.load(str(toy_run / "model"))


def test_importing_the_package_loads_nothing():
  program = "import sys, hiermem_jax; assert dir(hiermem_jax).count('load') == 1; print(*sys.modules)"
  loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
  assert not {"jax", "numpy", "gin", "tensorflow", "hiermem_jax.language_model"} & set(loaded)


def test_public_names():
  assert all(hasattr(hm, name) for name in hm.__all__) and set(hm.__all__) <= set(dir(hm))
  assert hm.MemoryConfig(rows=(1,)).depth == 1
  with pytest.raises(AttributeError, match="module 'hiermem_jax' has no attribute 'loads'"):
    hm.loads  # noqa: B018


def test_routes(model, loaded):
  route = model.route(TEXT)
  (leaf,) = loaded.retriever.route([TEXT])
  assert route.leaf == route.path[-1] == leaf and route.path[0] == leaf // 2
  assert (
    repr(model) == f"LanguageModel({model.config.anchor.params:,} parameters, a bank of 1,344 over 4 leaves; step 7)"
  )


def test_logits_and_likelihoods(model, loaded, in_modes):
  tokenizer = loaded.tokenizer
  ids, tail = tokenizer.encode(TEXT), tokenizer.encode(f"{TEXT} plum")[len(tokenizer.encode(TEXT)) :]
  leaf = model.route(TEXT).leaf
  rows = {}
  for name, expected_leaf in ((None, leaf), ("none", -1), ("generic", 4)):
    scorer = in_modes.scorer(Mode.parse(name or "fetched"))
    rows[name] = model.logits(TEXT, name)
    np.testing.assert_allclose(rows[name], scorer.logits(ids, expected_leaf), atol=1e-5)
    expected = scorer.score_continuations([ids], [tail], np.array([expected_leaf], np.int32))[0][0]
    assert model.log_likelihood(TEXT, " plum", name) == pytest.approx(expected, abs=1e-4)
  assert rows[None].shape == (len(ids) + 1, tokenizer.vocab_size)
  assert np.abs(rows[None] - rows["none"]).max() > 0.01


def test_generation_follows_the_logits(model):
  """Each generated token is the most likely one, computed anew from the text so far; the end of a document ends it."""
  text, leaf = TEXT, model.route(TEXT).leaf
  ids = model.tokenizer.encode(text)
  scorer = model._modes.scorer(Mode.parse("fetched"))
  for _ in range(5):
    ids.append(int(scorer.logits(ids, leaf)[-1].argmax()))
  generated = ids[len(model.tokenizer.encode(text)) :]
  if model.tokenizer.eot_id in generated:
    generated = generated[: generated.index(model.tokenizer.eot_id)]
  assert model.generate(text, max_new_tokens=5) == model.tokenizer.decode(generated)
  assert model.generate(text, "none", max_new_tokens=5) != model.generate(text, max_new_tokens=5)


def test_blocks_are_the_rows_of_the_tables(model, loaded):
  path = model.route(TEXT).path
  block = model.block(TEXT)
  assert {name: array.shape for name, array in block.items()} == dict.fromkeys(("m1", "m2", "m3"), (2, 5, 16))
  for level, units in ((1, slice(0, 3)), (2, slice(3, 5))):
    row = np.asarray(loaded.model.params["bank"][f"level_{level}"])[path[level - 1]]
    vectors = row.reshape(units.stop - units.start, 2, 3, 16)  # units, layers, vectors, width
    for number, name in enumerate(("m1", "m2", "m3")):
      np.testing.assert_array_equal(block[name][:, units], vectors[:, :, number].transpose(1, 0, 2))
  np.testing.assert_array_equal(model.block(TEXT, "levels 2")["m2"], block["m2"][:, 3:])
  assert not model.block(TEXT, "none")["m1"].any()


def test_topics_of_the_training_text(model, toy_run):
  """The texts are found beside the run; the clusters hold what is routed to them."""
  topics = model.topics(TEXT)
  route = model.route(TEXT)
  assert [(topic.level, topic.cluster) for topic in topics] == [(1, route.path[0]), (2, route.path[1])]
  tree, dataset = model.tree, json.loads((toy_run / "packed/train/manifest.json").read_text())
  counts = {int(leaf): count for leaf, count in dataset["sequences_per_leaf"].items()}
  for topic in topics:
    inside = [count for leaf, count in counts.items() if tree.ancestors(leaf)[topic.level - 1] == topic.cluster]
    assert topic.documents == sum(inside)
    assert topic.terms and topic.titles and all(title.startswith("The ") for title in topic.titles)
  assert set(topics[1].titles) <= set(model.topics(route)[1].titles)


def test_topics_of_given_texts(model):
  texts = [f"The owl likes plum {word}." for word in ("alpha", "beta", "gamma")] + [
    "hay",
    "moss",
    "The yak sleeps.",
  ] * 3
  titles = [f"title {number}" for number in range(len(texts))]
  leaf = [model.route(text).leaf for text in texts]
  own = [t for t, x in zip(titles, leaf) if x == leaf[0]]
  topic = model.topics(texts[0], texts, titles)[-1]
  assert topic.documents == len(own) and list(topic.titles) == own[:6]


def test_top_terms_are_those_that_stand_out():
  texts = ["owls hunt mice at night"] * 3 + ["owls sleep"] + ["foxes hunt at night"] * 8
  groups = np.array([0] * 4 + [1] * 8)
  owls, foxes = top_terms(texts, groups, [0, 1])
  assert owls[0] == "owls" and "mice" in owls and "hunt" not in owls
  assert foxes[0] == "foxes" and "owls" not in foxes


@pytest.mark.parametrize("documents, shown", [(199, True), (200, False)])
def test_a_word_of_a_single_document_is_a_term_in_a_small_collection_only(documents, shown):
  texts = ["zebra owls"] + ["foxes hunt"] * (documents - 1)
  (terms,) = top_terms(texts, np.array([0] + [1] * (documents - 1)), [0])
  assert ("zebra" in terms) == shown


def test_titles():
  assert title("\n The owl \nlikes plum") == "The owl"
  assert title(" ".join(["Word"] * 40)) == " ".join(["Word"] * 12) + " …"
  assert title("likes plum.") == "… likes plum."


def test_what_is_missing_is_named(toy_run, tmp_path, model):
  with pytest.raises(hm.InputError, match=r"toy_run0: no checkpoints there; load .*toy_run0/\{model,plain\}"):
    hm.load(str(toy_run))
  with pytest.raises(hm.InputError, match="nowhere: no checkpoints there; give the directory of a training"):
    hm.load(str(tmp_path / "nowhere"))
  with pytest.raises(hm.InputError, match="no packed text there; give texts"):
    model.topics(TEXT, packed=str(tmp_path))
  with pytest.raises(hm.InputError, match="mode 'rag none': there are no documents here; choose 'none'"):
    model.generate(TEXT, "rag none")
  plain = hm.load(str(toy_run / "plain"))
  assert plain.logits(TEXT).shape == plain.logits(TEXT, "none").shape
  for ask in (plain.route, plain.block, plain.topics):
    with pytest.raises(hm.InputError, match="plain: a model without a bank"):
      ask(TEXT)


def test_tree_and_tokenizer_may_be_elsewhere(toy_run, tmp_path):
  (tmp_path / "model").symlink_to(toy_run / "model")
  moved = hm.load(str(tmp_path / "model"), tree=str(toy_run / "tree"), tokenizer=str(toy_run / "tokenizer.model"))
  assert moved.route(TEXT) == hm.load(str(toy_run / "model")).route(TEXT)
