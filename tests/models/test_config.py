"""Configurations: what they refuse, and their arithmetic against the shapes that are really created."""

import dataclasses
import json
import math

import jax
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.models.anchor import init_anchor
from hiermem_jax.models.bank import init_bank
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig

TINY = AnchorConfig(num_layers=2, width=10, num_heads=3, head_dim=4, mlp_width=14, vocab_size=23)


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_anchor_params_equal_initialised_tree(tied, qk_norm, norm):
  config = dataclasses.replace(TINY, tied_embeddings=tied, qk_norm=qk_norm, norm=norm)
  assert count(jax.eval_shape(lambda key: init_anchor(key, config), jax.random.key(0))) == config.params


@pytest.mark.parametrize(
  "config",
  [
    AnchorConfig(num_layers=35, width=512, num_heads=12, head_dim=32, mlp_width=2048, tied_embeddings=True),
    AnchorConfig(num_layers=24, width=1024, num_heads=16, head_dim=64, mlp_width=2816),
    AnchorConfig(num_layers=24, width=2048, num_heads=16, head_dim=128, mlp_width=5632),
  ],
  ids=["160M", "410M", "1.4B"],
)
def test_published_anchors_have_their_params(config):
  assert count(jax.eval_shape(lambda key: init_anchor(key, config), jax.random.key(0))) == config.params


def test_bank_params_equal_initialised_tables_without_the_generic_memory():
  memory = MemoryConfig(rows=(4, 0, 1), branching=3)
  bank = jax.eval_shape(lambda key: init_bank(key, ModelConfig(anchor=TINY, memory=memory)), jax.random.key(0))
  assert (
    sum((rows - 1) * row for rows, row in (table.shape for table in bank.values()))
    == ModelConfig(anchor=TINY, memory=memory).bank_params
  )
  assert sum(table.shape[1] for table in bank.values()) == ModelConfig(anchor=TINY, memory=memory).fetched_params


@pytest.mark.parametrize("longer", [{"mlp_width": 15}, {"num_layers": 3}, {"vocab_size": 24}])
def test_anchor_flops_grow_by_two_per_weight(longer):
  """Without attention's own part; tied, so that every weight is used in exactly one matmul; norms are no matmuls."""
  small = dataclasses.replace(TINY, tied_embeddings=True)
  large = dataclasses.replace(small, **longer)

  def norms(config):
    return config.num_layers * (2 * config.width + 2 * config.attention_width) + config.width

  weights = (large.params - norms(large)) - (small.params - norms(small))
  assert large.flops_per_token(0) - small.flops_per_token(0) == 2 * weights


def test_attention_flops_by_counting_pairs():
  """Two dot products per head and visible position; half of the context on average."""
  context, pairs = 1000, 0
  for position in range(context):
    pairs += position + 0.5  # a context of n positions: n**2 / 2 pairs
  per_pair = TINY.num_layers * TINY.num_heads * 2 * (2 * TINY.head_dim)
  assert (TINY.flops_per_token(context) - TINY.flops_per_token(0)) * context == pairs * per_pair


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("num_layers", 0),
    ("width", -1),
    ("num_heads", 0),
    ("head_dim", 0),
    ("head_dim", 3),
    ("mlp_width", 0),
    ("vocab_size", 0),
    ("norm_eps", 0.0),
    ("rope_base", 0.0),
  ],
)
def test_impossible_anchors(field, value):
  with pytest.raises(InputError, match=rf"AnchorConfig\.{field} = {value}") as info:
    dataclasses.replace(TINY, **{field: value})
  assert "\n" not in str(info.value)


@pytest.mark.parametrize("rows", [(), (0, 0), (2, -1)])
def test_impossible_rows(rows):
  with pytest.raises(InputError, match=r"MemoryConfig\.rows"):
    MemoryConfig(rows=rows)


@pytest.mark.parametrize("branching", [1, 0, -16])
def test_impossible_branching(branching):
  with pytest.raises(InputError, match=r"MemoryConfig\.branching"):
    MemoryConfig(rows=(1,), branching=branching)


@pytest.mark.parametrize("part", ["all", "generic", 0, 1, 2])
def test_the_clusters_of_a_part_are_those_below_its_level_1_cluster(part):
  memory = MemoryConfig(rows=(4, 2, 1), branching=3, part=part)
  for level in (1, 2, 3):
    whole = range(3**level)
    # A cluster's ancestor at level 1 is its number divided by 3 once for each level between.
    wanted = {"all": list(whole), "generic": []}.get(part, [c for c in whole if c // 3 ** (level - 1) == part])
    first = memory.first_cluster(level)
    assert list(range(first, first + memory.clusters(level))) == wanted
  assert memory.first_cluster(2) == {1: 3, 2: 6}.get(part, 0)


@pytest.mark.parametrize("part", [-1, 3, "half"])
def test_parts_that_do_not_exist(part):
  with pytest.raises(InputError, match="bind 'all', 'generic' or a level-1 cluster, 0 to 2"):
    MemoryConfig(rows=(4, 2), branching=3, part=part)


@pytest.mark.parametrize("remat", [("attention", "w3"), ("w1", "w1@host"), (), ("attention@disk",)])
def test_points_that_no_layer_has(remat):
  with pytest.raises(InputError, match="a tuple of points, each once: query, key, value, attention, out, w1, w2"):
    dataclasses.replace(TINY, remat=remat)


def test_named_points_survive_a_checkpoint():
  model = ModelConfig(anchor=dataclasses.replace(TINY, remat=("attention", "w1@host")))
  assert ModelConfig.from_json(json.loads(json.dumps(model.to_json()))) == model
