"""Evaluation sets as SeqIO tasks, by SeqIO's convention for rank classification: one example per request.

For users of SeqIO's tools; our own evaluation reads the same requests without SeqIO (see requests.py). A question with
two options is two examples of a dataset:

  {"inputs": ids of "Question: Is fog wet?\\nAnswer:", "targets": ids of " no",
   "inputs_pretokenized": b"Question: Is fog wet?\\nAnswer:", "targets_pretokenized": b" no",
   "idx": [0, 0], "is_correct": False, "retrieval": b"Is fog wet?", "answers": [], "group": b"", "subject": b""}
  {"inputs": ..., "targets": ids of " yes", ..., "idx": [0, 1], "is_correct": True, ...}

`inputs` and `targets` are output features. The other features are for the metrics: `Task.postprocess_fn` turns a target
into its whole example.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from hiermem_jax.data.tasks import metrics
from hiermem_jax.data.tasks.requests import Request, read_requests
from hiermem_jax.data.tasks.table import GENERATED_KINDS, TASKS, TaskSpec, task_spec
from hiermem_jax.data.text.vocabulary import TokenizerVocabulary

__all__ = ["SPLIT", "TASKS", "TaskSpec", "register"]

SPLIT = "test"

_DTYPES = {
  "inputs": tf.int32,
  "targets": tf.int32,
  "inputs_pretokenized": tf.string,
  "targets_pretokenized": tf.string,
  "retrieval": tf.string,
  "idx": tf.int32,
  "is_correct": tf.bool,
  "answers": tf.string,
  "group": tf.string,
  "subject": tf.string,
}
_RAGGED = ("inputs", "targets", "answers")


def register(
  name: str,
  path: str,
  tokenizer_path: str,
  *,
  shots: int | None = None,
  max_items: int | None = None,
  task_name: str | None = None,
) -> seqio.Task:
  """Registers an evaluation set as a SeqIO task with the split "test"; a task of the same name is replaced.

  The file is read and tokenised at once.

  Args:
    name: one of `TASKS`.
    path: of the file, in a format that the task's reader knows.
    tokenizer_path: see `load_tokenizer`.
    shots: see `read_requests`.
    max_items: see `read_requests`.
    task_name: in SeqIO's registry, by default `name`.

  Returns:
    The task. Features of an example, of `n` tokens in front and `m` to predict: `inputs` int32 [n], `targets` int32
    [m], `inputs_pretokenized`, `targets_pretokenized`, `retrieval`, `group`, `subject` strings, `idx` int32 [2] (item,
    option), `is_correct` bool, `answers` strings [accepted answers].

  Raises:
    InputError: see `read_requests` and `load_tokenizer`.
  """
  vocabulary = TokenizerVocabulary(tokenizer_path)
  requests = read_requests(name, path, vocabulary.tokenizer, shots=shots, max_items=max_items)

  def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del split, shuffle_files, seed
    examples = list(map(_to_example, requests))
    columns = {feature: _column(feature, examples) for feature in _DTYPES}
    # Slices of ragged columns are plain tensors; a map makes the dataset say so.
    return tf.data.Dataset.from_tensor_slices(columns).map(lambda example: example)

  task_name = task_name or name
  if task_name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(task_name)
  feature = seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
  return seqio.TaskRegistry.add(
    task_name,
    source=seqio.FunctionDataSource(dataset_fn, [SPLIT]),
    output_features={"inputs": feature, "targets": feature},
    postprocess_fn=_postprocess,
    metric_fns=[_metric_fn(task_spec(name).kind)],
  )


def _to_example(request: Request) -> dict[str, Any]:
  return {
    "inputs": request.inputs,
    "targets": request.targets,
    "inputs_pretokenized": request.context,
    "targets_pretokenized": request.continuation,
    "retrieval": request.retrieval,
    "idx": (request.item, request.option),
    "is_correct": request.is_gold,
    "answers": request.answers,
    "group": request.group,
    "subject": request.subject,
  }


def _to_request(example: Mapping[str, Any]) -> Request:
  """The inverse of `_to_example`, of an example as a dataset gives it: NumPy arrays, and strings as bytes."""
  item, option = example["idx"].tolist()
  return Request(
    item=item,
    option=option,
    is_gold=bool(example["is_correct"]),
    context=example["inputs_pretokenized"].decode(),
    continuation=example["targets_pretokenized"].decode(),
    inputs=tuple(example["inputs"].tolist()),
    targets=tuple(example["targets"].tolist()),
    retrieval=example["retrieval"].decode(),
    answers=tuple(answer.decode() for answer in example["answers"]),
    group=example["group"].decode(),
    subject=example["subject"].decode(),
  )


def _metric_fn(kind: str) -> Callable[..., dict[str, float]]:
  """The metric function of a kind. SeqIO tells by the second argument's name whether it takes text or scores."""

  def measure(targets: Sequence[Mapping[str, Any]], outputs: list[metrics.Output]) -> dict[str, float]:
    return metrics.summarize(kind, metrics.judge(kind, list(map(_to_request, targets)), outputs))

  def from_text(targets, predictions):
    return measure(targets, [metrics.Output(text=text) for text in predictions])

  def from_scores(targets, scores):
    # One log-likelihood per request or, of language modelling, (log-likelihood, whether greedy decoding agrees).
    scores = [np.atleast_1d(score).tolist() for score in scores]
    return measure(targets, [metrics.Output(score[0], bool(score[-1]) and len(score) > 1) for score in scores])

  return from_text if kind in GENERATED_KINDS else from_scores


def _column(name: str, examples: Sequence[Mapping[str, Any]]) -> tf.Tensor | tf.RaggedTensor:
  """One feature of all examples."""
  values = [example[name] for example in examples]
  if name not in _RAGGED:
    return tf.constant(values, _DTYPES[name])
  flat = [value for row in values for value in row]
  return tf.RaggedTensor.from_row_lengths(tf.constant(flat, _DTYPES[name]), list(map(len, values)))


def _postprocess(output: Any, example: Mapping[str, Any], is_target: bool) -> Any:
  """A target becomes its whole example; what a model gives stays as it is."""
  return example if is_target else output
