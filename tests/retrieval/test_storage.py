"""Artifacts on disk: round trips, and one clear line for each way they can be broken."""

import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval import storage

META = {"kind": "test", "size": 3}
ARRAYS = {"a": np.arange(3, dtype=np.int32), "b": np.linspace(0, 1, 4, dtype=np.float32)}


def test_round_trip_leaves_no_temporary_files(tmp_path):
  directory = str(tmp_path / "new" / "folder")
  storage.write_artifact(directory, "x", META, ARRAYS)
  meta, arrays = storage.read_artifact(directory, "x")
  assert meta == META
  assert sorted(arrays) == ["a", "b"]
  for name in arrays:
    np.testing.assert_array_equal(arrays[name], ARRAYS[name])
    assert arrays[name].dtype == ARRAYS[name].dtype
  assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["x.json", "x.npz"]


def test_digest_depends_on_meta_names_values_types_and_shapes():
  variants = [
    (META, ARRAYS),
    ({**META, "size": 4}, ARRAYS),
    (META, {"a": ARRAYS["a"], "c": ARRAYS["b"]}),
    (META, {**ARRAYS, "a": ARRAYS["a"] + 1}),
    (META, {**ARRAYS, "a": ARRAYS["a"].astype(np.int64)}),
    (META, {**ARRAYS, "b": ARRAYS["b"].reshape(2, 2)}),
  ]
  digests = [storage.digest(*v) for v in variants]
  assert len(set(digests)) == len(variants)
  assert storage.digest(dict(reversed(META.items())), dict(reversed(ARRAYS.items()))) == digests[0]
  assert len(digests[0]) == 16 and int(digests[0], 16) >= 0


@pytest.mark.parametrize("victim", ["x.json", "x.npz"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "text"])
def test_damage_is_one_line_naming_the_file(tmp_path, victim, damage):
  storage.write_artifact(str(tmp_path), "x", META, ARRAYS)
  path = tmp_path / victim
  whole = path.read_bytes()
  if damage == "missing":
    path.unlink()
  else:
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[damage])
  with pytest.raises(InputError) as caught:
    storage.read_artifact(str(tmp_path), "x")
  assert victim in str(caught.value) and str(tmp_path) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_files_of_two_artifacts_do_not_mix(tmp_path):
  storage.write_artifact(str(tmp_path / "one"), "x", META, ARRAYS)
  storage.write_artifact(str(tmp_path / "two"), "x", META, {**ARRAYS, "a": ARRAYS["a"] + 1})
  (tmp_path / "one" / "x.npz").write_bytes((tmp_path / "two" / "x.npz").read_bytes())
  with pytest.raises(InputError, match="does not match"):
    storage.read_artifact(str(tmp_path / "one"), "x")


def test_every_flipped_byte_of_the_arrays_is_noticed(tmp_path):
  storage.write_artifact(str(tmp_path), "x", META, ARRAYS)
  path = tmp_path / "x.npz"
  whole = path.read_bytes()
  start = whole.index(ARRAYS["b"].tobytes())
  path.write_bytes(whole[: start + 1] + bytes([whole[start + 1] ^ 1]) + whole[start + 2 :])
  with pytest.raises(InputError):
    storage.read_artifact(str(tmp_path), "x")


def test_directory_that_is_a_file(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="no x.json"):
    storage.read_artifact(str(tmp_path / "file"), "x")
