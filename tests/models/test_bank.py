"""The bank: leaf arithmetic by brute force, gathers and scatters by loops, and the memory's effect on the anchor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermem_jax.models import GENERIC_ROWS, NO_MEMORY, Anchor, AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.bank import (
  block_to_rows,
  gather_rows,
  init_bank,
  row_indices,
  rows_to_block,
  sum_rows,
  table_shapes,
)

ANCHOR = AnchorConfig(
  num_layers=2, width=8, num_heads=2, head_dim=6, mlp_width=12, vocab_size=19, dtype="float32", rope_base=100.0
)
MEMORY = MemoryConfig(rows=(3, 0, 2), branching=3)
MODEL = ModelConfig(anchor=ANCHOR, memory=MEMORY)
GENERIC = MEMORY.num_leaves


def fetch(bank, leaf):
  """Rows of the leaves, by table."""
  return {name: gather_rows(bank[name], index) for name, index in row_indices(leaf, MEMORY).items()}


@pytest.fixture(scope="module")
def bank():
  """Tables of random numbers, M3 included."""
  rng = np.random.default_rng(0)
  shapes = table_shapes(MODEL)
  return {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}


def test_levels_without_rows_have_no_table():
  assert table_shapes(MODEL) == {"level_1": (3 + 1, 3 * 2 * 3 * 8), "level_3": (27 + 1, 2 * 2 * 3 * 8)}
  assert GENERIC_ROWS == 1


def test_row_indices_are_the_ancestors():
  """The tree is walked from the root, numbering the children of node n as n * branching + child."""
  path_of = {}
  for first in range(3):
    for second in range(3):
      for third in range(3):
        path_of[(first * 3 + second) * 3 + third] = (first, first * 3 + second, (first * 3 + second) * 3 + third)
  leaves = np.arange(MEMORY.num_leaves, dtype=np.int32)
  result = row_indices(leaves, MEMORY)
  assert result.keys() == {"level_1", "level_3"}
  np.testing.assert_array_equal(result["level_1"], [path_of[leaf][0] for leaf in leaves])
  np.testing.assert_array_equal(result["level_3"], [path_of[leaf][2] for leaf in leaves])


def test_generic_is_the_last_row_and_no_memory_is_past_the_end():
  result = row_indices(np.array([GENERIC, NO_MEMORY, -7], np.int32), MEMORY)
  for name, (rows, _) in table_shapes(MODEL).items():
    np.testing.assert_array_equal(result[name], [rows - 1, rows, rows])


def test_gather_fills_no_memory_with_zeros(bank):
  leaf = np.array([5, NO_MEMORY, GENERIC, 26, 5], np.int32)
  rows = fetch(bank, leaf)
  zeros = {name: np.zeros(table.shape[1], np.float32) for name, table in bank.items()}
  expected_1 = [bank["level_1"][0], zeros["level_1"], bank["level_1"][-1], bank["level_1"][2], bank["level_1"][0]]
  expected_3 = [bank["level_3"][5], zeros["level_3"], bank["level_3"][-1], bank["level_3"][26], bank["level_3"][5]]
  np.testing.assert_array_equal(rows["level_1"], expected_1)
  np.testing.assert_array_equal(rows["level_3"], expected_3)


@pytest.mark.parametrize("table_rows", [4, 6, 40])
def test_sum_of_rows_by_brute_force(table_rows):
  """Duplicates add up and indices past the end are dropped, with fewer, as many and more rows in the table than given."""
  rng = np.random.default_rng(table_rows)
  index = np.array([2, 3, 2, table_rows, 0, 2], np.int32)
  rows = rng.standard_normal((6, 5)).astype(np.float32)
  gradient = jax.jit(sum_rows, static_argnums=2)(index, rows, table_rows)
  named = np.asarray(gradient.indices) < table_rows
  assert len(set(np.asarray(gradient.indices).tolist())) == len(gradient.indices) == min(6, table_rows)
  assert sorted(np.asarray(gradient.indices)[named]) == [0, 2, 3]
  np.testing.assert_array_equal(np.asarray(gradient.value)[~named], 0)
  for row, value in zip(np.asarray(gradient.indices)[named], np.asarray(gradient.value)[named]):
    np.testing.assert_allclose(value, rows[index == row].sum(axis=0), rtol=1e-6)


def test_sum_of_bfloat16_rows_is_float32():
  """1 + 1/256 has no bfloat16; four of them add up in float32."""
  rows = jnp.array([[1.0], [1 / 256], [1 / 256], [1 / 256]], jnp.bfloat16)
  gradient = sum_rows(jnp.zeros(4, jnp.int32), rows, 9)
  assert float(gradient.value.max()) == 1 + 3 / 256


def test_block_to_rows_is_the_inverse(bank):
  rows = fetch(bank, np.array([7, GENERIC, 0], np.int32))
  back = block_to_rows(rows_to_block(rows, MODEL), MODEL)
  jax.tree.map(np.testing.assert_array_equal, back, rows)


def test_block_is_the_row_laid_out_by_neuron_layer_and_matrix(bank):
  """Every number of the block against its index in the flat row."""
  leaf = np.array([7, GENERIC], np.int32)
  block = rows_to_block(fetch(bank, leaf), MODEL)
  tables = [(bank["level_1"], 3, [0, 3]), (bank["level_3"], 2, [7, 27])]
  for matrix, leaves in enumerate(block.vectors.values()):
    assert leaves.shape == (2, 2, 5, 8)
    for sequence in range(2):
      for layer in range(2):
        expected = []
        for table, neurons, row in tables:
          for neuron in range(neurons):
            start = ((neuron * 2 + layer) * 3 + matrix) * 8
            expected.append(table[row[sequence], start : start + 8])
        np.testing.assert_array_equal(leaves[sequence, layer], expected)


def test_fresh_bank_statistics():
  """M1 and M2 truncated normal with sigma 1/sqrt(D), cut at 3 sigma; M3 zero; the generic row like the others."""
  anchor = AnchorConfig(num_layers=3, width=64, num_heads=1, head_dim=2, mlp_width=1, vocab_size=2)
  memory = MemoryConfig(rows=(16, 4), branching=4)
  fresh = jax.jit(init_bank, static_argnums=1)(jax.random.key(0), ModelConfig(anchor=anchor, memory=memory))
  sigma = 64**-0.5
  for level, neurons in ((1, 16), (2, 4)):
    table = np.asarray(fresh[f"level_{level}"]).reshape(4**level + 1, neurons, 3, 3, 64)
    np.testing.assert_array_equal(table[:, :, :, 2], 0)
    m12 = table[:, :, :, :2]
    assert 2.7 * sigma < np.abs(m12).max() <= 3 * sigma
    assert abs(m12.mean()) < 0.02 * sigma
    np.testing.assert_allclose(m12.std(), 0.98658 * sigma, rtol=0.02)  # of a normal cut at 3 sigma
    np.testing.assert_allclose(m12[-1].std(), 0.98658 * sigma, rtol=0.05)
    assert len(np.unique(m12)) > 0.99 * m12.size  # no two rows alike


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_bank_changes_no_bit(dtype, random_anchor):
  config = AnchorConfig(
    num_layers=2, width=16, num_heads=2, head_dim=6, mlp_width=24, vocab_size=37, dtype=dtype, rope_base=100.0
  )
  params = random_anchor(config)
  fresh = jax.jit(init_bank, static_argnums=1)(jax.random.key(1), ModelConfig(anchor=config, memory=MEMORY))
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 37, (4, 12)).astype(np.int32)
  segments, positions = np.ones_like(tokens), np.tile(np.arange(12, dtype=np.int32), (4, 1))
  leaf = np.array([0, 13, GENERIC, NO_MEMORY], np.int32)
  block = rows_to_block(fetch(fresh, leaf), ModelConfig(anchor=config, memory=MEMORY))
  assert np.abs(block.vectors["m1"][:3]).max() > 0
  apply = jax.jit(functools.partial(Anchor(config).apply, {"params": params}))
  with_memory = np.asarray(apply(tokens, segments, positions, block))
  np.testing.assert_array_equal(
    with_memory.view(np.int32), np.asarray(apply(tokens, segments, positions)).view(np.int32)
  )


def test_each_sequence_uses_its_own_block(bank, random_anchor):
  """A batch equals its sequences one by one, and no memory equals the anchor alone."""
  params = random_anchor(ANCHOR)
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 19, (3, 7)).astype(np.int32)
  segments, positions = np.ones_like(tokens), np.tile(np.arange(7, dtype=np.int32), (3, 1))
  leaf = np.array([2, GENERIC, NO_MEMORY], np.int32)
  block = rows_to_block(fetch(bank, leaf), MODEL)
  apply = jax.jit(functools.partial(Anchor(ANCHOR).apply, {"params": params}))
  together = apply(tokens, segments, positions, block)
  alone = np.asarray(apply(tokens, segments, positions))
  for row in range(3):
    own = jax.tree.map(lambda leaf: leaf[row : row + 1], block)  # noqa: B023
    single = apply(tokens[row : row + 1], segments[row : row + 1], positions[row : row + 1], own)
    np.testing.assert_allclose(together[row], single[0], atol=1e-5)
  np.testing.assert_array_equal(together[2], alone[2])
  assert jnp.abs(together[:2] - alone[:2]).max() > 0.1
