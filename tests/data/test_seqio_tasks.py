"""The SeqIO tasks give exactly what the NumPy path gives."""

import dataclasses

import numpy as np
import pytest

seqio = pytest.importorskip("seqio")

from hiermem_jax.data.batches import to_batch  # noqa: E402
from hiermem_jax.data.packing import pack  # noqa: E402
from hiermem_jax.data.seqio_tasks import (  # noqa: E402
  MemoryLMFeatureConverter,
  feature_lengths,
  register_corpus_task,
  register_packed_task,
)
from hiermem_jax.data.tokenizer import train_sentencepiece  # noqa: E402

S = 32


@pytest.fixture(scope="module")
def dataset(write_packed, tmp_path_factory):
  rng = np.random.default_rng(0)
  windows = [rng.integers(0, 99, rng.integers(1, 40)) for _ in range(150)]  # 0 is a token like any other
  targets, segments = pack(windows, rng.random(150) < 0.6, length=S, eot_id=2)
  leaves = rng.integers(0, 65_536, len(targets))
  directory = tmp_path_factory.mktemp("packed") / "set"
  dataset = write_packed(str(directory), zip(leaves, targets, segments), num_leaves=65_536, num_shards=3)
  register_packed_task("packed_for_test", dataset.directory)
  return dataset


def read_all(bos_id=0, shuffle=False, **kwargs):
  ds = seqio.get_dataset(
    "packed_for_test",
    feature_lengths(S),
    MemoryLMFeatureConverter(bos_id),
    shuffle=shuffle,
    **kwargs,
  )
  examples = list(ds.as_numpy_iterator())
  return {k: np.stack([e[k] for e in examples]) for k in examples[0]}


@pytest.mark.parametrize("bos_id", [0, 1])
def test_equals_to_batch(dataset, bos_id):
  got = read_all(bos_id)
  expected = to_batch(*dataset.read(range(len(dataset))), bos_id=bos_id)
  assert got.keys() == expected.keys()
  for name in expected:
    np.testing.assert_array_equal(got[name], expected[name])
    assert got[name].dtype == expected[name].dtype


def test_shuffle_and_shards(dataset):
  leaves = np.sort(dataset.read(range(len(dataset)))[0])
  shuffled = read_all(shuffle=True, seed=3)["memory_leaf"]
  assert not np.array_equal(shuffled, read_all()["memory_leaf"])
  np.testing.assert_array_equal(np.sort(shuffled), leaves)
  parts = [read_all(shard_info=seqio.ShardInfo(i, 2))["memory_leaf"] for i in range(2)]
  np.testing.assert_array_equal(np.sort(np.concatenate(parts)), leaves)


def test_corpus_task(tmp_path):
  @dataclasses.dataclass(frozen=True)
  class Documents:
    texts: tuple[str, ...]

    def records(self):
      return ({"text": text, "title": 3} for text in self.texts)

  source = Documents(("the otter swims", "naïve  rivers\nflow", "日本"))
  tokenizer = train_sentencepiece(source.texts * 5, str(tmp_path / "t.model"), vocab_size=290)
  task = register_corpus_task("corpus_for_test", source, tokenizer.path)
  for _ in range(2):  # a source can be read again
    examples = list(task.get_dataset(shuffle=False).as_numpy_iterator())
    assert [e["targets"].tolist() for e in examples] == [
      [*tokenizer.encode(text), tokenizer.eot_id] for text in source.texts
    ]
    assert [e["targets_pretokenized"].decode() for e in examples] == list(source.texts)
