"""What is written is read back; what is missing or damaged is named."""

import dataclasses
import json

import numpy as np
import pytest

from hiermem_jax.data.packed import Manifest, PackedDataset, write_packed
from hiermem_jax.errors import InputError

S = 16
HEADER = Manifest(
  length=S,
  vocab_size=100,
  eot_id=2,
  bos_id=0,
  num_leaves=70_000,
  tokenizer_fingerprint="aa",
  tree_fingerprint="bb",
  num_documents=5,
  num_windows=6,
  num_characters=77,
  inputs={"seed": 3, "source": "somewhere"},
)


def make_sequences(count, seed=0):
  rng = np.random.default_rng(seed)
  sizes = rng.integers(1, S + 1, count)
  segments = (np.arange(S) < sizes[:, None]).astype(np.int32)
  targets = rng.integers(1, 100, (count, S), dtype=np.int32) * segments
  return rng.choice([3, 9, 69_999], count), targets, segments


def write(directory, count=11, **kwargs):
  return write_packed(str(directory), zip(*make_sequences(count)), HEADER, **kwargs)


@pytest.mark.parametrize("num_shards", [1, 3, 20])
def test_round_trip(tmp_path, num_shards):
  write(tmp_path / "new" / "set", num_shards=num_shards)
  dataset = PackedDataset(str(tmp_path / "new" / "set"))
  leaves, targets, segments = make_sequences(11)
  assert len(dataset) == 11
  assert len(dataset.manifest.shards) == min(num_shards, 11)
  for indices in (np.arange(11), np.array([7, 0, 7, 10, 3]), np.array([], np.int64)):
    for got, expected in zip(dataset.read(indices), (leaves, targets, segments)):
      np.testing.assert_array_equal(got, expected[indices])
      assert got.dtype == np.int32
      assert got.shape == expected[indices].shape
  dataset.verify()


def test_manifest(tmp_path):
  manifest = write(tmp_path / "set", num_shards=2).manifest
  leaves, _, segments = make_sequences(11)
  assert manifest.num_tokens == segments.sum()
  assert manifest.sequences_per_leaf == {int(leaf): int((leaves == leaf).sum()) for leaf in np.unique(leaves)}
  assert [s.records for s in manifest.shards] == [6, 5]
  counted = ("num_sequences", "num_tokens", "sequences_per_leaf", "shards")
  assert dataclasses.replace(manifest, **{k: getattr(HEADER, k) for k in counted}) == HEADER
  assert json.loads((tmp_path / "set" / "manifest.json").read_text())["format"] == 1
  assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_out_of_range(tmp_path):
  dataset = write(tmp_path / "set")
  for index in (-1, 11):
    with pytest.raises(IndexError, match="dataset of 11"):
      dataset.read([index])


def test_nothing_half_written(tmp_path):
  def sequences():
    yield from list(zip(*make_sequences(4)))
    raise OSError("disk full")

  with pytest.raises(OSError, match="disk full"):
    write_packed(str(tmp_path / "set"), sequences(), HEADER)
  with pytest.raises(InputError, match="no sequences"):
    write_packed(str(tmp_path / "set"), [], HEADER)
  assert not list(tmp_path.iterdir())


def test_writes_into_an_empty_directory_only(tmp_path):
  write(tmp_path)
  with pytest.raises(InputError, match="is not empty"):
    write(tmp_path)


@pytest.mark.parametrize(
  "leaf, size, message", [(70_000, S, "leaf 70000"), (-1, S, "leaf -1"), (0, S + 1, "length 16")]
)
def test_bad_sequences(tmp_path, leaf, size, message):
  with pytest.raises(ValueError, match=message):
    write_packed(str(tmp_path / "set"), [(leaf, np.ones(size), np.ones(size))], HEADER)


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
    (lambda d: (d / "manifest.json").unlink(), "manifest.json: No such file"),
    (lambda d: (d / "manifest.json").write_text("{"), "not a format 1 manifest: delete .*run prepare again"),
    (lambda d: (d / "manifest.json").write_text("[]"), "not a format 1 manifest"),
    (lambda d: edit_manifest(d, '"format": 1', '"format": 2'), "not a format 1 manifest"),
    (lambda d: edit_manifest(d, '"length"', '"width"'), "not a format 1 manifest"),
    (lambda d: edit_manifest(d, '"num_sequences": 11', '"num_sequences": 12'), "records of its shards are not 12"),
  ],
)
def test_damage_seen_at_open(tmp_path, damage, message):
  write(tmp_path / "set", num_shards=2)
  damage(tmp_path / "set")
  with pytest.raises(InputError, match=message) as caught:
    PackedDataset(str(tmp_path / "set"))
  assert "\n" not in str(caught.value)


def test_missing_directory(tmp_path):
  with pytest.raises(InputError, match="nowhere/manifest.json: No such file"):
    PackedDataset(str(tmp_path / "nowhere"))


def test_damage_seen_when_read(tmp_path):
  write(tmp_path / "set", num_shards=2)
  flip(tmp_path / "set")
  dataset = PackedDataset(str(tmp_path / "set"))
  dataset.read([0, 2])  # the other shard
  with pytest.raises(InputError, match="shard-00001.array_record is damaged"):
    dataset.read(range(11))
  with pytest.raises(InputError, match="shard-00001.array_record is damaged .*sha256"):
    dataset.verify()


def test_another_file_of_the_same_size(tmp_path):
  dataset = write(tmp_path / "set", num_shards=2)
  size = shard_of(tmp_path / "set").stat().st_size
  shard_of(tmp_path / "set").write_bytes(b"x" * size)
  with pytest.raises(InputError, match="shard-00001.array_record is damaged"):
    PackedDataset(dataset.directory).read([1])
