"""The SeqIO tasks give exactly what the NumPy path gives."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

seqio = pytest.importorskip("seqio")

from hiermem_jax.data.packed.batches import to_batch  # noqa: E402
from hiermem_jax.data.packed.packing import pack  # noqa: E402
from hiermem_jax.data.seqio_tasks import (  # noqa: E402
  MemoryLMFeatureConverter,
  feature_lengths,
  register_corpus_task,
  register_packed_task,
)
from hiermem_jax.data.sources import JsonlSource  # noqa: E402
from hiermem_jax.data.text.tokenizer import train_sentencepiece  # noqa: E402
from hiermem_jax.errors import InputError  # noqa: E402

S = 32


@pytest.fixture(scope="module")
def dataset(write_packed, tmp_path_factory):
  rng = np.random.default_rng(0)
  windows = [rng.integers(0, 99, rng.integers(1, 40)) for _ in range(150)]  # 0 is a token like any other
  targets, segments = pack(windows, rng.random(150) < 0.6, length=S, eot_id=2)
  leaves = rng.integers(0, 65_536, len(targets))
  directory = tmp_path_factory.mktemp("packed") / "set"
  dataset = write_packed(str(directory), zip(leaves, targets, segments), num_leaves=65_536, num_shards=3)
  register_packed_task("packed_for_test", {"train": dataset.directory})
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


TEXTS = ("the otter swims", "naïve  rivers\nflow", "日本", "another day")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """Two files of two documents, and a malformed line."""
  folder = tmp_path_factory.mktemp("corpus")
  for i, texts in enumerate((TEXTS[:2], TEXTS[2:])):
    (folder / f"{i}.jsonl").write_text("\n".join([json.dumps({"text": t}) for t in texts] + ["nonsense"]))
  return JsonlSource(pattern=str(folder / "*.jsonl"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return train_sentencepiece(TEXTS * 5, str(tmp_path_factory.mktemp("tokenizer") / "t.model"), vocab_size=295)


@pytest.fixture(scope="module")
def corpus_task(corpus, tokenizer):
  return register_corpus_task("corpus_for_test", {"train": corpus, "validation": corpus}, tokenizer.path)


def test_corpus_task(corpus_task, tokenizer, corpus):
  for _ in range(2):  # a source can be read again
    examples = list(corpus_task.get_dataset(shuffle=False).as_numpy_iterator())
    assert [e["targets"].tolist() for e in examples] == [[*tokenizer.encode(t), tokenizer.eot_id] for t in TEXTS]
    assert [e["targets_pretokenized"].decode() for e in examples] == list(TEXTS)
  assert corpus_task.source.list_shards("train") == corpus.parts()
  second = corpus_task.get_dataset(shuffle=False, shard_info=seqio.ShardInfo(1, 2)).as_numpy_iterator()
  assert [e["targets_pretokenized"].decode() for e in second] == list(TEXTS[2:])


def test_mixtures_draw_from_their_tasks(corpus_task, corpus, tokenizer):
  short = JsonlSource(pattern=corpus.pattern, max_records=1)
  register_corpus_task("short_for_test", {"train": short}, tokenizer.path)
  mixture = seqio.MixtureRegistry.add("mixture_for_test", [("corpus_for_test", 3.0), ("short_for_test", 1.0)])
  ds = mixture.get_dataset({"targets": 64}, split="train", shuffle=False, num_epochs=None, seed=1).take(400)
  texts = [tokenizer.decode(e["targets"].tolist()) for e in ds.as_numpy_iterator()]
  # Of four draws three are of the four texts in turn, one of the first text.
  assert abs(texts.count(TEXTS[0]) / 400 - (3 / 4 / 4 + 1 / 4)) < 0.08
  assert abs(texts.count(TEXTS[3]) / 400 - 3 / 4 / 4) < 0.08


def test_splits_of_a_packed_task(dataset, tmp_path, write_packed):
  sequence = [(5, np.full(S, 7), np.ones(S, np.int32))]
  other = write_packed(str(tmp_path / "other"), sequence, num_leaves=65_536)
  task = register_packed_task("splits_for_test", {"train": dataset.directory, "validation": other.directory})
  (example,) = task.get_dataset(split="validation", shuffle=False).as_numpy_iterator()
  assert example["memory_leaf"] == 5 and example["targets"].tolist() == [7] * S
  assert task.num_input_examples("train") == len(dataset)
  alien = write_packed(str(tmp_path / "alien"), sequence, num_leaves=65_536, tree_fingerprint="other")
  with pytest.raises(InputError, match="differ in tree_fingerprint"):
    register_packed_task("alien_for_test", {"train": dataset.directory, "validation": alien.directory})


@pytest.mark.slow
def test_caching_with_seqio_s_own_tool(tmp_path, corpus, tokenizer):
  """As a user would: a module that registers the task, and the command line."""
  (tmp_path / "my_tasks.py").write_text(
    "from hiermem_jax.data.seqio_tasks import register_corpus_task\n"
    "from hiermem_jax.data.sources import JsonlSource\n"
    f"register_corpus_task('cached_for_test', {{'train': {corpus!r}}}, {tokenizer.path!r})\n"
  )
  env = os.environ | {"PYTHONPATH": str(tmp_path)}
  command = ["-m", "seqio.scripts.cache_tasks_main", "--module_import=my_tasks", "--tasks=cached_for_test"]
  command += [f"--output_cache_dir={tmp_path / 'cache'}", "--pipeline_options=--runner=DirectRunner"]
  done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  task = register_corpus_task("cached_for_test", {"train": corpus}, tokenizer.path)
  seqio.add_global_cache_dirs([str(tmp_path / "cache")])
  cached = task.get_dataset(use_cached=True, shuffle=False).as_numpy_iterator()
  plain = task.get_dataset(use_cached=False, shuffle=False).as_numpy_iterator()
  cached, plain = (sorted(example["targets"].tolist() for example in examples) for examples in (cached, plain))
  assert cached == plain and len(plain) == len(TEXTS)
