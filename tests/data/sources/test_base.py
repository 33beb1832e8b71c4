"""What every source has, on one that is made up here."""

import dataclasses

import pytest

from hiermem_jax.data.sources import BadRecord, JsonlSource, Source, TfdsSource, WorldSource, resolve_data_dir
from hiermem_jax.data.sources.base import check_limits
from hiermem_jax.data.world.generate import TINY
from hiermem_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lines(Source):
  """Parts given as strings, whose lines are the texts; "?" is malformed."""

  given: tuple[str, ...]
  limit: int | None = None

  def parts(self):
    return [str(number) for number in range(len(self.given))]

  def read(self, part):
    for number, line in enumerate(self.given[int(part)].split()):
      yield BadRecord("question", f"{part}:{number}", "what?") if line == "?" else {"text": line}


def test_records_are_those_of_all_parts_in_turn():
  assert [record["text"] for record in Lines(given=("a b", "", "c")).records()] == ["a", "b", "c"]


def test_the_first_malformed_record_is_an_error():
  records = Lines(given=("a", "b ? ? c")).records()
  assert [next(records)["text"], next(records)["text"]] == ["a", "b"]
  with pytest.raises(InputError, match=r"^1:1: question \(what\?\); mend or remove it$"):
    next(records)


@pytest.mark.parametrize("given", [(), ("", "")])
def test_no_records_at_all(given):
  with pytest.raises(InputError, match=r"empty corpus: Lines\(given=.*\) has no records"):
    list(Lines(given=given).records())


@pytest.mark.parametrize("value, good", [(None, True), (1, True), (0, False), (-3, False)])
def test_limits(value, good):
  source = Lines(given=(), limit=value)
  if good:
    check_limits(source, "limit")
  else:
    with pytest.raises(InputError, match=rf"Lines\.limit = {value}: give 1 or more, or None"):
      check_limits(source, "limit")


def test_a_relative_data_dir_lies_below_the_run():
  for source in (TfdsSource(name="c4", split="train"), WorldSource(world=TINY, split="train")):
    assert resolve_data_dir(source, "/run") == source  # TFDS's own folder
    assert resolve_data_dir(dataclasses.replace(source, data_dir="tfds"), "/run").data_dir == "/run/tfds"
    assert resolve_data_dir(dataclasses.replace(source, data_dir="/data"), "/run").data_dir == "/data"
  files = JsonlSource(pattern="a.jsonl")
  assert resolve_data_dir(files, "/run") is files
