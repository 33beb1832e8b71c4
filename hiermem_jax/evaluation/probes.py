"""Facts that the training text states a known number of times, and whether a model answers questions about them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hiermem_jax.data.tasks.metrics import accuracy_and_likelihood, paired_difference
from hiermem_jax.data.text.pairs import encode_pairs
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.errors import InputError
from hiermem_jax.evaluation.scoring import Scorer

_KINDS = {str: "a string", int: "a whole number"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
  """A question about one fact.

  Attributes:
    text: of the prompt; all that the retriever sees.
    prompt: its token ids.
    answer: ids of what must follow, the full stop included.
    answer_bytes: UTF-8 bytes of it.
    count: how many times the training text states the fact.
    paraphrase: the prompt in other words, where the record has it.
    record: what the source gave.
  """

  text: str
  prompt: Sequence[int]
  answer: Sequence[int]
  answer_bytes: int
  count: int
  paraphrase: str | None = None
  record: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_probes(records: Iterable[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Probe]:
  """Tokenises probes.

  Args:
    records: with the fields `prompt`, `answer` and `count`, and optionally `paraphrase`.
    tokenizer: of the model.

  Raises:
    InputError: a record has not these fields.
  """
  records = list(records)
  for number, record in enumerate(records, start=1):
    for name, kind in (("prompt", str), ("answer", str), ("count", int)):
      if not isinstance(record.get(name), kind):
        raise InputError(f"probe {number}: field '{name}' is {record.get(name)!r}, not {_KINDS[kind]}; mend the probes")
  pairs = [(record["prompt"], f" {record['answer']}.") for record in records]
  return [
    Probe(
      text=record["prompt"],
      prompt=prompt,
      answer=answer,
      answer_bytes=len(continuation.encode()),
      count=record["count"],
      paraphrase=record.get("paraphrase"),
      record=record,
    )
    for record, (_, continuation), (prompt, answer) in zip(records, pairs, encode_pairs(tokenizer, pairs))
  ]


def score_probes(scorer: Scorer, probes: Sequence[Probe], leaf: np.ndarray) -> list[dict[str, Any]]:
  """Scores the answers.

  Args:
    scorer: the model.
    probes: the questions.
    leaf: int32 [n] leaf ids.

  Returns:
    Per probe `correct` (greedy decoding gives exactly the answer), `log_likelihood` of the answer (nats, summed),
    `tokens` and `bytes`.
  """
  scores, greedy = scorer.score_continuations([p.prompt for p in probes], [p.answer for p in probes], leaf)
  return [
    {"correct": correct, "log_likelihood": score, "tokens": len(probe.answer), "bytes": probe.answer_bytes}
    for probe, score, correct in zip(probes, scores.tolist(), greedy.tolist())
  ]


def bucket_numbers(probes: Sequence[Probe], buckets: Sequence[int]) -> np.ndarray:
  """The bucket of each probe by its count, int [n].

  Args:
    probes: the questions.
    buckets: ascending first counts of each bucket, e.g. (1, 4, 16) for 1-3, 4-15 and 16 or more. A count below the
      first is in no bucket, -1.
  """
  return np.searchsorted(buckets, [probe.count for probe in probes], side="right") - 1


def by_bucket(
  results: Sequence[Mapping[str, Any]],
  bucket: np.ndarray,
  number: int,
  without_memory: Sequence[Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
  """Accuracy and log-likelihood by bucket.

  Args:
    results: of each probe, see `score_probes`.
    bucket: int [n], see `bucket_numbers`.
    number: of buckets.
    without_memory: results of the same probes without memory.

  Returns:
    Per bucket what `accuracy_and_likelihood` gives, and as `minus_none` the `paired_difference` to the results without
    memory, where these are given.
  """
  cells = []
  for index in range(number):
    chosen = np.flatnonzero(bucket == index).tolist()
    cell: dict[str, Any] = accuracy_and_likelihood([results[i] for i in chosen])
    if without_memory is not None:
      cell["minus_none"] = paired_difference([results[i] for i in chosen], [without_memory[i] for i in chosen])
    cells.append(cell)
  return cells
