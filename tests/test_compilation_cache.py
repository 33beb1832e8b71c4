"""Where compiled programs are kept, and that a second run finds them."""

import jax
import jax.numpy as jnp
import pytest

from hiermem_jax import compilation_cache


@pytest.fixture(autouse=True)
def untold():
  """jax as nobody has told it a directory; it keeps whatever is compiled."""
  options = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for name, value in options.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def compiled(number: int) -> None:
  """Compiles a program of its own for each number."""
  jax.jit(lambda x: jnp.sin(x) + number).lower(jnp.ones(3)).compile()


def entries(directory) -> dict[str, int]:
  return {path.name: path.stat().st_mtime_ns for path in directory.glob("jit__lambda*")}


def test_a_second_run_finds_what_the_first_one_compiled(tmp_path):
  place, found = tmp_path / "compilation_cache", []
  for _ in range(2):
    with compilation_cache.kept(str(tmp_path)):
      compiled(71)
      assert jax.config.jax_compilation_cache_dir == str(place)
    found.append(entries(place))
    for path in place.glob("jit__lambda*"):
      path.write_bytes(path.read_bytes())  # an entry that is found is not written again
    jax.clear_caches()
  assert len(found[0]) == len(found[1]) == 1
  compiled(72)  # outside nothing is kept
  assert jax.config.jax_compilation_cache_dir is None and entries(place).keys() == found[0].keys()


def test_another_place_and_none(tmp_path):
  with compilation_cache.kept(str(tmp_path / "run"), str(tmp_path / "chosen")):
    compiled(73)
  with compilation_cache.kept(str(tmp_path / "run"), "none"):
    compiled(74)
  assert len(entries(tmp_path / "chosen")) == 1 and not (tmp_path / "run").exists()


def test_a_place_that_jax_was_told_stays_unless_one_is_chosen(tmp_path):
  with compilation_cache.kept(str(tmp_path), str(tmp_path / "told")):
    with compilation_cache.kept(str(tmp_path / "run")):
      compiled(75)
    with compilation_cache.kept(str(tmp_path / "run"), str(tmp_path / "chosen")):
      compiled(76)
    compiled(77)
  assert not (tmp_path / "run").exists()
  assert [len(entries(tmp_path / name)) for name in ("told", "chosen")] == [2, 1]


def test_a_bucket_is_named_as_it_is():
  with compilation_cache.kept("gs://bucket/run"):
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/run/compilation_cache"


def test_bypassed_it_neither_reads_nor_writes(tmp_path):
  with compilation_cache.kept(str(tmp_path)):
    compiled(78)
    before = entries(tmp_path / "compilation_cache")
    with compilation_cache.bypassed():
      compiled(79)
    assert entries(tmp_path / "compilation_cache") == before
    compiled(80)
  assert len(entries(tmp_path / "compilation_cache")) == 2
