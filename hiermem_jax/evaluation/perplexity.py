"""Perplexity: of held-out packed text, and of whole articles."""

from collections.abc import Iterable, Sequence

import numpy as np

from hiermem_jax.evaluation.modes import Mode, path_leaves
from hiermem_jax.evaluation.scoring import Scorer


def held_out_loss(scorer: Scorer, batches: Iterable[dict[str, np.ndarray]], mode: Mode) -> float:
  """Mean negative log-likelihood per token (nats) over all batches; its exponential is the perplexity.

  Args:
    scorer: the model with the levels that the mode uses.
    batches: of packed text (see data/packed/batches.py), at most `scorer.batch_size` sequences each.
    mode: one that does not need questions.
  """
  return sequence_losses(scorer, batches, mode)[0]


def sequence_losses(scorer: Scorer, batches: Iterable[dict[str, np.ndarray]], mode: Mode) -> tuple[float, np.ndarray]:
  """What `held_out_loss` gives, and the summed negative log-likelihood of each sequence (nats), float32 [n]."""
  total, tokens, found = 0.0, 0.0, []
  for batch in batches:
    if scorer.model.memory is not None:
      batch = batch | {"memory_leaf": path_leaves(mode, batch["memory_leaf"], scorer.model.memory)}
    losses, weights, _ = scorer.score_batch(batch)
    total += losses.sum(dtype=np.float64)
    tokens += weights.sum(dtype=np.float64)
    found.append(losses)
  return total / tokens, np.concatenate(found)


def article_perplexity(documents: Sequence[Sequence[int]], leaf: np.ndarray, scorer: Scorer) -> dict[str, float]:
  """Perplexity of articles, each with the memory of its own path (paper, Section 3).

  Args:
    documents: n token lists.
    leaf: int32 [n] leaf ids.
    scorer: the model.

  Returns:
    `perplexity`: exp of the mean loss of all tokens; `mean_perplexity`: mean of the articles' own perplexities, which a
    few bad articles dominate; `articles` and `tokens`, their numbers.
  """
  tokens = np.array([len(ids) for ids in documents])
  losses = -scorer.score_documents(documents, leaf)
  return {
    "perplexity": float(np.exp(losses.sum() / tokens.sum())),
    "mean_perplexity": float(np.exp(losses[tokens > 0] / tokens[tokens > 0]).mean()),
    "articles": len(documents),
    "tokens": int(tokens.sum()),
  }
