"""Packed datasets and raw text as SeqIO tasks, for users of SeqIO's tools.

Training does not need this module: `batches.Batches` gives the same batches without TensorFlow. Tasks are for
inspection, mixtures, caching, and for trainers that take SeqIO tasks. Register them in a module of your own, say
my_tasks.py:

  register_packed_task("wiki_packed", {"train": "/data/wiki_2048/train", "validation": "/data/wiki_2048/validation"})
  register_corpus_task("wiki", {"train": JsonlSource(pattern="/data/wiki/*.jsonl.zst")}, "/data/tokenizer.json")
  register_corpus_task("web", {"train": TfdsSource(name="c4/en", split="train")}, "/data/tokenizer.json")
  seqio.MixtureRegistry.add("both", [("wiki", 0.3), ("web", 0.7)])

Then SeqIO's functions and tools work on them:

  ds = seqio.get_dataset("wiki_packed", feature_lengths(2048), MemoryLMFeatureConverter())
  seqio_cache_tasks --module_import=my_tasks --tasks=wiki --output_cache_dir=/data/cache
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from hiermem_jax.data.corpus.reading import good_texts
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.data.sources import Source
from hiermem_jax.data.text.vocabulary import TokenizerVocabulary
from hiermem_jax.errors import InputError

_READ = 64  # sequences that are read at a time

_FeatureSpec = seqio.FeatureConverter.FeatureSpec


def feature_lengths(length: int) -> dict[str, int | None]:
  """SeqIO's `task_feature_lengths` for a packed task whose sequences have `length` positions."""
  return {"targets": length, "targets_segment_ids": length, "memory_leaf": None}


class MemoryLMFeatureConverter(seqio.FeatureConverter):
  """Makes batches as in packed/batches.py of the features of a packed task, one example at a time.

  Example, with begin-of-document token 0:

    {"targets": [5, 6, 2, 8, 2, 0], "targets_segment_ids": [1, 1, 1, 2, 2, 0], "memory_leaf": 7}

    {"decoder_target_tokens": [5, 6, 2, 8, 2, 0],
     "decoder_input_tokens":  [0, 5, 6, 0, 8, 0],
     "decoder_segment_ids":   [1, 1, 1, 2, 2, 0],
     "decoder_positions":     [0, 1, 2, 0, 1, 0],
     "decoder_loss_weights":  [1., 1., 1., 1., 1., 0.],
     "memory_leaf":           7}

  `seqio.LMFeatureConverter` cannot be used: it packs examples itself, takes token 0 for padding, and drops the leaf.
  """

  TASK_FEATURES = {
    "targets": _FeatureSpec(dtype=tf.int32),
    "targets_segment_ids": _FeatureSpec(dtype=tf.int32),
    "memory_leaf": _FeatureSpec(dtype=tf.int32, rank=0),
  }
  MODEL_FEATURES = {
    "decoder_input_tokens": _FeatureSpec(dtype=tf.int32),
    "decoder_target_tokens": _FeatureSpec(dtype=tf.int32),
    "decoder_segment_ids": _FeatureSpec(dtype=tf.int32),
    "decoder_positions": _FeatureSpec(dtype=tf.int32),
    "decoder_loss_weights": _FeatureSpec(dtype=tf.float32),
    "memory_leaf": _FeatureSpec(dtype=tf.int32, rank=0),
  }

  def __init__(self, bos_id: int = 0):
    """`bos_id` is the input at the first position of each document, `manifest.bos_id` of the packed dataset."""
    super().__init__(pack=False, bos_id=bos_id)

  def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int | None]) -> tf.data.Dataset:
    lengths = {k: v for k, v in task_feature_lengths.items() if self.TASK_FEATURES[k].rank}
    ds = seqio.trim_and_pad_dataset(ds, lengths)
    return ds.map(self._convert_example, num_parallel_calls=tf.data.AUTOTUNE)

  def _convert_example(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    targets, segments = features["targets"], features["targets_segment_ids"]
    valid = tf.cast(segments > 0, tf.int32)
    inputs = seqio.autoregressive_inputs(targets, sequence_id=segments, bos_id=self.bos_id)
    index = tf.range(tf.size(segments))
    starts = tf.concat([[True], tf.not_equal(segments[1:], segments[:-1])], axis=0)
    first = tf.gather(index[starts], tf.cumsum(tf.cast(starts, tf.int32)) - 1)
    return {
      "decoder_input_tokens": inputs * valid,
      "decoder_target_tokens": targets * valid,
      "decoder_segment_ids": segments,
      "decoder_positions": (index - first) * valid,
      "decoder_loss_weights": tf.cast(valid, tf.float32),
      "memory_leaf": features["memory_leaf"],
    }

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int | None]) -> dict[str, int | None]:
    """All features have the length of the targets, except the leaf, which is a scalar."""
    length = task_feature_lengths["targets"]
    return {k: length if spec.rank else None for k, spec in self.MODEL_FEATURES.items()}


def register_packed_task(name: str, directories: Mapping[str, str]) -> seqio.Task:
  """Registers packed datasets as a task.

  The features are `targets` and `targets_segment_ids`, int32 [S], and `memory_leaf`, an int32 scalar. A shuffled
  dataset has all sequences in a random order.

  Args:
    name: of the task.
    directories: split -> directory of a packed dataset. All have the same tokenizer, tree and length.

  Raises:
    InputError: a dataset is missing or damaged, or the splits do not belong together.
  """
  datasets = {split: PackedDataset(directory) for split, directory in directories.items()}
  manifests = [dataset.manifest for dataset in datasets.values()]
  manifest = manifests[0]
  for other in manifests[1:]:
    for field in ("length", "tokenizer_fingerprint", "tree_fingerprint"):
      if getattr(other, field) != getattr(manifest, field):
        raise InputError(f"task {name}: its splits differ in {field}; give datasets that were prepared alike")
  positions = tf.TensorSpec([manifest.length], tf.int32)

  def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    dataset = datasets[split]

    def examples() -> Iterator[dict[str, np.ndarray]]:
      order = np.arange(len(dataset))
      if shuffle_files:
        np.random.default_rng(seed).shuffle(order)
      for start in range(0, len(order), _READ):
        for leaf, targets, segments in zip(*dataset.read(order[start : start + _READ])):
          yield {"targets": targets, "targets_segment_ids": segments, "memory_leaf": leaf}

    signature = {"targets": positions, "targets_segment_ids": positions, "memory_leaf": tf.TensorSpec([], tf.int32)}
    return tf.data.Dataset.from_generator(examples, output_signature=signature)

  def feature(size: int, rank: int) -> seqio.Feature:
    vocabulary = seqio.PassThroughVocabulary(size, eos_id=manifest.eot_id)
    return seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32, rank=rank)

  counts = {split: len(dataset) for split, dataset in datasets.items()}
  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(dataset_fn, list(datasets), num_input_examples=counts),
    output_features={
      "targets": feature(manifest.vocab_size, 1),
      "targets_segment_ids": feature(manifest.length + 1, 1),
      "memory_leaf": feature(max(manifest.num_leaves, 1), 0),
    },
  )


class _PartsDataSource(seqio.DataSource):
  """Sources of documents as a SeqIO data source. Each part of a source is a shard."""

  def __init__(self, sources: Mapping[str, Source]):
    self._sources = dict(sources)
    super().__init__(splits=list(sources), num_input_examples=None, caching_permitted=True)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def list_shards(self, split: str) -> Sequence[str]:
    return self._sources[split].parts()

  def get_dataset(self, split="train", shuffle=True, seed=None, shard_info=None, **unused) -> tf.data.Dataset:
    """A dataset with the texts as `targets`. Shuffling changes the order of the parts, not that within a part."""
    del unused
    source = self._sources[split]
    parts = source.parts()
    if shard_info is not None:
      parts = parts[shard_info.index :: shard_info.num_shards]
    if shuffle:
      parts = np.random.default_rng(seed).permutation(parts).tolist()
    return tf.data.Dataset.from_generator(
      lambda: ({"targets": text} for part in parts for text in good_texts(source, part)),
      output_signature={"targets": tf.TensorSpec([], tf.string)},
    )

  def __repr__(self) -> str:
    return f"{type(self).__name__}({self._sources})"


def register_corpus_task(name: str, sources: Mapping[str, Source], tokenizer_path: str) -> seqio.Task:
  """Registers documents as a task, to inspect, mix and cache a corpus with SeqIO's tools.

  The features are `targets`, int32, the ids of a document and the end-of-text id, and `targets_pretokenized`, its text.
  `seqio_cache_tasks` caches tokenised documents. Malformed records are left out.

  Args:
    name: of the task.
    sources: split -> documents. A part of a source is a shard.
    tokenizer_path: see `load_tokenizer`.

  Raises:
    InputError: see `load_tokenizer`.
  """
  vocabulary = TokenizerVocabulary(tokenizer_path)
  return seqio.TaskRegistry.add(
    name,
    source=_PartsDataSource(sources),
    preprocessors=[seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder(), seqio.preprocessors.append_eos],
    output_features={"targets": seqio.Feature(vocabulary, add_eos=True, dtype=tf.int32)},
  )
