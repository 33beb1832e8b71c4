"""Examples of twelve topics and a tree of them, for the tests of the tree and of how it is built."""

import numpy as np
import pytest

from hiermem_jax.retrieval.build import TreeConfig, build_tree


@pytest.fixture(scope="session")
def examples():
  """Float32 unit vectors [600, 8]."""
  rng = np.random.default_rng(0)
  topics = rng.standard_normal((12, 8))
  vectors = topics[rng.integers(12, size=600)] + 0.4 * rng.standard_normal((600, 8))
  return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def built(examples):
  """A tree of 4 x 4 x 4 leaves."""
  return build_tree(
    examples, config=TreeConfig(branching=4, depth=3, batch_size=100, seed=7), encoder_fingerprint="abc"
  )
