"""The scoring engine: log-likelihoods, greedy agreement and greedy generation, batched by length, on any mesh."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.inference import make_greedy
from hiermem_jax.models.losses import anchor_hidden, token_losses
from hiermem_jax.models.model import Model
from hiermem_jax.parallel import batch_sharding, batch_shards, local_sequences, place_batch, with_fetched_block
from hiermem_jax.parallel.mesh import DEFAULT_RULES, Rules

_LENGTH_BUCKET = 16  # prompts are padded to multiples of this, so that few shapes are compiled
_LOGITS_AT_A_TIME = 2048  # tokens of a device whose logits exist together: 0.4 GB for a vocabulary of 50,432
_FEWEST_LOGITS = 8  # tokens of a sequence that get logits, where there are so many; then 16, 32, ...
_LOG_EVERY_SECONDS = 30


class Scorer:
  """A model on a mesh, ready to score batches; compiled once per shape.

  Attributes:
    model: the model.
    truncated: prompts that were too long so far, and lost their beginning.
  """

  def __init__(
    self,
    model: Model,
    mesh: Mesh,
    batch_size: int = 64,
    *,
    bos_id: int = 0,
    max_length: int = 2048,
    rules: Rules = DEFAULT_RULES,
  ):
    """Prepares to score.

    Args:
      model: the model.
      mesh: where its parameters are.
      batch_size: sequences at once; rounded up to a multiple of the devices.
      bos_id: the input at the beginning of a document.
      max_length: tokens of a prompt and its continuation together; prompts are cut from the left to fit.
      rules: of the layout.
    """
    self.model, self.truncated = model, 0
    self._bos_id, self._max_length, self._rules = bos_id, max_length, rules
    self.batch_size = -(-batch_size // batch_shards(mesh)) * batch_shards(mesh)
    self._mesh, self._rows = mesh, local_sequences(mesh, self.batch_size)
    by_sequence = batch_sharding(mesh).spec

    def score_local(count, params, block, batch):
      hidden, head = anchor_hidden(model.anchor, params, batch, block)
      weights, targets = batch["decoder_loss_weights"], batch["decoder_target_tokens"]
      scored = jnp.argsort(weights == 0, axis=-1, stable=True)[:, :count]
      weights, targets = (jnp.take_along_axis(x, scored, axis=1) for x in (weights, targets))
      hidden = jnp.take_along_axis(hidden, scored[..., None], axis=1)

      def score_token(token):
        logits = (token[0] @ head).astype(jnp.float32)
        return token_losses(logits, {"decoder_target_tokens": token[1]})[0], jnp.argmax(logits) == token[1]

      flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
      losses, agrees = jax.lax.map(score_token, flat, batch_size=_LOGITS_AT_A_TIME)
      losses, agrees = losses.reshape(weights.shape), agrees.reshape(weights.shape)
      return (losses * weights).sum(axis=-1), weights.sum(axis=-1), (agrees | (weights == 0)).all(axis=-1)

    def score(params, batch, count):
      local = functools.partial(score_local, count)
      run = with_fetched_block(local, model.config, mesh, rules, out_specs=by_sequence)
      return run(params, batch["memory_leaf"], batch)

    self._score = self._jit(score, static_argnums=2)
    self._greedy = functools.cache(self._compile_greedy)

  def _jit(self, function: Callable, **settings) -> Callable:
    everywhere = NamedSharding(self._mesh, PartitionSpec())  # every process reads the results
    return jax.jit(function, out_shardings=everywhere, **settings)

  def _compile_greedy(self, max_new_tokens: int) -> Callable:
    return self._jit(make_greedy(self.model.config, self._mesh, max_new_tokens, self._rules))

  def _place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch filled up to the batch size with zeros, on the devices."""
    missing = self.batch_size - len(batch["memory_leaf"])
    padded = {name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for name, array in batch.items()}
    return place_batch({name: array[self._rows] for name, array in padded.items()}, self._mesh)

  def score_batch(self, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores a batch of at most `batch_size` sequences (the contract of the data room, arrays [B, S]).

    Only tokens that have a weight get logits. Every process gives the whole batch.

    Returns:
      Per sequence: summed negative log-likelihood of the weighted tokens (nats, float32 [B]), their number
      (float32 [B]), and whether greedy decoding would produce all of them (bool [B]).
    """
    size, length = batch["decoder_loss_weights"].shape
    most = int(np.count_nonzero(batch["decoder_loss_weights"], axis=-1).max())
    count = min(length, _FEWEST_LOGITS)
    while count < most:
      count = min(length, 2 * count)  # powers of two, so that few shapes are compiled
    outputs = self._score(self.model.params, self._place(batch), count)
    return tuple(np.asarray(output)[:size] for output in outputs)

  def score_continuations(
    self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], leaf: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Scores token continuations of token prompts, one document each.

    Args:
      prompts: n token lists, without the begin-of-document input; cut from the left where they are too long.
      continuations: n non-empty token lists.
      leaf: int32 [n] leaf ids.

    Returns:
      Log-likelihood of each continuation (nats, float32 [n]) and whether greedy decoding of its length gives exactly it
      (bool [n]).

    Raises:
      InputError: a continuation is longer than `max_length`.
    """
    prompts = [self._cut(prompt, len(continuation)) for prompt, continuation in zip(prompts, continuations)]
    lengths = [len(p) + len(c) for p, c in zip(prompts, continuations)]
    log_likelihood, greedy = np.zeros(len(prompts), np.float32), np.zeros(len(prompts), bool)
    for chosen, length in self._buckets(lengths):
      pairs = [(prompts[i], continuations[i]) for i in chosen]
      losses, _, agrees = self.score_batch(prompt_batch(pairs, leaf[chosen], length, self._bos_id))
      log_likelihood[chosen], greedy[chosen] = -losses, agrees
    return log_likelihood, greedy

  def generate(
    self, prompts: Sequence[Sequence[int]], leaf: np.ndarray, max_new_tokens: int, stop: Sequence[int]
  ) -> list[list[int]]:
    """Continues token prompts greedily, one document each.

    Args:
      prompts: n token lists, without the begin-of-document input; cut from the left where they are too long.
      leaf: int32 [n] leaf ids.
      max_new_tokens: how many tokens are generated at most.
      stop: tokens that end a continuation.

    Returns:
      n token lists, each up to and without the first stop token.

    Raises:
      InputError: `max_new_tokens` is more than `max_length`.
    """
    prompts = [self._cut(prompt, max_new_tokens) for prompt in prompts]
    greedy, stop = self._greedy(max_new_tokens), np.asarray(stop, np.int32)
    result: list[list[int]] = [[] for _ in prompts]
    for chosen, length in self._buckets([len(prompt) + 1 for prompt in prompts]):
      tokens = np.zeros((len(chosen), length), np.int32)
      for row, index in enumerate(chosen):
        tokens[row, : len(prompts[index]) + 1] = [self._bos_id, *prompts[index]]
      batch = {"tokens": tokens, "length": np.array([len(prompts[i]) + 1 for i in chosen], np.int32)}
      generated = np.asarray(greedy(self.model.params, self._place(batch | {"memory_leaf": leaf[chosen]}), stop))
      for index, row in zip(chosen, generated):
        ends = np.flatnonzero(np.isin(row, stop))
        result[index] = row[: ends[0] if len(ends) else None].tolist()
    return result

  def _cut(self, prompt: Sequence[int], following: int) -> Sequence[int]:
    """The end of a prompt that leaves room for so many tokens after it."""
    room = self._max_length - following
    if room < 0:
      raise InputError(
        f"{following} tokens to score or generate: the context has {self._max_length}; bind a longer one"
      )
    if len(prompt) <= room:
      return prompt
    self.truncated += 1
    return prompt[len(prompt) - room :]

  def _buckets(self, lengths: Sequence[int]):
    """Batches of similar length: (indices int [n], padded length), the longest, which need most memory, first."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), self.batch_size):
      chosen = order[start : start + self.batch_size]
      logging.log_every_n_seconds(logging.INFO, "%d of %d sequences", _LOG_EVERY_SECONDS, start, len(order))
      yield chosen, -(-lengths[chosen[0]] // _LENGTH_BUCKET) * _LENGTH_BUCKET


def prompt_batch(
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
