"""Greedy generation with a key/value cache; the memory is fetched once, for the prompt (paper, Section 3)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from hiermem_jax.models.anchor import Anchor, KVCache
from hiermem_jax.models.config import ModelConfig
from hiermem_jax.parallel import batch_sharding, with_fetched_block
from hiermem_jax.parallel.mesh import BATCH_AXES, DEFAULT_RULES, Rules


def make_greedy(
  config: ModelConfig, mesh: Mesh, max_new_tokens: int, rules: Rules = DEFAULT_RULES
) -> Callable[[dict[str, Any], dict[str, jax.Array], jax.Array], jax.Array]:
  """Builds the greedy continuation of a batch of prompts (not yet jitted).

  Prompts of one batch may differ in length. Position `length` of a sequence is the first that is generated, so the keys
  and values of what stands behind a shorter prompt are overwritten before they are read. With G = max_new_tokens:

    1. the blocks of the leaf ids                             vectors [B, L, R, width]
    2. the prompts through the decoder, filling the cache     hidden [B, S, D]; keys, values [L, B, S + G, N, H]
    3. the most likely token after each prompt's last one     int32 [B]
    4. up to G - 1 times, until every sequence has had a stop token: the last tokens through the decoder with the
       cache, and the most likely tokens after them           hidden [B, 1, D], int32 [B]

  Args:
    config: shapes of the anchor and of the memory.
    mesh: the mesh.
    max_new_tokens: G, how many tokens are generated at most.
    rules: how arrays are laid out on the mesh.

  Returns:
    greedy(params, prompts, stop) -> int32 [B, G]. `prompts` has `tokens` int32 [B, S] (decoder inputs: the
    begin-of-document input, then the prompt, then padding), `length` int32 [B] (inputs that are not padding, at least
    1) and `memory_leaf` int32 [B]. `stop` int32 [n] are the tokens that end a continuation. What follows a sequence's
    first stop token is arbitrary.
  """
  anchor = config.anchor

  def local(params, block, prompts, stop):
    model, variables = Anchor(anchor), {"params": params}
    tokens, length = prompts["tokens"], prompts["length"]
    size, prompt_length = tokens.shape
    shape = (anchor.num_layers, size, prompt_length + max_new_tokens, anchor.num_heads, anchor.head_dim)
    cache = KVCache(jnp.zeros(shape, anchor.dtype), jnp.zeros(shape, anchor.dtype))

    def decode(tokens, positions, cache):
      return model.apply(variables, tokens, positions, cache, block, method="decode")

    def best(hidden, head):
      return jnp.argmax((hidden @ head).astype(jnp.float32), axis=-1).astype(jnp.int32)

    positions = jnp.broadcast_to(jnp.arange(prompt_length), tokens.shape)
    hidden, head, cache = decode(tokens, positions, cache)
    token = best(hidden[jnp.arange(size), length - 1], head)
    generated = jnp.zeros((size, max_new_tokens), jnp.int32).at[:, 0].set(token)

    def ended(token):
      return (token[:, None] == stop).any(axis=-1)

    def unfinished(state):
      count, done, *_ = state
      # All devices go on together: each step gathers weights from all of them.
      return (count < max_new_tokens) & (jax.lax.pmin(done.all().astype(jnp.int32), BATCH_AXES) == 0)

    def step(state):
      count, done, token, generated, cache = state
      hidden, head, cache = decode(token[:, None], (length + count - 1)[:, None], cache)
      token = best(hidden[:, 0], head)
      return count + 1, done | ended(token), token, generated.at[:, count].set(token), cache

    state = (jnp.int32(1), ended(token), token, generated, cache)
    return jax.lax.while_loop(unfinished, step, state)[3]

  by_sequence = batch_sharding(mesh).spec
  run = with_fetched_block(local, config, mesh, rules, out_specs=by_sequence, more_specs=(PartitionSpec(),))
  return lambda params, prompts, stop: run(params, prompts["memory_leaf"], prompts, stop)
