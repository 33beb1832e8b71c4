"""What is written is read back; what is missing, unfinished or damaged is named."""

import concurrent.futures
import errno
import os
import pathlib
import resource

import numpy as np
import pytest

from hiermem_jax import files
from hiermem_jax.data.packed import reading
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.errors import InputError


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize("num_shards", [1, 3, 20])
def test_round_trip(write, make_sequences, tmp_path, num_shards, dtype):
  write(tmp_path / "new" / "set", num_shards=num_shards, dtype=dtype)
  dataset = PackedDataset(str(tmp_path / "new" / "set"))
  leaves, targets, segments = make_sequences(11)
  assert len(dataset) == 11
  assert [s.records for s in dataset.manifest.shards] == {1: [11], 3: [4, 4, 3], 20: [1] * 11}[num_shards]
  for indices in (np.arange(11), np.array([7, 0, 7, 10, 3]), np.array([], np.int64)):
    for got, expected in zip(dataset.read(indices), (leaves, targets, segments)):
      np.testing.assert_array_equal(got, expected[indices])
      assert got.dtype == np.int32
      assert got.shape == expected[indices].shape
  dataset.verify()


def test_reading_from_several_threads(write, tmp_path):
  dataset = write(tmp_path / "set", count=50, num_shards=3)
  expected = dataset.read(range(50))[1]
  orders = [np.random.default_rng(seed).permutation(50) for seed in range(8)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for order, (_, targets, _) in zip(orders, pool.map(dataset.read, orders)):
      np.testing.assert_array_equal(targets, expected[order])


def test_leaves_beside_the_shards(write, tmp_path):
  dataset = write(tmp_path / "set", num_shards=2)
  np.testing.assert_array_equal(dataset.leaves(), dataset.read(range(len(dataset)))[0])
  path = tmp_path / "set/shard-00001.leaves.npy"
  other = np.load(path) + 1
  np.save(path, other)
  with pytest.raises(InputError, match="leaves.npy files are not as in the manifest: delete"):
    dataset.leaves()
  np.save(path, other[:-1])
  with pytest.raises(InputError, match="shard-00001.leaves.npy has shape"):
    dataset.leaves()
  path.unlink()
  with pytest.raises(InputError, match="shard-00001.leaves.npy is missing or damaged: delete"):
    dataset.leaves()


def test_out_of_range(write, tmp_path):
  dataset = write(tmp_path / "set")
  for index in (-1, 11):
    with pytest.raises(IndexError, match="dataset of 11"):
      dataset.read([index])


def test_without_a_manifest_it_is_unfinished(write, tmp_path):
  write(tmp_path / "set")
  (tmp_path / "set" / "manifest.json").unlink()
  with pytest.raises(InputError, match=r"set: .*unfinished.*run prepare"):
    PackedDataset(str(tmp_path / "set"))


def shard_of(directory):
  return directory / "shard-00001.array_record"


def cut(directory):
  content = shard_of(directory).read_bytes()
  shard_of(directory).write_bytes(content[:-1])


def flip(directory):
  """Damages records and leaves the size and the number of records alone."""
  content = bytearray(shard_of(directory).read_bytes())
  for i in range(200, 300):
    content[i] ^= 255
  shard_of(directory).write_bytes(bytes(content))


def edit_manifest(directory, old, new):
  path = directory / "manifest.json"
  assert old in path.read_text()
  path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
  "damage, message",
  [
    (lambda d: shard_of(d).unlink(), "shard-00001.array_record is missing: delete .*run prepare again"),
    (cut, "shard-00001.array_record has .* bytes, its manifest says .*run prepare again"),
    (lambda d: (d / "manifest.json").write_text("{"), "not a format 2 manifest: delete .*run prepare again"),
    (lambda d: (d / "manifest.json").write_text("[]"), "not a format 2 manifest"),
    (lambda d: edit_manifest(d, '"format": 2', '"format": 1'), "not a format 2 manifest"),
    (lambda d: edit_manifest(d, '"length"', '"width"'), "not a format 2 manifest"),
    (lambda d: edit_manifest(d, '"num_sequences": 11', '"num_sequences": 12'), "not a format 2 manifest"),
  ],
)
def test_damage_seen_at_open(write, tmp_path, damage, message):
  write(tmp_path / "set", num_shards=2)
  damage(tmp_path / "set")
  with pytest.raises(InputError, match=message) as caught:
    PackedDataset(str(tmp_path / "set"))
  assert "\n" not in str(caught.value)


def test_missing_directory(tmp_path):
  with pytest.raises(InputError, match="nowhere/manifest.json: No such file"):
    PackedDataset(str(tmp_path / "nowhere"))


def test_damage_seen_when_read(write, tmp_path):
  write(tmp_path / "set", num_shards=2)
  flip(tmp_path / "set")
  dataset = PackedDataset(str(tmp_path / "set"))
  dataset.read([0, 2])  # the other shard
  with pytest.raises(InputError, match="shard-00001.array_record is damaged"):
    dataset.read(range(11))
  with pytest.raises(InputError, match="shard-00001.array_record is damaged .*sha256"):
    dataset.verify()


def test_files_that_may_be_open_are_limited(write, tmp_path, monkeypatch):
  """More shards than the limit: the readers of others are closed, and nothing is called damaged."""
  monkeypatch.setattr(files, "_RETRY_PAUSES", (0.0, 0.0))
  dataset = write(tmp_path / "set", count=40, num_shards=40)
  expected = dataset.read(range(40))[1]
  dataset = PackedDataset(dataset.directory)
  before, used = resource.getrlimit(resource.RLIMIT_NOFILE), len(os.listdir("/proc/self/fd"))
  resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, before[1]))
  try:
    read = dataset.read(range(40))[1]
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
  np.testing.assert_array_equal(read, expected)


def failing(error, times, then):
  """A function that raises, so many times."""
  left = [times]

  def call(*args, **kwargs):
    left[0] -= 1
    if left[0] >= 0:
      raise error
    return then(*args, **kwargs)

  return call


def test_a_shard_that_cannot_be_read_for_a_while_is_not_damaged(write, tmp_path, monkeypatch):
  monkeypatch.setattr(files, "_RETRY_PAUSES", (0.0, 0.0))
  write(tmp_path / "set", num_shards=2)
  opened, error = reading._open, RuntimeError("read: Input/output error")
  monkeypatch.setattr(reading, "_open", failing(error, 2, opened))
  assert len(PackedDataset(str(tmp_path / "set")).read(range(11))[0]) == 11
  monkeypatch.setattr(reading, "_open", failing(error, 3, opened))
  with pytest.raises(InputError, match=r"shard-00000.array_record could not be read in three tries .*Input/output"):
    PackedDataset(str(tmp_path / "set")).read(range(11))


@pytest.mark.parametrize("number, reason", [(errno.EIO, "Input/output error"), (errno.ESTALE, "Stale file handle")])
def test_a_manifest_or_leaves_out_of_reach_are_not_damaged(write, tmp_path, monkeypatch, number, reason):
  monkeypatch.setattr(files, "_RETRY_PAUSES", (0.0, 0.0))
  dataset, unreachable = write(tmp_path / "set", num_shards=2), failing(OSError(number, reason), 10, None)
  with monkeypatch.context() as patch:
    patch.setattr(np, "load", unreachable)
    with pytest.raises(InputError, match=rf"leaves.npy could not be read in three tries \({reason}\)"):
      dataset.leaves()
  monkeypatch.setattr(pathlib.Path, "read_text", unreachable)
  with pytest.raises(
    InputError, match=rf"manifest.json could not be read in three tries \({reason}\).*again"
  ) as caught:
    PackedDataset(dataset.directory)
  assert "prepare" not in str(caught.value)


def test_another_file_of_the_same_size(write, tmp_path):
  dataset = write(tmp_path / "set", num_shards=2)
  size = shard_of(tmp_path / "set").stat().st_size
  shard_of(tmp_path / "set").write_bytes(b"x" * size)
  with pytest.raises(InputError, match="shard-00001.array_record is damaged"):
    PackedDataset(dataset.directory).read([6])
