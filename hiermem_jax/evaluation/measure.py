"""The two measurements of a small run: loss on held-out text, and accuracy on facts by how often they were seen."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hiermem_jax.evaluation.modes import mode_leaves
from hiermem_jax.evaluation.scoring import Scorer


class Probe(NamedTuple):
  """A question about one fact, tokenised and routed; the retriever has seen the prompt's text and nothing else."""

  prompt: list[int]
  answer: list[int]  # what must follow, up to and including the token that ends the answer
  count: int  # times the fact is stated in the training text
  leaf: int  # where the prompt was routed


def held_out_loss(scorer: Scorer, batches: Iterable[dict[str, np.ndarray]], mode: str) -> float:
  """Mean negative log-likelihood per token (nats) over all batches; its exponential is the perplexity."""
  total, tokens = 0.0, 0.0
  for batch in batches:
    if scorer.model.memory is not None:
      batch = batch | {"memory_leaf": mode_leaves(mode, batch["memory_leaf"], scorer.model.memory)}
    losses, weights, _ = scorer.score_batch(batch)
    total += losses.sum(dtype=np.float64)
    tokens += weights.sum(dtype=np.float64)
  return total / tokens


def probe_accuracy(
  scorer: Scorer, probes: Sequence[Probe], buckets: Sequence[int], mode: str
) -> list[dict[str, float]]:
  """Exact-match accuracy of greedy decoding, by bucket of training frequency.

  Args:
    scorer: the model.
    probes: the questions.
    buckets: ascending first counts of each bucket, e.g. (1, 4, 16) for 1-3, 4-15 and 16 or more.
    mode: which memory the model is given.

  Returns:
    Per bucket `count` (probes in it), `accuracy` in [0, 1] and its standard error `stderr`; NaN where it is empty.
  """
  leaf = np.array([probe.leaf for probe in probes], np.int32)
  if scorer.model.memory is not None:
    leaf = mode_leaves(mode, leaf, scorer.model.memory)
  _, correct = scorer.score_continuations([p.prompt for p in probes], [p.answer for p in probes], leaf)
  bucket = np.searchsorted(buckets, [p.count for p in probes], side="right") - 1
  result = []
  for index in range(len(buckets)):
    hits = correct[bucket == index]
    accuracy = float(hits.mean()) if len(hits) else float("nan")
    stderr = float(np.sqrt(accuracy * (1 - accuracy) / len(hits))) if len(hits) else float("nan")
    result.append({"count": len(hits), "accuracy": accuracy, "stderr": stderr})
  return result
