"""Records, shards and the manifest: the documented bytes, and numbers that add up."""

import dataclasses
import json

import numpy as np
import pytest

from hiermem_jax.data.packed.format import Manifest, decode_records, encode_record, write_shard


@pytest.mark.parametrize(("dtype", "largest"), [("uint16", 65_535), ("int32", 2**31 - 1)])
def test_record(dtype, largest):
  """The documented bytes; a leaf may be larger than any token, and -1 where there is no tree."""
  targets, segments = np.array([5, largest, 0]), np.array([1, 2, 0])
  record = encode_record(-1, targets, segments, dtype)
  body = np.array([5, largest, 0, 1, 2, 0]).astype("<u2" if dtype == "uint16" else "<i4")
  assert record == b"\xff\xff\xff\xff" + body.tobytes()
  again = decode_records([record, encode_record(65_536, targets, segments, dtype)], 3, dtype)
  assert again[0].tolist() == [-1, 65_536]
  np.testing.assert_array_equal(again[1], [targets] * 2)
  np.testing.assert_array_equal(again[2], [segments] * 2)
  with pytest.raises(ValueError, match="a record of 6 numbers for length 4"):
    decode_records([record], 4, dtype)


def test_manifest(write, make_sequences, tmp_path):
  counts = {"bad_records": {"json": {"count": 2, "places": ["a.jsonl:7"]}}, "num_documents": 5, "inputs": {"seed": 3}}
  manifest = write(tmp_path / "set", num_shards=2, **counts).manifest
  leaves, _, segments = make_sequences(11)
  assert manifest.num_tokens == segments.sum()
  assert manifest.sequences_per_leaf == {int(leaf): int((leaves == leaf).sum()) for leaf in np.unique(leaves)}
  assert {name: getattr(manifest, name) for name in counts} == counts
  assert Manifest.from_json(manifest.to_json()) == manifest
  assert json.loads((tmp_path / "set" / "manifest.json").read_text())["format"] == 2
  shards = [f"shard-0000{i}.{kind}" for i in range(2) for kind in ("array_record", "leaves.npy")]
  assert sorted(p.name for p in (tmp_path / "set").iterdir()) == ["manifest.json", *shards]


def test_manifest_must_add_up(write, tmp_path):
  manifest = write(tmp_path / "set").manifest
  tokens = manifest.num_tokens
  dropped = dataclasses.replace(manifest, input_tokens=tokens + 7, dropped_tokens={"tails": 4, "short": 3})
  for wrong in (
    {"input_tokens": tokens + 1},
    {"dropped_tokens": {"tails": 1}},
    {"num_sequences": 12},
    {"sequences_per_leaf": {3: 12}},
    {"shards": manifest.shards * 2},
  ):
    with pytest.raises(ValueError, match="tokens in|sequences"):
      dataclasses.replace(dropped if "input_tokens" in wrong else manifest, **wrong)


def test_shard_is_there_whole_or_not_at_all(tmp_path):
  def records():
    yield b"one"
    raise OSError("disk full")

  with pytest.raises(OSError, match="disk full"):
    write_shard(str(tmp_path / "set" / "shard-00000.array_record"), records())
  assert not list((tmp_path / "set").iterdir())
