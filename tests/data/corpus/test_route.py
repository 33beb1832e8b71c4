"""The leaf of each window, against a descent by brute force, and the chunks that the windows are written to."""

import collections
import dataclasses

import numpy as np
import pytest

from hiermem_jax import files
from hiermem_jax.data.corpus import route
from hiermem_jax.data.corpus.embed import embedding_inputs, parts_fingerprint
from hiermem_jax.data.corpus.route import NO_LEAF, Chunk, RoutePart, Router, token_dtype
from hiermem_jax.retrieval.encoders import FittedLsaEncoder


@pytest.fixture
def run(corpus, tokenizer, tmp_path):
  """A function that routes one part and gives its windows, put together from its chunks, and its summary."""

  def routed(router, number=0, window_tokens=16):
    task = RoutePart(corpus, tokenizer.path, router, str(tmp_path), window_tokens)
    assert list(task.process((number, corpus.parts()[number]))) == []
    summary = files.read_json(task.summary(number))
    chunks = [Chunk(**files.read_arrays(str(tmp_path / name))) for name in summary["chunks"]]
    fields = [field.name for field in dataclasses.fields(Chunk)]
    return Chunk(**{name: np.concatenate([getattr(c, name) for c in chunks]) for name in fields}), summary

  return routed


def brute_force_leaf(tree_file, vector, branching):
  """Greedy descent in float64, from the arrays on disk."""
  node = 0
  for level in sorted(tree_file.files):
    children = tree_file[level].astype(np.float64)[node * branching : (node + 1) * branching]
    node = node * branching + int(np.argmin([np.sum((child - vector) ** 2) for child in children]))
  return node


def test_every_window_gets_the_leaf_of_its_text(run, grown, encoder, windows, tokenizer):
  chunk, summary = run(Router(grown[0], {"encoder": "another"}))  # so that nothing stored is used
  part = windows[: len(chunk.sizes)]
  assert [tuple(ids) for ids in np.split(chunk.tokens, chunk.starts[1:])] == [tuple(w.ids.tolist()) for w in part]
  assert chunk.ends.tolist() == [w.ends_document for w in part] and chunk.tokens.dtype == np.uint16
  with np.load(f"{grown[0]}/tree.npz") as tree_file:
    expected = [brute_force_leaf(tree_file, encoder.encode([w.text])[0].astype(np.float64), 3) for w in part]
  assert chunk.leaves.tolist() == expected and len(set(expected)) == 9
  counted, tokens = collections.Counter(expected), collections.Counter()
  for leaf, window in zip(expected, part):
    tokens[leaf] += len(window.ids) + window.ends_document
  assert summary["leaves"] == [[leaf, counted[leaf], tokens[leaf]] for leaf in sorted(counted)]
  assert summary["counts"]["windows"] == len(part) and summary["counts"]["tokens"] == tokens.total()


def test_without_a_router_there_are_no_leaves(run):
  chunk, summary = run(None)
  assert set(chunk.leaves.tolist()) == {NO_LEAF}
  assert summary["leaves"] == [[NO_LEAF, summary["counts"]["windows"], summary["counts"]["tokens"]]]


def test_a_large_part_is_written_in_several_chunks(run, monkeypatch):
  whole, one = run(None)
  monkeypatch.setattr(route, "_CHUNK_TOKENS", 500)
  monkeypatch.setattr("hiermem_jax.data.corpus.reading._BATCH", 20)
  pieces, several = run(None)
  assert len(one["chunks"]) == 1 and len(several["chunks"]) > 2
  for field in dataclasses.fields(Chunk):
    np.testing.assert_array_equal(getattr(pieces, field.name), getattr(whole, field.name))
  assert several["leaves"] == one["leaves"]


def test_stored_embeddings_are_used(run, grown, corpus, tokenizer, encoder, settings, monkeypatch):
  """The encoder fails, so the leaves can only come from the stored embeddings."""
  inputs = embedding_inputs(corpus, tokenizer, encoder.fingerprint, settings.read)
  inputs["parts"] = parts_fingerprint(corpus.parts())
  monkeypatch.setattr(FittedLsaEncoder, "encode", None)
  chunk, _ = run(Router(grown[0], inputs), number=1)
  stored = files.read_arrays(f"{grown[0]}/embeddings/part-00001.npz")
  leaf = dict(zip(stored["keys"].tolist(), grown[1].assign(stored["embeddings"]).tolist()))
  assert chunk.leaves.tolist() == [leaf[key] for key in chunk.keys.tolist()]


@pytest.mark.parametrize("num_values, dtype", [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_token_dtype(num_values, dtype):
  assert token_dtype(num_values) is dtype and num_values - 1 <= np.iinfo(dtype).max
