"""Nearest documents within a cluster, by brute force."""

import numpy as np
import pytest

from hiermem_jax.retrieval.build import TreeConfig, build_tree
from hiermem_jax.retrieval.document_index import DocumentIndex
from hiermem_jax.retrieval.encoders import LsaEncoder
from hiermem_jax.retrieval.retriever import Retriever

WORDS = [
  "owl",
  "fox",
  "cat",
  "dog",
  "elk",
  "bee",
  "ant",
  "hen",
  "pig",
  "ram",
  "yak",
  "cod",
  "plum",
  "corn",
  "rice",
  "kale",
  "figs",
  "nuts",
  "eggs",
  "hay",
  "moss",
  "bran",
]


@pytest.fixture(scope="module")
def retriever():
  rng = np.random.default_rng(0)
  texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(200)]
  encoder = LsaEncoder(dim=8).fit(texts)
  tree = build_tree(
    encoder.encode(texts), config=TreeConfig(branching=3, depth=2), encoder_fingerprint=encoder.fingerprint
  )
  return Retriever(encoder=encoder, tree=tree)


@pytest.mark.parametrize(("level", "searched"), [(1, 1), (2, 2), (3, 2)])
def test_nearest_in_the_cluster(retriever, level, searched):
  rng = np.random.default_rng(1)
  documents = [" ".join(rng.choice(WORDS, 5)) for _ in range(40)]
  questions = [" ".join(rng.choice(WORDS, 3)) for _ in range(30)]
  found = DocumentIndex(retriever, documents, level).nearest(retriever.encoder.encode(questions))
  at = [retriever.tree.ancestors(retriever.route(texts))[:, searched - 1] for texts in (documents, questions)]
  embedded = [retriever.encoder.encode(texts) for texts in (documents, questions)]
  for question, number in enumerate(found):
    inside = np.flatnonzero(at[0] == at[1][question])
    distance = np.linalg.norm(embedded[0][inside] - embedded[1][question], axis=1)
    assert number == (inside[distance.argmin()] if len(inside) else -1)
  assert len(set(found.tolist())) > 5


def test_a_cluster_without_documents(retriever):
  question = retriever.encoder.encode(["owl fox"])
  leaf = retriever.tree.assign(question)[0]
  elsewhere = [w for w in WORDS if retriever.route([w])[0] != leaf]
  assert DocumentIndex(retriever, elsewhere, 2).nearest(question).tolist() == [-1]
