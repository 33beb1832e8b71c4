"""From the model's outputs to results of items, and from those to metrics.

  results = judge(kind, requests, outputs)      one dict per item
  metrics = summarize(kind, results)            accuracy and log-likelihood, with standard errors
  change = paired_difference(results, others)   log-likelihood of the same items under two conditions

A model that is at chance in accuracy may already find the right answers likelier than it did, so the log-likelihood of
the gold continuation is reported beside the accuracy. It is normalised per token, and per UTF-8 byte, which models of
different tokenizers can be compared by.

Standard errors: of an accuracy p over n items sqrt(p (1 - p) / n); of a mean over items the sample standard deviation
(divisor n - 1) over sqrt(n), which a single item does not have (NaN).
"""

import collections
import dataclasses
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hiermem_jax.data.tasks.requests import Request

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_UNITS = {"token": "tokens", "byte": "bytes"}  # what log-likelihoods are normalised by, and its field of a result


@dataclasses.dataclass(frozen=True)
class Output:
  """What a model says to a request.

  Attributes:
    log_likelihood: of the request's continuation, summed over its tokens, in nats; None where it was not scored.
    is_greedy: whether every token of the continuation is the most likely one.
    text: what the model generates after the context; "" where nothing was generated.
  """

  log_likelihood: float | None = None
  is_greedy: bool = False
  text: str = ""


def judge(kind: str, requests: Sequence[Request], outputs: Sequence[Output]) -> list[dict[str, Any]]:
  """Judges the answers to all requests.

  What is correct depends on the kind of the task:

    multiple_choice, schema  The option of highest mean log-likelihood per token (of lowest perplexity) is the gold one,
                             as LLM-Foundry has it; of equal ones the first counts. `correct_unnormalized` is the same
                             by summed log-likelihood.
    language_modeling        Greedy decoding gives exactly the continuation.
    generation               The first line of the generated text begins with an accepted answer, both `normalized`;
                             more may follow. As in LLM-Foundry.
    number                   The first integer of the generated text is the answer.

  Args:
    kind: of the task.
    requests: all requests of each item.
    outputs: of the model, one per request.

  Returns:
    One dict per item, in order of appearance: `item` (its number), `group`, `subject`, `correct`, for multiple choice
    and schema `correct_unnormalized`; and, where the gold continuation was scored, its `log_likelihood` (nats, summed),
    `tokens` and `bytes`.
  """
  by_item: dict[int, list[tuple[Request, Output]]] = collections.defaultdict(list)
  for request, output in zip(requests, outputs, strict=True):
    by_item[request.item].append((request, output))
  results = []
  for item, answered in by_item.items():
    gold, output = next((request, output) for request, output in answered if request.is_gold)
    result = {"item": item, "group": gold.group, "subject": gold.subject, **_JUDGES[kind](answered)}
    if output.log_likelihood is not None:
      result["log_likelihood"] = float(output.log_likelihood)
      result |= {"tokens": len(gold.targets), "bytes": len(gold.continuation.encode())}
    results.append(result)
  return results


def summarize(kind: str, results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """The metrics of a task.

  Args:
    kind: of the task.
    results: see `judge`, at least one.

  Returns:
    What `accuracy_and_likelihood` gives; for multiple choice and schema also `accuracy_unnormalized` and
    `stderr_unnormalized`; for language modelling also `perplexity`, per token of all continuations together.
  """
  metrics = accuracy_and_likelihood(results)
  if kind in ("multiple_choice", "schema"):
    unnormalized = _share([result["correct_unnormalized"] for result in results])
    metrics["accuracy_unnormalized"], metrics["stderr_unnormalized"] = unnormalized
  if kind == "language_modeling":
    tokens = sum(result["tokens"] for result in results)
    metrics["perplexity"] = math.exp(-sum(result["log_likelihood"] for result in results) / tokens)
  return metrics


def accuracy_and_likelihood(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Accuracy, and mean log-likelihood of the gold continuation.

  Args:
    results: dicts with `correct` and, where log-likelihoods are wanted, `log_likelihood`, `tokens` and `bytes`.

  Returns:
    `count`; `accuracy` and its standard error `stderr`; `log_likelihood_per_token` and `log_likelihood_per_byte` (nats,
    means over items of the item's log-likelihood over its tokens or bytes), each with its `..._stderr`. NaN where there
    is nothing to compute a number from.
  """
  accuracy, stderr = _share([result["correct"] for result in results])
  metrics = {"count": len(results), "accuracy": accuracy, "stderr": stderr}
  if all("log_likelihood" in result for result in results):
    metrics |= _means({unit: _normalized_likelihoods(results, unit) for unit in _UNITS})
  return metrics


def paired_difference(results: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """By how much the gold continuations are likelier in `results` than in `others`, item by item.

  What makes an item easy or hard under both conditions cancels, so the standard error is smaller than that of the
  difference of two separate means.

  Args:
    results: of some items, see `accuracy_and_likelihood`.
    others: of the same items in the same order.

  Returns:
    The means of the differences `log_likelihood_per_token` and `log_likelihood_per_byte` (nats), each with its
    `..._stderr`.
  """
  return _means(
    {unit: _normalized_likelihoods(results, unit) - _normalized_likelihoods(others, unit) for unit in _UNITS}
  )


def normalized(text: str) -> str:
  """Lower case, without punctuation, articles and surplus white space."""
  text = text.lower().translate(_PUNCTUATION)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _normalized_likelihoods(results: Sequence[Mapping[str, Any]], unit: str) -> np.ndarray:
  """Log-likelihood of each item over its tokens or bytes, float64 [n]."""
  return np.array([result["log_likelihood"] / result[_UNITS[unit]] for result in results], np.float64)


def _means(values_by_unit: Mapping[str, np.ndarray]) -> dict[str, float]:
  metrics = {}
  for unit, values in values_by_unit.items():
    name, count = f"log_likelihood_per_{unit}", len(values)
    metrics[name] = float(values.mean()) if count else math.nan
    metrics[f"{name}_stderr"] = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
  return metrics


def _share(correct: Sequence[bool]) -> tuple[float, float]:
  """Share of what is true, and its standard error."""
  if not len(correct):
    return math.nan, math.nan
  share = sum(map(bool, correct)) / len(correct)
  return share, math.sqrt(share * (1 - share) / len(correct))


def _judge_options(answered: Sequence[tuple[Request, Output]]) -> dict[str, bool]:
  scores = np.array([output.log_likelihood for _, output in answered], np.float64)
  tokens = np.array([len(request.targets) for request, _ in answered])
  is_gold = [request.is_gold for request, _ in answered]
  return {"correct": is_gold[np.argmax(scores / tokens)], "correct_unnormalized": is_gold[np.argmax(scores)]}


def _judge_continuation(answered: Sequence[tuple[Request, Output]]) -> dict[str, bool]:
  ((_, output),) = answered
  return {"correct": output.is_greedy}


def _judge_text(answered: Sequence[tuple[Request, Output]]) -> dict[str, bool]:
  ((request, output),) = answered
  text = normalized(output.text.split("\n")[0])
  answers = map(normalized, request.answers)
  return {"correct": any(answer and text.startswith(answer) for answer in answers)}  # "The" leaves nothing to compare


def _judge_number(answered: Sequence[tuple[Request, Output]]) -> dict[str, bool]:
  ((request, output),) = answered
  found = re.search(r"\d+", output.text)
  return {"correct": found is not None and int(found[0]) == int(request.answers[0])}


_JUDGES: dict[str, Callable[[Sequence[tuple[Request, Output]]], dict[str, bool]]] = {
  "multiple_choice": _judge_options,
  "schema": _judge_options,
  "language_modeling": _judge_continuation,
  "generation": _judge_text,
  "number": _judge_number,
}
