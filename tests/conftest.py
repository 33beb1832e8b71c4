"""What tests of several rooms share: a compilation cache, and parameters of an anchor without compiling anything."""

import tempfile

import flax.linen as nn
import jax
import numpy as np
import pytest

from hiermem_jax.models.anchor import init_anchor

_CACHE = tempfile.TemporaryDirectory(prefix="hiermem_jax_tests_")


def pytest_configure():
  """Compiles once per session what several tests run; most of their time is compilation."""
  jax.config.update("jax_compilation_cache_dir", _CACHE.name)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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
