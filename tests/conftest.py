"""What tests of several rooms share: a compilation cache, parameters of an anchor without compiling anything, packed datasets."""

import collections
import os
import pathlib
import sys
import tempfile

# The environment of the tests and of the processes that they start, before JAX reads it. What is set already stays.
_CACHE = tempfile.TemporaryDirectory(prefix="hiermem_jax_tests_")
_XLA_FLAGS = (
  # Most of the time is compilation of programs that run a few times; this is ten times as fast.
  "--xla_backend_optimization_level=0",
  "--xla_cpu_use_fusion_emitters=false",
  "--xla_cpu_parallel_codegen_split_count=1",
  # On busy cores one device may wait long for another.
  "--xla_cpu_collective_timeout_seconds=600",
  "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
os.environ["XLA_FLAGS"] = " ".join([*_XLA_FLAGS, os.environ.get("XLA_FLAGS", "")])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from hiermem_jax.data.packed.decomposition import DecomposedDataset, write_decomposition  # noqa: E402
from hiermem_jax.data.packed.format import Manifest, encode_record, write_manifest, write_shard  # noqa: E402
from hiermem_jax.data.packed.reading import PackedDataset  # noqa: E402
from hiermem_jax.models.anchor import init_anchor  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parent))  # for terminal.py; last, so that no folder of tests hides a package

# Folders whose tests share a fixture that takes long: one of two workers (pytest-xdist) runs them all.
_TOGETHER = ("tests/evaluation", "tests/parallel", "tests/training")


def pytest_collection_modifyitems(items):
  """Files with slow tests come first, so that two workers end at about the same time."""
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """A worker takes a whole file, in the order of the collection, or a whole folder."""
  from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415

  class ByFileOrFolder(LoadFileScheduling):
    def _split_scope(self, nodeid):
      file = super()._split_scope(nodeid)
      return next((folder for folder in _TOGETHER if file.startswith(f"{folder}/")), file)

  config.option.loadscopereorder = False
  return ByFileOrFolder(config, log)


@pytest.fixture(scope="session")
def random_anchor():
  """A function from a configuration and a seed to float32 numpy parameters; norm gains are random too."""

  def make(config, seed=0):
    rng = np.random.default_rng(seed)
    shapes = nn.unbox(jax.eval_shape(lambda key: init_anchor(key, config), jax.random.key(0)))

    def draw(path, leaf):
      values = rng.standard_normal(leaf.shape).astype(np.float32)
      return 1 + 0.2 * values if path[-1].key == "scale" else values * config.width**-0.5

    return jax.tree_util.tree_map_with_path(draw, shapes)

  return make


@pytest.fixture(scope="session")
def without_tensorflow(tmp_path_factory):
  """A folder that, on PYTHONPATH, hides TensorFlow: importing it takes longer than most of what processes here do."""
  folder = tmp_path_factory.mktemp("without_tensorflow")
  (folder / "tensorflow.py").write_text("raise ImportError('hidden by the tests')\n")
  return folder


@pytest.fixture(scope="session")
def write_packed():
  return _write_packed


@pytest.fixture(scope="session")
def write_decomposed():
  return _write_decomposed


def _write_packed(directory, sequences, *, num_shards=1, dtype="int32", **fields) -> PackedDataset:
  """Writes (leaf, targets [S], segments [S]) in their order and opens the dataset; `fields` are of the manifest."""
  sequences = list(sequences)
  num_tokens = sum(int(np.count_nonzero(segments)) for _, _, segments in sequences)
  records = [encode_record(*sequence, dtype) for sequence in sequences]
  parts = [part for part in np.array_split(np.arange(len(records)), num_shards) if len(part)]
  about = {
    "length": len(sequences[0][1]),
    "vocab_size": 100,
    "eot_id": 2,
    "bos_id": 0,
    "num_leaves": 0,
    "tokenizer_fingerprint": "",
    "tree_fingerprint": "",
    "num_documents": 0,
    "num_windows": 0,
    "num_characters": 0,
    "inputs": {},
    "input_tokens": num_tokens,
    "dropped_tokens": {},
    "bad_records": {},
  }
  held = {
    "dtype": dtype,
    "num_sequences": len(sequences),
    "num_tokens": num_tokens,
    "sequences_per_leaf": dict(collections.Counter(int(leaf) for leaf, _, _ in sequences)),
    "shards": tuple(
      write_shard(os.path.join(directory, f"shard-{number:05d}.array_record"), [records[i] for i in part])
      for number, part in enumerate(parts)
    ),
  }
  write_manifest(directory, Manifest(**about | fields | held))
  return PackedDataset(directory)


def _write_decomposed(directory, sequences, **fields) -> DecomposedDataset:
  """Writes a decomposed dataset of `sequences`, by length as for `_write_packed`, and opens it."""
  for length, bucket in sequences.items():
    _write_packed(os.path.join(directory, str(length)), bucket, **fields)
  write_decomposition(directory, list(sequences), 0, {})
  return DecomposedDataset(directory)
