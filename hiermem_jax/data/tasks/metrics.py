"""From model outputs to results of items, and from those to metrics.

`examples` are what a task's dataset gives, one per request (see registry.py); as SeqIO metric functions get them they
are called `targets`. The outputs of each kind of task, one per request, in the same order:

  multiple_choice, schema   log-likelihood of the continuation, summed over its tokens, in nats
  language_modeling         (that log-likelihood, whether every token of the continuation is the most likely one)
  generation, number        generated text

Accuracies come with their standard error, sqrt(p (1 - p) / count).
"""

import collections
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Example = Mapping[str, Any]

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


def item_results(kind: str, examples: Sequence[Example], outputs: Sequence[Any]) -> list[dict[str, Any]]:
  """The result of each item, in order of appearance.

  Args:
    kind: of the task.
    examples: all requests of each item.
    outputs: of the model, see the module's docstring.

  Returns:
    Per item "item" (its number), "group", "subject", "correct"; for multiple choice and schema "correct_unnormalized"
    too; for language modelling "log_likelihood" and "tokens" (number of the continuation's) too.
  """
  requests: dict[int, list[tuple[Example, Any]]] = collections.defaultdict(list)
  for example, output in zip(examples, outputs, strict=True):
    requests[int(example["idx"][0])].append((example, output))
  judge = _JUDGES[kind]
  return [
    {
      "item": item,
      "group": requested[0][0]["group"].decode(),
      "subject": requested[0][0]["subject"].decode(),
      **judge(requested),
    }
    for item, requested in requests.items()
  ]


def multiple_choice(targets: Sequence[Example], scores: Sequence[float]) -> dict[str, float]:
  """Share of items whose best option is correct; serves schema tasks too.

  Returns:
    "accuracy": best by mean log-likelihood per token, i.e. of the lowest perplexity, as LLM-Foundry has it;
    "accuracy_unnormalized": best by summed log-likelihood; of several that are as good the first is taken.
    "stderr", "stderr_unnormalized" and "count".
  """
  results = item_results("multiple_choice", targets, scores)
  plain = _accuracy(results, "correct_unnormalized")
  return {
    **_accuracy(results),
    "accuracy_unnormalized": plain["accuracy"],
    "stderr_unnormalized": plain["stderr"],
  }


def language_modeling(targets: Sequence[Example], scores: Sequence[tuple[float, bool]]) -> dict[str, float]:
  """Share of items whose whole continuation is what greedy decoding gives, and perplexity per continuation token."""
  results = item_results("language_modeling", targets, scores)
  log_likelihood = sum(result["log_likelihood"] for result in results)
  tokens = sum(result["tokens"] for result in results)
  return {**_accuracy(results), "perplexity": float(np.exp(-log_likelihood / tokens))}


def generation(targets: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
  """Share of items whose generated text begins with an accepted answer.

  As in LLM-Foundry: text and answers are normalised, see `normalized`, and the text, cut at its first line break, must
  start with an answer; more may follow.
  """
  return _accuracy(item_results("generation", targets, predictions))


def number(targets: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
  """Share of items where the first integer of the generated text is the answer."""
  return _accuracy(item_results("number", targets, predictions))


def normalized(text: str) -> str:
  """Lower case, without punctuation, articles and surplus white space."""
  text = text.lower().translate(_PUNCTUATION)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _accuracy(results: Sequence[Mapping[str, Any]], field: str = "correct") -> dict[str, float]:
  share = sum(result[field] for result in results) / len(results)
  return {"accuracy": share, "stderr": (share * (1 - share) / len(results)) ** 0.5, "count": len(results)}


def _judge_options(requested: Sequence[tuple[Example, float]]) -> dict[str, Any]:
  scores = np.array([score for _, score in requested], np.float64)
  tokens = np.array([len(example["targets"]) for example, _ in requested])
  correct = [bool(example["is_correct"]) for example, _ in requested]
  return {
    "correct": correct[np.argmax(scores / tokens)],
    "correct_unnormalized": correct[np.argmax(scores)],
  }


def _judge_continuation(requested: Sequence[tuple[Example, tuple[float, bool]]]) -> dict[str, Any]:
  ((example, (log_likelihood, greedy)),) = requested
  return {"correct": bool(greedy), "log_likelihood": float(log_likelihood), "tokens": len(example["targets"])}


def _judge_text(requested: Sequence[tuple[Example, str]]) -> dict[str, Any]:
  ((example, prediction),) = requested
  text = normalized(prediction.split("\n")[0])
  answers = [normalized(answer.decode()) for answer in example["answers"]]
  return {"correct": any(answer and text.startswith(answer) for answer in answers)}  # "The" leaves nothing to compare


def _judge_number(requested: Sequence[tuple[Example, str]]) -> dict[str, Any]:
  ((example, prediction),) = requested
  found = re.search(r"\d+", prediction)
  return {"correct": found is not None and int(found[0]) == int(example["answers"][0])}


_JUDGES: dict[str, Callable[[Sequence[tuple[Example, Any]]], dict[str, Any]]] = {
  "multiple_choice": _judge_options,
  "schema": _judge_options,
  "language_modeling": _judge_continuation,
  "generation": _judge_text,
  "number": _judge_number,
}
