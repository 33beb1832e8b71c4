"""Settings of the pipelines: what is out of range, and what decides the result."""

import dataclasses

import pytest

from hiermem_jax.data.corpus.config import PackConfig, ReadConfig
from hiermem_jax.errors import InputError


@pytest.mark.parametrize(
  "config, field, bad, good",
  [
    (ReadConfig, "window_tokens", 3, 4),
    (ReadConfig, "max_bad_share", -0.1, 0.0),
    (ReadConfig, "max_bad_share", 1.1, 1.0),
    (PackConfig, "length", 0, 1),
    (PackConfig, "num_shards", 0, 1),
    (PackConfig, "seed", -1, 0),
    (PackConfig, "tails", "keep", "mix"),
    (PackConfig, "buckets", (8, 12), (8, 16)),
    (PackConfig, "buckets", (8, 16, 24), (8, 16, 32)),
    (PackConfig, "buckets", (0, 0), (1, 2)),
  ],
)
def test_settings_out_of_range(config, field, bad, good):
  config(**{field: good})
  with pytest.raises(InputError, match=rf"{config.__name__}\.{field} = ") as caught:
    config(**{field: bad})
  assert repr(bad) in str(caught.value) and "give" in str(caught.value)


def test_settings_that_do_not_go_with_a_tree():
  PackConfig(buckets=(8, 16)).check_tree(has_tree=False)
  PackConfig(tails="mix").check_tree(has_tree=True)
  with pytest.raises(InputError, match=r"PackConfig.buckets = \(8, 16\): .*bind prepare.tree = None"):
    PackConfig(buckets=(8, 16)).check_tree(has_tree=True)
  with pytest.raises(InputError, match="PackConfig.tails = 'mix': without a tree no leaf has siblings"):
    PackConfig(tails="mix").check_tree(has_tree=False)


def test_lengths():
  assert PackConfig(length=24).lengths == (24,)
  assert PackConfig(length=24, buckets=(8, 16)).lengths == (8, 16)


def test_every_setting_of_reading_is_in_the_identity_but_what_only_stops_a_run():
  names = {field.name for field in dataclasses.fields(ReadConfig)}
  assert ReadConfig(window_tokens=7).identity() == {"window_tokens": 7}
  assert names - ReadConfig().identity().keys() == {"max_bad_share"}
