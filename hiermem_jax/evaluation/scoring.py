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
from hiermem_jax.models.losses import anchor_hidden, apply_anchor, token_losses
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
    batch_size: sequences at once.
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
      max_length: see `ScoringConfig`.
      rules: how arrays are laid out on the mesh.
    """
    self.model = model
    self._bos_id, self._max_length, self._rules = bos_id, max_length, rules
    self.batch_size = -(-batch_size // batch_shards(mesh)) * batch_shards(mesh)
    self._mesh, self._own = mesh, local_sequences(mesh, self.batch_size)
    self._score = self._jit(self._score_batch, static_argnums=2)
    self._next_token = self._jit(self._next_token_logits)
    self._greedy = functools.cache(
      lambda max_new_tokens: self._jit(make_greedy(model.config, mesh, max_new_tokens, rules))
    )

  def _jit(self, function: Callable, **settings) -> Callable:
    everywhere = NamedSharding(self._mesh, PartitionSpec())  # every process reads the results
    return jax.jit(function, out_shardings=everywhere, **settings)

  def _with_block(self, function: Callable, params, batch: dict[str, jax.Array]):
    """`function(anchor parameters, block, batch)` of the devices' own sequences."""
    by_sequence = batch_sharding(self._mesh).spec
    run = with_fetched_block(function, self.model.config, self._mesh, self._rules, out_specs=by_sequence)
    return run(params, batch["memory_leaf"], batch)

  def _score_batch(self, params, batch: dict[str, jax.Array], count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`score_batch` on the devices, for batches with at most `count` weighted tokens a sequence."""

    def local(params, block, batch):
      hidden, head = anchor_hidden(self.model.anchor, params, batch, block)
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

    return self._with_block(local, params, batch)

  def _next_token_logits(self, params, batch: dict[str, jax.Array]) -> jax.Array:
    def local(params, block, batch):
      return apply_anchor(self.model.anchor, params, batch, block)

    return self._with_block(local, params, batch)

  def _place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch filled up to the batch size with zeros, on the devices."""
    missing = self.batch_size - len(batch["memory_leaf"])
    padded = {name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for name, array in batch.items()}
    return place_batch({name: array[self._own] for name, array in padded.items()}, self._mesh)

  def score_batch(self, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores the tokens of a batch that have a loss weight.

    With W the largest number of weighted tokens in a sequence, rounded up to a power of two:

      1. the blocks of the leaf ids                           vectors [B, L, R, width]
      2. the sequences through the anchor                     hidden [B, S, D]
      3. of each sequence, the positions with a weight first  hidden [B, W, D], targets and weights [B, W]
      4. logits, some tokens at a time; their losses, and     float32 and bool [B, W]
         whether the target is the most likely token
      5. sums over the sequence                               [B]

    Args:
      batch: at most `batch_size` sequences (see data/packed/batches.py). Every process gives the whole batch.

    Returns:
      Per sequence: the summed negative log-likelihood of the weighted tokens (nats, float32 [B]), their summed weights
      (float32 [B]), and whether greedy decoding would produce all of them (bool [B]).
    """
    size, length = batch["decoder_loss_weights"].shape
    most = int(np.count_nonzero(batch["decoder_loss_weights"], axis=-1).max())
    count = min(length, _FEWEST_LOGITS)
    while count < most:
      count = min(length, 2 * count)  # powers of two, so that few shapes are compiled
    outputs = self._score(self.model.params, self._place(batch), count)
    losses, weights, greedy = (np.asarray(output)[:size] for output in outputs)
    return losses, weights, greedy

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

  def score_documents(self, documents: Sequence[Sequence[int]], leaf: np.ndarray) -> np.ndarray:
    """Scores whole documents in windows of at most `max_length` tokens, each without what is before it.

    Args:
      documents: n token lists, without the begin-of-document input.
      leaf: int32 [n] leaf ids; all windows of a document have the same.

    Returns:
      float64 [n], the log-likelihood of each document, nats; 0 for one without tokens.
    """
    windows = [
      (number, ids[start : start + self._max_length])
      for number, ids in enumerate(documents)
      for start in range(0, len(ids), self._max_length)
    ]
    owner = np.array([number for number, _ in windows], np.int64)
    scores, _ = self.score_continuations([[]] * len(windows), [ids for _, ids in windows], leaf[owner])
    return np.bincount(owner, weights=scores.astype(np.float64), minlength=len(documents))

  def logits(self, ids: Sequence[int], leaf: int) -> np.ndarray:
    """Logits of the token that follows each beginning of one document.

    Args:
      ids: S tokens, without the begin-of-document input.
      leaf: leaf id.

    Returns:
      float32 [S + 1, V]; row i is of the token behind the first i.
    """
    length = _padded_length(len(ids) + 1)
    batch = self._place(prompt_batch([([*ids, 0], [])], np.array([leaf]), length, self._bos_id))
    return np.asarray(self._next_token(self.model.params, batch))[0, : len(ids) + 1]

  def generate(
    self, prompts: Sequence[Sequence[int]], leaf: np.ndarray, max_new_tokens: int, stop: Sequence[int]
  ) -> list[list[int]]:
    """Continues token prompts greedily, one document each.

    Prompts of similar length form a batch; see `inference.make_greedy` for the steps.

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
    greedy, ends = self._greedy(max_new_tokens), np.asarray(stop, np.int32)
    result: list[list[int]] = [[] for _ in prompts]
    for chosen, length in self._buckets([len(prompt) + 1 for prompt in prompts]):
      tokens = np.zeros((len(chosen), length), np.int32)
      for place, index in enumerate(chosen):
        tokens[place, : len(prompts[index]) + 1] = [self._bos_id, *prompts[index]]
      batch = {"tokens": tokens, "length": np.array([len(prompts[i]) + 1 for i in chosen], np.int32)}
      generated = np.asarray(greedy(self.model.params, self._place(batch | {"memory_leaf": leaf[chosen]}), ends))
      for index, continuation in zip(chosen, generated):
        (places,) = np.nonzero(np.isin(continuation, ends))
        result[index] = continuation[: places[0] if len(places) else None].tolist()
    return result

  def _cut(self, prompt: Sequence[int], following: int) -> Sequence[int]:
    """The end of a prompt, so short that `following` more tokens fit behind it."""
    remaining = self._max_length - following
    if remaining < 0:
      raise InputError(
        f"{following} tokens to score or generate: the context has {self._max_length}; bind ScoringConfig.max_length"
      )
    if len(prompt) <= remaining:
      return prompt
    return prompt[len(prompt) - remaining :]

  def _buckets(self, lengths: Sequence[int]):
    """Batches of similar length: (indices int [n], padded length), the longest, which need most memory, first."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for start in range(0, len(order), self.batch_size):
      chosen = order[start : start + self.batch_size]
      logging.log_every_n_seconds(logging.INFO, "%d of %d sequences", _LOG_EVERY_SECONDS, start, len(order))
      yield chosen, _padded_length(lengths[chosen[0]])


def _padded_length(length: int) -> int:
  return -(-length // _LENGTH_BUCKET) * _LENGTH_BUCKET


def prompt_batch(
  pairs: Sequence[tuple[Sequence[int], Sequence[int]]], leaf: np.ndarray, length: int, bos_id: int
) -> dict[str, np.ndarray]:
  """The batch of some documents, each a prompt and its continuation; the continuations alone have loss weights.

  Args:
    pairs: B (prompt, continuation) token lists.
    leaf: int [B] leaf ids.
    length: S, positions of a sequence.
    bos_id: the input at the first position.

  Returns:
    The arrays of the batch contract (see data/packed/batches.py), [B, S], and `memory_leaf` int32 [B].
  """
  targets = np.zeros((len(pairs), length), np.int32)
  segments, weights = np.zeros_like(targets), np.zeros(targets.shape, np.float32)
  for place, (prompt, continuation) in enumerate(pairs):
    end = len(prompt) + len(continuation)
    targets[place, :end] = [*prompt, *continuation]
    segments[place, :end] = 1
    weights[place, len(prompt) : end] = 1
  inputs = np.pad(targets, [(0, 0), (1, 0)], constant_values=bos_id)[:, :-1] * segments
  return {
    "decoder_input_tokens": inputs,
    "decoder_target_tokens": targets,
    "decoder_segment_ids": segments,
    "decoder_positions": np.arange(length, dtype=np.int32) * segments,
    "decoder_loss_weights": weights,
    "memory_leaf": leaf.astype(np.int32),
  }
