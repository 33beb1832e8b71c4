"""What a model answers to the requests of an evaluation set, and how likely it finds whole articles."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.evaluation.scoring import Scorer

NEW_TOKENS = {"generation": 32, "number": 10}  # how many are generated


def answer(
  kind: str, examples: Sequence[Mapping[str, Any]], leaf: np.ndarray, scorer: Scorer, tokenizer: Tokenizer
) -> list[Any]:
  """The outputs that a task's metrics take (see data/tasks/metrics.py).

  Args:
    kind: of the task.
    examples: its requests, with token arrays `inputs` and `targets`.
    leaf: int32 [n] leaf ids, one per request.
    scorer: the model.
    tokenizer: of the requests.

  Returns:
    One output per request.
  """
  prompts = [example["inputs"].tolist() for example in examples]
  if kind in NEW_TOKENS:
    newline = tokenizer.encode("\n")
    stop = [tokenizer.eot_id, *(newline if len(newline) == 1 else [])]
    return [tokenizer.decode(ids) for ids in scorer.generate(prompts, leaf, NEW_TOKENS[kind], stop)]
  scores, greedy = scorer.score_continuations(prompts, [example["targets"].tolist() for example in examples], leaf)
  return list(zip(scores.tolist(), greedy.tolist())) if kind == "language_modeling" else scores.tolist()


def article_perplexity(
  documents: Sequence[Sequence[int]], leaf: np.ndarray, scorer: Scorer, length: int
) -> dict[str, float]:
  """Perplexity of articles, each with the memory of its own path (paper, Section 3).

  Args:
    documents: n token lists.
    leaf: int32 [n] leaf ids.
    scorer: the model.
    length: articles are scored in windows of at most so many tokens, each without what is before it.

  Returns:
    `perplexity`: exp of the mean loss of all tokens; `mean_perplexity`: of the articles' own perplexities, which rare
    bad ones dominate; `articles`, `tokens`.
  """
  windows = [(number, ids[i : i + length]) for number, ids in enumerate(documents) for i in range(0, len(ids), length)]
  owner = np.array([number for number, _ in windows], np.int64)
  scores, _ = scorer.score_continuations([[] for _ in windows], [ids for _, ids in windows], leaf[owner])
  tokens = np.array([len(ids) for ids in documents])
  losses = -np.bincount(owner, weights=scores.astype(np.float64), minlength=len(documents))
  return {
    "perplexity": float(np.exp(losses.sum() / tokens.sum())),
    "mean_perplexity": float(np.exp(losses[tokens > 0] / tokens[tokens > 0]).mean()),
    "articles": len(documents),
    "tokens": int(tokens.sum()),
  }
