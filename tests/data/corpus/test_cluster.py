"""The tree as pipelines: it is the tree that the in-memory algorithm grows, whatever the workers, samples and crashes."""

import dataclasses
import json

import numpy as np
import pytest

from hiermem_jax import files
from hiermem_jax.data.corpus.cluster import cluster_corpus
from hiermem_jax.data.corpus.config import PackConfig, ReadConfig
from hiermem_jax.data.corpus.embed import KnownEmbeddings, embedding_inputs, parts_fingerprint
from hiermem_jax.data.corpus.keys import mix, window_keys
from hiermem_jax.data.corpus.prepare import prepare
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.data.text.tokenizer import train_sentencepiece
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.build import TreeConfig, build_tree, level_report
from hiermem_jax.retrieval.encoders import FittedLsaEncoder, LsaEncoder
from hiermem_jax.retrieval.retriever import load_retriever

HERE = BeamConfig(options=("--direct_num_workers=1", "--direct_running_mode=in_memory"))
TWO = BeamConfig(options=("--direct_num_workers=2", "--direct_running_mode=multi_processing"))
TREE = TreeConfig(branching=3, depth=2, steps=3, batch_size=40, seed=4)
TOPICS = ["river valley basin delta", "poet verse sonnet rhyme", "planet orbit moon comet", "metal ore alloy smelter"]


def make_texts(count):
  rng = np.random.default_rng(0)
  return [" ".join(rng.choice(TOPICS[i % 4].split(), rng.integers(3, 30))) + f" n{i}" for i in range(count)]


TEXTS = make_texts(400)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp("corpus")
  for i in range(3):
    lines = [json.dumps({"text": text}) for text in TEXTS[i::3]]
    (folder / f"{i}.jsonl").write_text("\n".join(lines) + "\n")
  return JsonlSource(pattern=str(folder / "*.jsonl"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return train_sentencepiece(TEXTS, str(tmp_path_factory.mktemp("tokenizer") / "t.model"), vocab_size=330)


@pytest.fixture(scope="module")
def grow(corpus, tokenizer, tmp_path_factory):
  def run(directory=None, source=corpus, tree=TREE, sample=1.0, runner=HERE, **read):
    directory = str(directory or tmp_path_factory.mktemp("tree") / "tree")
    encoder = LsaEncoder(dim=8).fit(TEXTS)
    encoder.save(f"{directory}/encoder")
    return directory, cluster_corpus(
      source=source,
      tokenizer=tokenizer,
      encoder=encoder,
      tree=tree,
      directory=directory,
      read=ReadConfig(**{"window_tokens": 512} | read),
      sample=sample,
      beam_config=runner,
    )

  return run


@pytest.fixture(scope="module")
def grown(grow):
  return grow()


def embedded(directory):
  parts = [files.read_arrays(f"{directory}/embeddings/part-{i:05d}.npz") for i in range(3)]
  return np.concatenate([p["keys"] for p in parts]), np.concatenate([p["embeddings"] for p in parts])


def test_embeddings_are_those_of_the_windows(grown, corpus):
  directory, _ = grown
  keys, embeddings = embedded(directory)
  first = [[r["text"] for r in corpus.read(part)] for part in corpus.parts()]
  expected_keys = np.concatenate([window_keys(i, np.arange(len(texts))) for i, texts in enumerate(first)])
  expected = LsaEncoder(dim=8).fit(TEXTS).encode([text for texts in first for text in texts])
  assert len(keys) == 400  # every document is one window
  np.testing.assert_array_equal(keys, expected_keys)
  np.testing.assert_allclose(embeddings, expected, atol=1e-6)


def test_it_is_the_tree_that_is_grown_in_memory(grown):
  directory, tree = grown
  keys, embeddings = embedded(directory)
  expected = build_tree(embeddings, mix(keys, TREE.seed), config=TREE, encoder_fingerprint=tree.encoder_fingerprint)
  for level, other in zip(tree.centroids, expected.centroids, strict=True):
    np.testing.assert_array_equal(level, other)
  assert load_retriever(directory).tree.fingerprint == tree.fingerprint


def test_report(grown):
  directory, tree = grown
  report = files.read_json(f"{directory}/report.json")
  sizes = np.bincount(tree.assign(embedded(directory)[1]), minlength=9)
  assert report["levels"][1]["max"] == sizes.max() and report["levels"][1]["clusters"] == 9
  assert report["levels"][0]["max"] == sizes.reshape(3, 3).sum(axis=1).max()
  assert report["corpus"]["documents"] == 400 and report["corpus"]["windows"] == 400


@pytest.mark.slow
def test_two_workers_grow_the_same_tree(grown, grow):
  assert grow(runner=TWO)[1].fingerprint == grown[1].fingerprint


def test_another_seed_is_another_tree(grown, grow):
  assert grow(tree=dataclasses.replace(TREE, seed=5))[1].fingerprint != grown[1].fingerprint


@pytest.mark.parametrize("crash_at", [2, 5, 7, 8])
def test_a_crash_costs_what_was_not_finished(grown, grow, tmp_path, monkeypatch, crash_at):
  """Eight files: embeddings and a summary for each of three parts, then a level each."""
  real, writes = files.write_arrays, [0]
  real_json = files.write_json

  def count():
    writes[0] += 1
    if writes[0] == crash_at:
      raise RuntimeError("crash")

  def write_arrays(path, **arrays):
    count()
    real(path, **arrays)

  def write_json(path, value):
    if "part-" in str(path):
      count()
    real_json(path, value)

  monkeypatch.setattr(files, "write_arrays", write_arrays)
  monkeypatch.setattr(files, "write_json", write_json)
  with pytest.raises(RuntimeError, match="crash"):
    grow(tmp_path / "tree")
  monkeypatch.undo()
  before = {path.name for path in (tmp_path / "tree" / "embeddings").glob("*.json")}
  encoded = []
  real_encode = FittedLsaEncoder.encode
  monkeypatch.setattr(FittedLsaEncoder, "encode", lambda self, texts: (encoded.append(1), real_encode(self, texts))[1])
  assert grow(tmp_path / "tree")[1].fingerprint == grown[1].fingerprint
  assert len(encoded) == 3 - len(before - {"inputs.json"})


def test_a_sample_is_a_nested_share_of_the_documents(grow, grown):
  directory, _ = grow(sample=0.5, tree=dataclasses.replace(TREE, depth=1))
  keys, _ = embedded(directory)
  all_keys, _ = embedded(grown[0])
  assert 150 < len(keys) < 250 and set(keys.tolist()) < set(all_keys.tolist())


@pytest.mark.parametrize("sample", [1.0, 0.5])
def test_prepare_encodes_only_what_cluster_has_not(grow, corpus, tokenizer, tmp_path, monkeypatch, sample):
  directory, _ = grow(sample=sample)
  clustered = len(embedded(directory)[0])
  seen = []
  real = FittedLsaEncoder.encode
  monkeypatch.setattr(FittedLsaEncoder, "encode", lambda self, texts: (seen.extend(texts), real(self, texts))[1])
  kwargs = {"source": corpus, "tokenizer": tokenizer, "beam_config": HERE}
  kwargs |= {"pack": PackConfig(length=32), "read": ReadConfig(window_tokens=512)}
  reused = prepare(tree=directory, directory=str(tmp_path / "a"), **kwargs)
  assert len(seen) == 400 - clustered
  monkeypatch.setattr(KnownEmbeddings, "__init__", _knows_nothing)
  fresh = prepare(tree=directory, directory=str(tmp_path / "b"), **kwargs)
  assert len(seen) == 800 - clustered
  assert fresh.manifest.shards == reused.manifest.shards


def _knows_nothing(self, *arguments):
  self._keys = np.zeros(0, np.uint64)


def test_embeddings_of_other_windows_are_not_used(grow, corpus, tokenizer):
  directory, tree = grow()
  inputs = embedding_inputs(corpus, tokenizer, tree.encoder_fingerprint, ReadConfig(window_tokens=512))
  inputs["parts"] = parts_fingerprint(corpus.parts())
  assert len(KnownEmbeddings(directory, 0, inputs)) > 0
  for name, value in (("window_tokens", 32), ("source", "another"), ("parts", "others"), ("encoder", "another")):
    assert len(KnownEmbeddings(directory, 0, inputs | {name: value})) == 0


def test_directories_of_other_inputs_are_refused(grow, tmp_path):
  grow(tmp_path / "tree")
  with pytest.raises(InputError, match="window_tokens 512, asked for is 32"):
    grow(tmp_path / "tree", window_tokens=32)
  with pytest.raises(InputError, match="seed 4, asked for is 5"):
    grow(tmp_path / "tree", tree=dataclasses.replace(TREE, seed=5))


def test_too_few_windows(grow):
  with pytest.raises(InputError, match="400 windows of 400 documents cannot fill the 6561 leaves"):
    grow(tree=dataclasses.replace(TREE, depth=8))


def test_too_many_bad_records(grow, tmp_path):
  (tmp_path / "a.jsonl").write_text("\n".join([*(json.dumps({"text": t}) for t in TEXTS), "nonsense"]))
  source = JsonlSource(pattern=str(tmp_path / "a.jsonl"))
  with pytest.raises(InputError, match="1 of 401 records are malformed"):
    grow(source=source)
  assert grow(source=source, max_bad_share=0.01)[1].num_leaves == 9


def test_nodes_without_examples_pass_on_their_centroid(grow):
  """Three different texts cannot fill nine leaves: the rest of the tree repeats, and every path has an end."""
  _, tree = grow(tree=TreeConfig(branching=4, depth=4, steps=1, batch_size=16))
  assert tree.num_leaves == 256 and np.isfinite(tree.centroids[-1]).all()
  assert level_report(np.bincount(tree.assign(np.eye(8, dtype=np.float32)), minlength=256), 4)["empty"] > 200
