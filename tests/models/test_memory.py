"""Every kind of memory: the paper's sizes, no effect at first, and what it adds against plain weights and numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.models import GENERIC_ROWS, Anchor, AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.anchor import Attention
from hiermem_jax.models.bank import block_to_rows, init_bank, rows_to_block, table_shapes
from hiermem_jax.models.memory import KINDS, Block
from hiermem_jax.models.rope import rope_angles

A1 = AnchorConfig(num_layers=35, width=512, num_heads=12, head_dim=32, mlp_width=2048, tied_embeddings=True)
ANCHOR = AnchorConfig(
  num_layers=4, width=16, num_heads=3, head_dim=4, mlp_width=24, vocab_size=29, dtype="float32", rope_base=100.0
)
SEGMENTS = np.ones((2, 9), np.int32)
POSITIONS = np.tile(np.arange(9, dtype=np.int32), (2, 1))
TOKENS = np.random.default_rng(0).integers(0, 29, (2, 9)).astype(np.int32)


def logits(params, block=None, config=ANCHOR):
  return jax.jit(functools.partial(Anchor(config).apply, {"params": params}))(TOKENS, SEGMENTS, POSITIONS, block)


def random_block(memory, config=ANCHOR, seed=1, scale=0.3):
  rng = np.random.default_rng(seed)
  shapes = table_shapes(ModelConfig(anchor=config, memory=memory))
  rows = {name: jnp.asarray(scale * rng.standard_normal((2, size)), jnp.float32) for name, (_, size) in shapes.items()}
  return rows_to_block(rows, ModelConfig(anchor=config, memory=memory))


# Appendix I, with r units: FFN 3rLD; LoRA QK and VO 2rL(D + NH), FFN 3rL(D + F); KV 2rL NH.
@pytest.mark.parametrize(
  ("kind", "fetched"),
  [
    ("ffn", 3 * 64 * 35 * 512),
    ("lora_qk", 2 * 64 * 35 * (512 + 384)),
    ("lora_vo", 2 * 64 * 35 * (512 + 384)),
    ("lora_ffn", 3 * 64 * 35 * (512 + 2048)),
    ("kv", 2 * 64 * 35 * 384),
  ],
)
def test_sizes_are_the_papers(kind, fetched):
  memory = MemoryConfig(rows=(0, 64, 0, 0), kind=kind)
  assert ModelConfig(anchor=A1, memory=memory).fetched_params == fetched
  assert ModelConfig(anchor=A1, memory=memory).bank_params == 256 * fetched
  assert table_shapes(ModelConfig(anchor=A1, memory=memory)) == {"level_2": (256 + GENERIC_ROWS, fetched)}
  bank = jax.eval_shape(lambda key: init_bank(key, ModelConfig(anchor=A1, memory=memory)), jax.random.key(0))
  assert bank["level_2"].shape == (257, fetched)


@pytest.mark.parametrize(("kind", "layers"), [*((kind, None) for kind in KINDS), ("ffn", "last 2"), ("kv", (0, 3))])
def test_fresh_memory_changes_no_bit_and_gets_gradient(kind, layers, random_anchor):
  memory = MemoryConfig(rows=(3, 2), branching=2, kind=kind, layers=layers)
  params = random_anchor(ANCHOR)
  bank = jax.jit(init_bank, static_argnums=1)(jax.random.key(0), ModelConfig(anchor=ANCHOR, memory=memory))
  rows = {name: table[:2] for name, table in bank.items()}
  block = rows_to_block(rows, ModelConfig(anchor=ANCHOR, memory=memory))
  assert all(np.abs(np.asarray(rows[name])).max() > 0 for name in rows)
  alone, fresh = np.asarray(logits(params)), np.asarray(logits(params, block))
  np.testing.assert_array_equal(fresh.view(np.int32), alone.view(np.int32))

  def loss(rows):
    result = Anchor(ANCHOR).apply(
      {"params": params}, TOKENS, SEGMENTS, POSITIONS, rows_to_block(rows, ModelConfig(anchor=ANCHOR, memory=memory))
    )
    return jax.nn.log_softmax(result)[..., 0].sum()

  for gradient in jax.jit(jax.grad(loss))(rows).values():
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("kind", ["lora_qk", "lora_vo", "lora_ffn"])
def test_lora_is_w_plus_2ba(kind, random_anchor):
  """One sequence's block merged into the anchor's weights."""
  params = random_anchor(ANCHOR)
  block = random_block(MemoryConfig(rows=(3, 2), branching=2, kind=kind))
  adapted = logits(params, block)
  for sequence in range(2):
    merged = jax.tree.map(np.array, params)
    for name in KINDS[kind].adds:
      part = "feed_forward" if name.startswith("w") else "attention"
      a, b = (np.asarray(block.vectors[f"{name}_{side}"][sequence], np.float64) for side in "ab")
      merged["layers"][part][name]["kernel"] += 2 * np.einsum("lri,lro->lio", a, b)
    np.testing.assert_allclose(adapted[sequence], logits(merged)[sequence], atol=2e-4)
  assert np.abs(adapted - logits(params)).max() > 0.1


def test_kv_has_a_softmax_of_its_own_without_positions(random_anchor):
  """Attention of one layer, head by head in float64."""
  weights = jax.tree.map(lambda x: x[1], random_anchor(ANCHOR)["layers"]["attention"])
  rng = np.random.default_rng(3)
  x = rng.standard_normal((1, 9, 16)).astype(np.float32)
  vectors = {name: rng.standard_normal((1, 5, 12)).astype(np.float32) for name in ("key", "value")}
  apply = jax.jit(Attention(ANCHOR).apply)

  def run(block, positions):
    angles = rope_angles(positions, ANCHOR.head_dim, ANCHOR.rope_base)
    return apply({"params": weights}, x, block, None, SEGMENTS[:1], positions, angles, None, jnp.int32(1))[0]

  block = Block(vectors, KINDS["kv"])
  difference = np.asarray(run(block, POSITIONS[:1]) - run(None, POSITIONS[:1]), np.float64)
  flat = np.asarray(x[0] @ weights["query"]["kernel"], np.float64)
  flat -= flat.mean(axis=-1, keepdims=True)
  flat = flat / np.sqrt((flat**2).mean(axis=-1, keepdims=True) + 1e-5) * weights["query_norm"]["norm"]["scale"]
  added = []
  for head in range(3):
    own = slice(head * 4, head * 4 + 4)
    scores = flat[:, own] @ vectors["key"][0][:, own].T / 2
    share = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    added.append(share @ vectors["value"][0][:, own])
  expected = np.concatenate(added, axis=1) @ np.asarray(weights["out"]["kernel"], np.float64)
  np.testing.assert_allclose(difference[0], expected, atol=1e-4)
  shifted = np.asarray(run(block, POSITIONS[:1] + 7) - run(None, POSITIONS[:1] + 7))
  np.testing.assert_allclose(shifted[0], expected, atol=1e-4)


@pytest.mark.parametrize(
  ("layers", "numbers"),
  [
    ("first 2", (0, 1)),
    ("middle 2", (1, 2)),
    ("last 2", (2, 3)),
    ("middle 1", (1,)),
    ("last 4", (0, 1, 2, 3)),
    ((1,), (1,)),
  ],
)
def test_names_of_layers(layers, numbers):
  assert (
    ModelConfig(anchor=ANCHOR, memory=MemoryConfig(rows=(4, 2), branching=2, layers=layers)).memory_layers == numbers
  )


@pytest.mark.parametrize(("kind", "layers"), [*((kind, (0, 3)) for kind in KINDS), ("ffn", "last 2"), ("ffn", (1,))])
def test_placement_is_a_block_that_is_zero_elsewhere(kind, layers, random_anchor):
  """Same total; the chosen layers have more units each, the others as if they had units of zeros."""
  params = random_anchor(ANCHOR)
  placed = MemoryConfig(rows=(4, 2), branching=2, kind=kind, layers=layers)
  everywhere = dataclasses.replace(placed, layers=None)
  numbers = ModelConfig(anchor=ANCHOR, memory=placed).memory_layers
  assert table_shapes(ModelConfig(anchor=ANCHOR, memory=placed)) == table_shapes(
    ModelConfig(anchor=ANCHOR, memory=everywhere)
  )
  block = random_block(placed)
  for vector in block.vectors.values():
    assert vector.shape[:3] == (2, len(numbers), 6 * 4 // len(numbers))
  spread = {}
  for name, vector in block.vectors.items():
    spread[name] = np.zeros((2, 4, *vector.shape[2:]), np.float32)
    spread[name][:, list(numbers)] = vector
  np.testing.assert_allclose(logits(params, block), logits(params, Block(spread, KINDS[kind])), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_blocks_are_inverses(kind):
  memory = MemoryConfig(rows=(4, 0, 2), branching=2, kind=kind, layers="first 2")
  rng = np.random.default_rng(0)
  rows = {name: jnp.asarray(rng.standard_normal((3, size)), jnp.float32)
          for name, (_, size) in table_shapes(ModelConfig(anchor=ANCHOR, memory=memory)).items()}  # fmt: skip
  model = ModelConfig(anchor=ANCHOR, memory=memory)
  block = rows_to_block(rows, model)
  assert block.layers == (0, 1) and block.kind is KINDS[kind]
  back = block_to_rows(block, model)
  assert back.keys() == rows.keys()
  for name, values in rows.items():
    np.testing.assert_array_equal(back[name], values)


def test_a_block_of_all_layers_names_none():
  model = ModelConfig(anchor=ANCHOR, memory=MemoryConfig(rows=(4, 2), branching=2))
  rows = {name: jnp.zeros((3, size)) for name, (_, size) in table_shapes(model).items()}
  assert rows_to_block(rows, model).layers is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_crosses_jit_and_its_arrays_are_its_vectors_alone(kind):
  """What the vectors mean is static: transformations of arrays see nothing else, and leave it as it is."""
  memory = MemoryConfig(rows=(4, 0, 2), branching=2, kind=kind, layers="first 2")
  block = random_block(memory, ANCHOR)
  assert len(jax.tree.leaves(block)) == len(block.vectors)
  doubled = jax.jit(lambda block: jax.tree.map(lambda x: 2 * x, block))(block)
  assert doubled.kind is KINDS[kind] and doubled.layers == (0, 1)
  for name, vector in block.vectors.items():
    np.testing.assert_array_equal(doubled.vectors[name], 2 * vector)


def test_kaiming_uniform_and_truncated_normal():
  anchor = dataclasses.replace(ANCHOR, width=64)
  for kind, name, bound, std in (
    ("lora_qk", "query_a", 64**-0.5, 64**-0.5 / 3**0.5),
    ("kv", "key", 3 * 64**-0.5, 0.98658 * 64**-0.5),
  ):
    memory = MemoryConfig(rows=(64,), branching=4, kind=kind)
    bank = init_bank(jax.random.key(0), ModelConfig(anchor=anchor, memory=memory))
    block = rows_to_block(bank, ModelConfig(anchor=anchor, memory=memory))
    assert 0.9 * bound < np.abs(block.vectors[name]).max() <= bound
    np.testing.assert_allclose(np.std(block.vectors[name]), std, rtol=0.02)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"kind": "moe"}, "MemoryConfig.kind = 'moe': bind one of ffn, lora_qk"),
    ({"layers": "top 3"}, "MemoryConfig.layers = 'top 3': bind 'first 10'"),
    ({"layers": (3, 1)}, "ascending numbers"),
    ({"layers": ()}, "ascending numbers"),
    ({"layers": (2, 4)}, "the anchor has layers 0 to 3"),
    ({"layers": "first 5"}, "the anchor has layers 0 to 3"),
    ({"layers": "last 3"}, "cannot be shared by 3 layers evenly"),
  ],
)
def test_bad_kinds_and_layers_are_named(settings, message):
  with pytest.raises(InputError, match=message):
    ModelConfig(anchor=ANCHOR, memory=MemoryConfig(rows=(4, 2), branching=2, **settings))


def test_table_9():
  """Ten of 35 layers have 224 neurons each where all would have 64 (Appendix F)."""
  for layers in ("first 10", "middle 10", "last 10"):
    memory = MemoryConfig(rows=(0, 64, 0, 0), layers=layers)
    assert ModelConfig(anchor=A1, memory=memory).fetched_params == 64 * 53_760
    rows = {"level_2": jax.ShapeDtypeStruct((1, 64 * 53_760), jnp.float32)}
    block = jax.eval_shape(lambda rows: rows_to_block(rows, ModelConfig(anchor=A1, memory=memory)), rows)  # noqa: B023
    assert block.vectors["m1"].shape == (1, 10, 224, 512)
