"""The TFDS copies of the synthetic world hold exactly what `world.generate` draws."""

import dataclasses

import pytest

from hiermem_jax.data.sources import TfdsSource, WorldSource
from hiermem_jax.data.world import generate as world_lib
from hiermem_jax.data.world.generate import TINY
from hiermem_jax.errors import InputError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def world():
  return world_lib.generate(TINY)


@pytest.mark.parametrize("split", ["train", "validation", "probes"])
def test_world_source_gives_the_records_of_the_world(data_dir, world, split):
  source = WorldSource(world=TINY, split=split, data_dir=data_dir)
  expected = getattr(world, split)
  assert list(source.records()) == expected
  assert list(source.records()) == expected  # the prepared copy
  assert list(dataclasses.replace(source, max_records=2).records()) == expected[:2]


def test_presets_are_registered_by_name(data_dir, world):
  train = TfdsSource(name="synthetic_world/tiny", split="train", data_dir=data_dir)
  assert list(train.records()) == world.train
  probes = TfdsSource(name="synthetic_world_probes/tiny", split="test", data_dir=data_dir)
  assert list(probes.records()) == world.probes
  sliced = dataclasses.replace(train, split="train[10:13]")
  assert list(sliced.records()) == world.train[10:13]


def test_a_changed_config_is_never_served_a_stale_copy(data_dir, world):
  changed = dataclasses.replace(TINY, seed=7)
  records = list(WorldSource(world=changed, split="train", data_dir=data_dir).records())
  assert records == world_lib.generate(changed).train
  assert records != world.train


def test_values_are_plain_python(data_dir):
  probe = next(WorldSource(world=TINY, split="probes", data_dir=data_dir).records())
  assert {key: type(value) for key, value in probe.items()} == {
    **dict.fromkeys(("prompt", "paraphrase", "answer", "relation", "kind", "domain", "entity"), str),
    "count": int,
  }


@pytest.mark.parametrize(
  "name, split, match",
  [
    ("no_such_dataset", "train", "no_such_dataset"),
    ("synthetic_world/no_such_config", "train", "no_such_config"),
    ("synthetic_world/tiny", "no_such_split", "has no split no_such_split; it has train, validation"),
  ],
)
def test_mistakes_are_named_in_one_line(data_dir, name, split, match):
  with pytest.raises(InputError, match=match) as caught:
    list(TfdsSource(name=name, split=split, data_dir=data_dir).records())
  assert "\n" not in str(caught.value)
