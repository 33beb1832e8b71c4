"""Greedy generation with the cache, against whole forward passes, token by token."""

import functools

import jax
import numpy as np
import pytest

from hiermem_jax.inference import make_greedy
from hiermem_jax.models import Anchor
from hiermem_jax.models.bank import gather_rows, row_indices, rows_to_block, table_shapes
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.parallel import make_mesh

SIZE = {"num_layers": 2, "width": 8, "num_heads": 2, "head_dim": 4, "mlp_width": 12, "vocab_size": 9}
ANCHOR = AnchorConfig(**SIZE, dtype="float32", tied_embeddings=True, rope_base=100.0)
CONFIG = ModelConfig(anchor=ANCHOR, memory=MemoryConfig(rows=(2, 1), branching=2))
MESH = make_mesh(devices=jax.devices()[:1])
NEW, PROMPTS, LEAF = 6, ((3,), (3, 1, 4, 1), (3, 5, 2), (3, 5, 2)), (0, 3, -1, 4)


@pytest.fixture(scope="module")
def params(random_anchor):
  rng = np.random.default_rng(0)
  bank = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in table_shapes(CONFIG).items()}
  anchor = random_anchor(ANCHOR)
  anchor["embed"]["embedding"] *= 3  # confident
  return jax.tree.map(jax.numpy.asarray, {"anchor": anchor, "bank": bank})


@pytest.fixture(scope="module")
def greedy():
  return jax.jit(make_greedy(CONFIG, MESH, NEW))


def batch(prompts, leaf, padding):
  tokens = np.array([[*prompt, *[padding] * (4 - len(prompt))] for prompt in prompts], np.int32)
  return {
    "tokens": tokens,
    "length": np.array(list(map(len, prompts)), np.int32),
    "memory_leaf": np.array(leaf, np.int32),
  }


@pytest.fixture(scope="module")
def expected(params):
  """Continuations by a forward pass of the whole text so far for each token; without padding or cache."""
  apply = jax.jit(functools.partial(Anchor(ANCHOR).apply, {"params": params["anchor"]}))
  result = []
  for prompt, leaf in zip(PROMPTS, LEAF):
    indices = row_indices(np.array([leaf], np.int32), CONFIG.memory)
    block = rows_to_block({name: gather_rows(table, indices[name]) for name, table in params["bank"].items()}, CONFIG)
    tokens = np.zeros((1, 4 + NEW), np.int32)
    tokens[0, : len(prompt)] = prompt
    for end in range(len(prompt), len(prompt) + NEW):
      segments = (np.arange(tokens.shape[1]) < end).astype(np.int32)[None]
      logits = apply(tokens, segments, np.arange(tokens.shape[1], dtype=np.int32)[None] * segments, block)
      tokens[0, end] = logits[0, end - 1].argmax()
    result.append(tokens[0, len(prompt) : len(prompt) + NEW].tolist())
  return result


def test_every_token_is_the_most_likely_one(greedy, params, expected):
  found = greedy(params, batch(PROMPTS, LEAF, padding=0), np.zeros(0, np.int32))
  assert found.shape == (4, NEW) and found.dtype == np.int32
  assert found.tolist() == expected
  assert len({tuple(tokens) for tokens in expected}) == 4  # equal prompts with other memory go on in another way


def test_what_stands_behind_a_short_prompt_is_not_read(greedy, params, expected):
  found = greedy(params, batch(PROMPTS, LEAF, padding=7), np.zeros(0, np.int32))
  assert found.tolist() == expected


def test_generation_ends_when_every_sequence_has_had_a_stop_token(greedy, params, expected):
  """Up to its first stop token each continuation is what it was; what nobody waits for is not computed."""
  stop = next(token for token in range(9) if all(token in tokens[:-1] for tokens in expected[:2]))
  found = np.asarray(greedy(params, batch(PROMPTS[:2], LEAF[:2], padding=0), np.array([stop, 100], np.int32)))
  ends = [tokens.index(stop) for tokens in expected[:2]]
  for tokens, whole, end in zip(found.tolist(), expected, ends):
    assert tokens[: end + 1] == whole[: end + 1]
  assert ends[0] != ends[1]
  assert not found[:, max(ends) + 1 :].any()


def test_without_memory(params, expected):
  """A model without a bank goes on as one with a bank does when nothing is fetched."""
  alone = jax.jit(make_greedy(ModelConfig(anchor=ANCHOR), MESH, NEW))
  found = alone({"anchor": params["anchor"]}, batch(PROMPTS[2:3], (0,), padding=0), np.zeros(0, np.int32))
  assert found.tolist() == expected[2:3]
