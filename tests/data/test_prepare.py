"""From documents to the packed dataset, with a retriever that routes by the first letter."""

import collections
import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from hiermem_jax.data.packed import PackedDataset
from hiermem_jax.data.prepare import prepare, sample_windows
from hiermem_jax.data.tokenizer import train_sentencepiece
from hiermem_jax.data.windows import windows_of
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.retriever import Retriever, cluster_texts


@dataclasses.dataclass(frozen=True)
class Documents:
  texts: tuple[str, ...]

  def records(self):
    for text in self.texts:
      yield {"text": text, "id": 1}


@dataclasses.dataclass(frozen=True)
class FakeTree:
  fingerprint: str = "cafe"
  num_leaves: int = 26


@dataclasses.dataclass(frozen=True)
class FakeRetriever:
  tree: FakeTree = FakeTree()

  def route(self, texts):
    return np.array([ord(t.strip()[0].lower()) - ord("a") for t in texts], np.int32)


def make_texts(count, seed=0):
  rng = np.random.default_rng(seed)
  words = ["apple", "boat", "cat", "dune", "elm"]
  return tuple(" ".join(rng.choice(words, rng.integers(1, 40))) for _ in range(count))


SOURCE = Documents((*make_texts(700), ""))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return train_sentencepiece(SOURCE.texts, str(tmp_path_factory.mktemp("tokenizer") / "t.model"), vocab_size=280)


@pytest.fixture(scope="module")
def build(tokenizer, tmp_path_factory):
  def run(directory=None, **kwargs):
    directory = directory or tmp_path_factory.mktemp("packed") / "set"
    kwargs = {"source": SOURCE, "retriever": FakeRetriever(), "length": 24, "window_tokens": 16, "seed": 5} | kwargs
    return prepare(tokenizer=tokenizer, directory=str(directory), **kwargs)

  return run


def segments_by_leaf(dataset):
  """Multiset of tokens per leaf, and the segments of all sequences as text-like tuples."""
  tokens, segments = collections.defaultdict(collections.Counter), []
  for leaf, target, segment in zip(*dataset.read(range(len(dataset)))):
    tokens[int(leaf)].update(target[segment > 0].tolist())
    segments += [tuple(target[segment == s].tolist()) for s in range(1, segment.max() + 1)]
  return dict(tokens), segments


def windows(tokenizer):
  return [w for d in windows_of(SOURCE.texts, tokenizer, 16) for w in d]


def test_every_window_is_in_its_leaf(build, tokenizer):
  dataset = build()
  expected = collections.defaultdict(collections.Counter)
  for window in windows(tokenizer):
    leaf = int(FakeRetriever().route([window.text])[0])
    expected[leaf].update(window.ids.tolist() + [tokenizer.eot_id] * window.ends_document)
  tokens, segments = segments_by_leaf(dataset)
  assert tokens == dict(expected)
  # Most windows are whole segments; those cut by the end of a sequence are not.
  whole = {tuple(w.ids.tolist() + [tokenizer.eot_id] * w.ends_document) for w in windows(tokenizer)}
  assert sum(s in whole for s in segments) > 0.3 * len(segments)
  dataset.verify()


def test_manifest(build, tokenizer):
  manifest = build().manifest
  all_windows = windows(tokenizer)
  assert manifest.num_documents == 700  # the empty one has no tokens
  assert manifest.num_characters == sum(map(len, SOURCE.texts))
  assert manifest.num_windows == len(all_windows)
  assert manifest.num_tokens == sum(len(w.ids) + w.ends_document for w in all_windows)
  assert (manifest.tokenizer_fingerprint, manifest.tree_fingerprint) == (tokenizer.fingerprint, "cafe")
  assert sum(manifest.sequences_per_leaf.values()) == manifest.num_sequences
  assert manifest.inputs["source"] == repr(SOURCE)


def test_sequences_are_shuffled_over_leaves(build):
  leaves = build().read(range(50))[0]
  assert np.count_nonzero(np.diff(leaves)) > 10


def test_same_inputs_same_files(build):
  a, b = build().manifest, build().manifest
  assert a == b
  assert build(seed=6).manifest.shards != a.shards


def test_reuse(build, tmp_path):
  first = build(tmp_path)

  class Unread(Documents):
    def records(self):
      raise AssertionError("read again")

    __repr__ = Documents.__repr__

  Unread.__qualname__ = "Documents"
  assert build(tmp_path, source=Unread(SOURCE.texts)).manifest == first.manifest


@pytest.mark.parametrize(
  "change, message",
  [
    ({"length": 32}, "length 24, asked for is 32"),
    ({"seed": 6}, "seed 5, asked for is 6"),
    ({"retriever": FakeRetriever(FakeTree("beef"))}, "tree 'cafe', asked for is 'beef'"),
    ({"source": Documents(("x",))}, "source .* asked for is"),
    ({"shuffle_leaves": True}, "shuffle_leaves False, asked for is True"),
  ],
)
def test_other_inputs_are_refused(build, tmp_path, change, message):
  build(tmp_path)
  with pytest.raises(InputError, match=message):
    build(tmp_path, **change)


def test_shuffled_leaves_keep_their_sizes_but_not_their_texts(build, tokenizer):
  dataset = build(shuffle_leaves=True)
  tokens, _ = segments_by_leaf(dataset)
  true_tokens, _ = segments_by_leaf(build())
  assert sum(tokens.values(), collections.Counter()) == sum(true_tokens.values(), collections.Counter())
  assert tokens.keys() == true_tokens.keys()
  assert tokens != true_tokens
  # Every leaf now has the corpus's mix of first words, where each had one letter before.
  starts = collections.defaultdict(set)
  for leaf, target in zip(*dataset.read(range(len(dataset)))[:2]):
    starts[int(leaf)].add(tokenizer.decode(target.tolist()).strip()[:1])
  assert all(len(s) > 2 for s in starts.values())


@pytest.mark.parametrize(
  "source, message",
  [
    (Documents(()), "has no text"),
    (Documents(("", "")), "has no text"),
    (Documents(("fine", None)), "record 1 of .* has no string field 'text'"),
    (Documents(("fine", "\ud800")), "record 1 of .* has a lone surrogate"),
  ],
)
def test_bad_sources(build, tokenizer, tmp_path, source, message):
  with pytest.raises(InputError, match=message):
    build(tmp_path / "set", source=source)
  with pytest.raises(InputError, match=message):
    sample_windows(source, tokenizer, max_windows=3)
  assert not list(tmp_path.iterdir())


def test_source_without_repr(build):
  class Anonymous:
    def records(self):
      return iter([{"text": "a"}])

  with pytest.raises(TypeError, match="Anonymous needs a __repr__"):
    build(source=Anonymous())


def test_a_moved_data_dir_is_the_same_source(build, tmp_path):
  @dataclasses.dataclass(frozen=True)
  class Prepared(Documents):
    data_dir: str | None = None

  first = build(tmp_path, source=Prepared(SOURCE.texts, data_dir="/old/place"))
  assert build(tmp_path, source=Prepared(SOURCE.texts, data_dir="/new/place")).manifest == first.manifest


def test_with_a_real_retriever(build):
  encoder, tree = cluster_texts(SOURCE.texts[:300], branching=2, depth=3, steps=2, batch_size=64)
  retriever = Retriever(encoder=encoder, tree=tree)
  manifest = build(retriever=retriever).manifest
  assert manifest.tree_fingerprint == tree.fingerprint
  assert manifest.num_leaves == 8
  assert manifest.sequences_per_leaf.keys() <= set(range(8))
  assert len(manifest.sequences_per_leaf) > 1


def test_damaged_dataset_is_not_reused(build, tmp_path):
  build(tmp_path)
  next(tmp_path.glob("*.array_record")).unlink()
  with pytest.raises(InputError, match="run prepare again"):
    build(tmp_path)


def test_sample_windows(tokenizer):
  texts = [w.text for w in windows(tokenizer)]
  assert sample_windows(SOURCE, tokenizer, window_tokens=16, max_windows=10**6) == texts
  sample = sample_windows(SOURCE, tokenizer, window_tokens=16, max_windows=50, seed=1)
  assert len(sample) == 50
  assert not collections.Counter(sample) - collections.Counter(texts)
  assert sample == sample_windows(SOURCE, tokenizer, window_tokens=16, max_windows=50, seed=1)
  assert sample != sample_windows(SOURCE, tokenizer, window_tokens=16, max_windows=50, seed=2)


def test_sample_is_uniform(tokenizer):
  source = Documents(tuple("abcdefgh"))
  samples = [sample_windows(source, tokenizer, max_windows=2, seed=seed) for seed in range(400)]
  counts = collections.Counter(letter for sample in samples for letter in sample)
  assert all(60 < counts[letter] < 140 for letter in "abcdefgh")  # mean 100, standard deviation 8.7


def test_no_tensorflow_at_import():
  modules = ", ".join(f"hiermem_jax.data.{m}" for m in ("batches", "packed", "prepare", "tokenizer", "windows"))
  code = f"import sys, {modules}; sys.exit(bool({{'tensorflow', 'sklearn'}} & set(sys.modules)))"
  subprocess.run([sys.executable, "-c", code], check=True)


def test_open_by_directory(build):
  dataset = build()
  assert PackedDataset(dataset.directory).manifest == dataset.manifest
