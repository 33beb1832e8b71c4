"""Scoring: log-likelihood and greedy agreement of target tokens, under a chosen memory."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hiermem_jax.models.bank import NO_MEMORY
from hiermem_jax.models.config import MemoryConfig
from hiermem_jax.parallel import batch_parallel, batch_sharding, batch_shards, fetch, local_rows, place_batch
from hiermem_jax.parallel.mesh import DEFAULT_RULES, Rules
from hiermem_jax.training.checkpoint import Model
from hiermem_jax.training.state import anchor_specs
from hiermem_jax.training.step import apply_anchor, token_losses

MODES = ("none", "generic", "fetched", "wrong")
_LENGTH_BUCKET = 16  # prompts are padded to multiples of this, so that few shapes are compiled


def mode_leaves(mode: str, leaf: np.ndarray, memory: MemoryConfig, seed: int = 0) -> np.ndarray:
  """Leaf ids int32 [n] to use in a mode, given the retrieved ones.

  none: no memory. generic: the context-independent memory. fetched: as retrieved. wrong: the leaf at
  the same place in a random other level-1 subtree, so that no level is the retrieved one.
  """
  if mode == "none":
    return np.full_like(leaf, NO_MEMORY)
  if mode == "generic":
    return np.full_like(leaf, memory.num_leaves)
  if mode == "fetched":
    return leaf
  if mode == "wrong":
    subtree = memory.num_leaves // memory.branching
    subtrees = np.random.default_rng(seed).integers(1, memory.branching, size=leaf.shape)
    return ((leaf + subtrees * subtree) % memory.num_leaves).astype(leaf.dtype)
  raise ValueError(f"unknown memory mode {mode!r}; one of {MODES}")


class Scorer:
  """A model on a mesh, ready to score batches; compiled once per shape."""

  def __init__(
    self, model: Model, mesh: Mesh, batch_size: int = 64, *, bos_id: int = 0, rules: Rules = DEFAULT_RULES
  ):
    self.model = model
    self.bos_id = bos_id
    self.batch_size = -(-batch_size // batch_shards(mesh)) * batch_shards(mesh)
    self._mesh, self._rows = mesh, local_rows(mesh, self.batch_size)
    by_sequence = batch_sharding(mesh).spec

    def score_local(params, block, batch):
      logits = apply_anchor(model.anchor, params, batch, block)
      losses, _ = token_losses(logits, batch)
      weights = batch["decoder_loss_weights"]
      agrees = (jnp.argmax(logits, axis=-1) == batch["decoder_target_tokens"]) | (weights == 0)
      return (losses * weights).sum(axis=-1), weights.sum(axis=-1), agrees.all(axis=-1)

    specs = (anchor_specs(model.anchor, rules), by_sequence, by_sequence)
    score_fn = batch_parallel(score_local, mesh, rules, in_specs=specs, out_specs=by_sequence)

    def score(params, batch):
      block = None
      if model.memory is not None:
        block = fetch(params["bank"], batch["memory_leaf"], model.memory, model.anchor, mesh)
      return score_fn(params["anchor"], block, batch)

    self._score = jax.jit(score, out_shardings=NamedSharding(mesh, PartitionSpec()))  # every process reads them

  def score_batch(self, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores a batch of at most `batch_size` sequences (the contract of the data room, arrays [B, S]).

    Every process gives the whole batch.

    Returns:
      Per sequence: summed negative log-likelihood of the weighted tokens (nats, float32 [B]), their number
      (float32 [B]), and whether greedy decoding would produce all of them (bool [B]).
    """
    size = len(batch["memory_leaf"])
    missing = self.batch_size - size
    padded = {name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for name, array in batch.items()}
    local = {name: array[self._rows] for name, array in padded.items()}
    outputs = self._score(self.model.params, place_batch(local, self._mesh))
    return tuple(np.asarray(output)[:size] for output in outputs)

  def score_continuations(
    self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], leaf: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Scores token continuations of token prompts, one document each.

    Args:
      prompts: n token lists, without the begin-of-document input.
      continuations: n non-empty token lists.
      leaf: int32 [n] leaf ids.

    Returns:
      Log-likelihood of each continuation (nats, float32 [n]) and whether greedy decoding of its length gives exactly it
      (bool [n]).
    """
    lengths = np.array([len(p) + len(c) for p, c in zip(prompts, continuations)])
    log_likelihood, greedy = np.zeros(len(prompts), np.float32), np.zeros(len(prompts), bool)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), self.batch_size):
      chosen = order[start : start + self.batch_size]
      length = -(-lengths[chosen].max() // _LENGTH_BUCKET) * _LENGTH_BUCKET
      pairs = [(prompts[i], continuations[i]) for i in chosen]
      losses, _, agrees = self.score_batch(_prompt_batch(pairs, leaf[chosen], length, self.bos_id))
      log_likelihood[chosen], greedy[chosen] = -losses, agrees
    return log_likelihood, greedy


def _prompt_batch(
  pairs: Sequence[tuple[Sequence[int], Sequence[int]]], leaf: np.ndarray, length: int, bos_id: int
) -> dict[str, np.ndarray]:
  """One document per (prompt, continuation), loss weights on the continuation alone."""
  targets = np.zeros((len(pairs), length), np.int32)
  segments, weights = np.zeros_like(targets), np.zeros(targets.shape, np.float32)
  for row, (prompt, continuation) in enumerate(pairs):
    end = len(prompt) + len(continuation)
    targets[row, :end] = [*prompt, *continuation]
    segments[row, :end] = 1
    weights[row, len(prompt) : end] = 1
  inputs = np.pad(targets, [(0, 0), (1, 0)], constant_values=bos_id)[:, :-1] * segments
  return {
    "decoder_input_tokens": inputs,
    "decoder_target_tokens": targets,
    "decoder_segment_ids": segments,
    "decoder_positions": np.arange(length, dtype=np.int32) * segments,
    "decoder_loss_weights": weights,
    "memory_leaf": leaf.astype(np.int32),
  }
