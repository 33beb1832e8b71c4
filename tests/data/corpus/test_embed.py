"""Embeddings of windows: what is stored, when it is used, and what is computed anew."""

import dataclasses

import numpy as np
import pytest

from hiermem_jax import files
from hiermem_jax.data.corpus.embed import KnownEmbeddings, embedding_inputs, parts_fingerprint
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.retrieval.encoders import FittedLsaEncoder


@pytest.fixture(scope="module")
def inputs(corpus, tokenizer, encoder, settings):
  known = embedding_inputs(corpus, tokenizer, encoder.fingerprint, settings.read)
  return known | {"parts": parts_fingerprint(corpus.parts())}


def stored(directory, number):
  arrays = files.read_arrays(f"{directory}/embeddings/part-{number:05d}.npz")
  return arrays["keys"], arrays["embeddings"]


def test_embeddings_are_those_of_the_windows(grown, windows, encoder):
  parts = [stored(grown[0], number) for number in range(4)]
  np.testing.assert_allclose(
    np.concatenate([embeddings for _, embeddings in parts]), encoder.encode([w.text for w in windows]), atol=1e-6
  )
  assert len(np.unique(np.concatenate([keys for keys, _ in parts]))) == len(windows)


def test_known_embeddings_are_found_by_their_keys_and_others_computed(grown, inputs, encoder, monkeypatch):
  known = KnownEmbeddings(grown[0], 1, inputs)
  keys, embeddings = stored(grown[0], 1)
  assert len(known) == len(keys)
  order = np.random.default_rng(0).permutation(len(keys))
  wanted = np.concatenate([keys[order[:5]], np.array([1, 2], np.uint64), keys[order[5:9]]])
  texts = [*"abcde", "river delta", "moon", *"fghi"]
  asked = []
  real = FittedLsaEncoder.encode
  monkeypatch.setattr(FittedLsaEncoder, "encode", lambda self, texts: (asked.extend(texts), real(self, texts))[1])
  found = known.embed(wanted, texts, encoder)
  assert asked == ["river delta", "moon"] and found.dtype == np.float32
  np.testing.assert_array_equal(found[[0, 1, 2, 3, 4, 7, 8, 9, 10]], embeddings[order[:9]])
  np.testing.assert_array_equal(found[5:7], real(encoder, asked))


def test_embeddings_of_other_inputs_are_not_used(grown, inputs, corpus, tokenizer, encoder, settings):
  assert len(KnownEmbeddings(grown[0], 0, inputs)) > 0
  for name in inputs:
    assert len(KnownEmbeddings(grown[0], 0, inputs | {name: "another"})) == 0, name
  assert len(KnownEmbeddings(grown[0], 4, inputs)) == 0  # no such part
  other = embedding_inputs(
    JsonlSource(pattern="x"), tokenizer, "another", dataclasses.replace(settings.read, window_tokens=32)
  )
  assert {name for name in other if other[name] != inputs[name]} == {"source", "encoder", "window_tokens"}
  assert parts_fingerprint(["a", "b"]) != parts_fingerprint(["a", "c"])


def test_a_part_without_its_summary_is_not_used(grown, inputs, tmp_path):
  for name in ("inputs.json", "part-00000.npz"):
    target = tmp_path / "embeddings" / name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(files.as_path(f"{grown[0]}/embeddings/{name}").read_bytes())
  assert len(KnownEmbeddings(str(tmp_path), 0, inputs)) == 0
