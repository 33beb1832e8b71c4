"""Text to leaf: clustering a small corpus, routing, and the retriever's directory."""

import dataclasses

import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.build import TreeConfig, build_tree
from hiermem_jax.retrieval.encoders import LsaEncoder
from hiermem_jax.retrieval.retriever import Retriever, load_retriever, save_retriever

TOPICS = [
  ["atomic", "metal", "ore", "alloy", "melting"],
  ["river", "valley", "tributary", "basin", "delta"],
  ["poet", "verse", "sonnet", "rhyme", "stanza"],
  ["planet", "orbit", "moon", "telescope", "comet"],
]


def _texts():
  rng = np.random.default_rng(0)
  topics = np.repeat(np.arange(4), 30)
  return [" ".join(rng.choice(TOPICS[t], 12)) for t in topics], topics


def cluster_texts(texts):
  fitted = LsaEncoder(dim=8).fit(texts)
  settings = {"branching": 4, "depth": 2, "batch_size": 64, "seed": 0}
  return fitted, build_tree(fitted.encode(texts), config=TreeConfig(**settings), encoder_fingerprint=fitted.fingerprint)


@pytest.fixture(scope="module")
def clustered():
  return cluster_texts(_texts()[0])


def test_topics_become_the_first_level(clustered):
  texts, topics = _texts()
  retriever = Retriever(encoder=clustered[0], tree=clustered[1])
  leaves = retriever.route(texts)
  assert leaves.dtype == np.int32 and leaves.shape == (120,)
  top = clustered[1].ancestors(leaves)[:, 0]
  pairs = set(zip(top.tolist(), topics.tolist()))
  assert len(pairs) == 4 and len({p[0] for p in pairs}) == 4  # a bijection
  question = retriever.route(["The moon of the planet is called"])
  assert clustered[1].ancestors(question)[0, 0] == top[-1]
  assert retriever.route([]).shape == (0,)


def test_deterministic(clustered):
  encoder, tree = cluster_texts(_texts()[0])
  assert (encoder.fingerprint, tree.fingerprint) == (clustered[0].fingerprint, clustered[1].fingerprint)
  assert tree.encoder_fingerprint == encoder.fingerprint


def test_save_and_load(clustered, tmp_path):
  directory = str(tmp_path / "retriever")
  save_retriever(directory, *clustered)
  assert sorted(p.relative_to(directory).as_posix() for p in (tmp_path / "retriever").rglob("*.*")) == [
    "encoder/encoder.json", "encoder/encoder.npz", "tree.json", "tree.npz",
  ]  # fmt: skip
  loaded = load_retriever(directory)
  assert loaded.tree.fingerprint == clustered[1].fingerprint
  texts = _texts()[0]
  np.testing.assert_array_equal(loaded.route(texts), Retriever(encoder=clustered[0], tree=clustered[1]).route(texts))


def test_mismatch_names_both_fingerprints(clustered, tmp_path):
  encoder, tree = clustered
  other = LsaEncoder(dim=7).fit(_texts()[0])
  with pytest.raises(InputError) as caught:
    save_retriever(str(tmp_path), other, tree)
  assert other.fingerprint in str(caught.value) and encoder.fingerprint in str(caught.value)
  assert not list(tmp_path.iterdir())
  save_retriever(str(tmp_path), encoder, tree)
  dataclasses.replace(tree, encoder_fingerprint="0" * 16).save(str(tmp_path))
  with pytest.raises(InputError, match="0" * 16):
    load_retriever(str(tmp_path))


def test_load_from_nowhere(clustered, tmp_path):
  with pytest.raises(InputError, match="nowhere"):
    load_retriever(str(tmp_path / "nowhere"))
  clustered[1].save(str(tmp_path))
  with pytest.raises(InputError, match="encoder"):
    load_retriever(str(tmp_path))
