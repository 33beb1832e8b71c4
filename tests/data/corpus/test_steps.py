"""Directories that belong to inputs, and names of sources."""

import pytest

from hiermem_jax import files
from hiermem_jax.data.corpus.steps import claim, require_same_inputs, source_repr
from hiermem_jax.data.sources import JsonlSource, Source
from hiermem_jax.errors import InputError


def test_a_claimed_directory_takes_equal_inputs_only(tmp_path):
  directory = str(tmp_path / "new" / "work")
  claim(directory, {"a": 1, "b": [1, 2]})
  assert files.read_json(f"{directory}/inputs.json") == {"a": 1, "b": [1, 2]}
  claim(directory, {"b": [1, 2], "a": 1})
  for other, message in (
    ({"a": 1, "b": [1, 3]}, r"was made with b \[1, 2\], asked for is \[1, 3\]"),
    ({"a": 1}, r"was made with b \[1, 2\], asked for is None"),
    ({"a": 1, "b": [1, 2], "c": 0}, "was made with c None, asked for is 0"),
  ):
    with pytest.raises(InputError, match=message):
      claim(directory, other)
  assert files.read_json(f"{directory}/inputs.json") == {"a": 1, "b": [1, 2]}


def test_the_first_difference_is_named():
  with pytest.raises(InputError, match="set was made with a 1, asked for is 2: give another directory"):
    require_same_inputs("set", {"a": 1, "b": 1}, {"a": 2, "b": 2})


def test_what_an_earlier_version_wrote_lacks_later_settings(tmp_path):
  """They had their defaults, as JSON has them; a tuple is a list there."""
  directory, defaults = str(tmp_path), {"new": (1, 2), "other": 3}
  claim(directory, {"a": 1})
  claim(directory, {"a": 1, "new": [1, 2]}, defaults)
  with pytest.raises(InputError, match=r"was made with new \[1, 2\], asked for is \[4\]"):
    claim(directory, {"a": 1, "new": [4]}, defaults)
  with pytest.raises(InputError, match="was made with new None"):
    claim(directory, {"a": 1, "new": [1, 2]})


def test_a_source_without_a_repr_cannot_stand_in_a_manifest():
  class Nameless(Source):
    def parts(self):
      return []

    def read(self, part):
      yield from ()

  with pytest.raises(
    InputError, match="Nameless: its repr does not say .*; make it a dataclass, or give it a __repr__"
  ):
    source_repr(Nameless())
  assert source_repr(JsonlSource(pattern="x")).startswith("JsonlSource(pattern='x'")
