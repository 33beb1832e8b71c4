"""Evaluation sets as SeqIO tasks, by SeqIO's convention for rank classification: one example per request.

A question with two options, as one item of a dataset:

  {"inputs": ids of "Question: Is fog wet?\\nAnswer:", "targets": ids of " no",
   "inputs_pretokenized": b"Question: Is fog wet?\\nAnswer:", "targets_pretokenized": b" no",
   "idx": [0, 0], "is_correct": False, "retrieval": b"Is fog wet?", "answers": [], "group": b"", "subject": b""}
  {"inputs": ..., "targets": ids of " yes", ..., "idx": [0, 1], "is_correct": True, ...}

`inputs` and `targets` are output features, the others stay with the examples for the metrics: `Task.postprocess_fn`
turns a target into its whole example.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from hiermem_jax.data.tasks import metrics
from hiermem_jax.data.tasks.formats import Item
from hiermem_jax.data.tasks.prompts import requests
from hiermem_jax.data.tasks.table import TASKS, TaskSpec, task_spec
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.data.text.vocabulary import TokenizerVocabulary
from hiermem_jax.errors import InputError

__all__ = ["SPLIT", "TASKS", "TaskSpec", "register"]

SPLIT = "test"

_METRICS = {
  "multiple_choice": metrics.multiple_choice,
  "schema": metrics.multiple_choice,
  "language_modeling": metrics.language_modeling,
  "generation": metrics.generation,
  "number": metrics.number,
}

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

  The file is read at once, and tokenised when its dataset is first asked for.

  Args:
    name: one of `TASKS`.
    path: of the file, in a format that the task's reader knows.
    tokenizer_path: see `load_tokenizer`.
    shots: exemplars, by default the task's own number.
    max_items: items to evaluate, the first ones; exemplars still come from the whole file.
    task_name: in SeqIO's registry, by default `name`.

  Returns:
    The task. Features of an example, of `n` tokens in front and `m` to predict: `inputs` int32 [n], `targets` int32
    [m], `inputs_pretokenized`, `targets_pretokenized`, `retrieval`, `group`, `subject` strings, `idx` int32 [2] (item,
    option), `is_correct` bool, `answers` strings [accepted answers].

  Raises:
    InputError: no such task, a bad file or tokenizer, or too few items for the exemplars.
  """
  spec = task_spec(name)
  if shots is not None:
    spec = dataclasses.replace(spec, shots=shots)
  if max_items is not None and max_items < 1:
    raise InputError(f"task {name}: max_items = {max_items}; give 1 or more, or None for all")
  items = spec.reader(path)
  if not 0 <= spec.shots < len(items):
    raise InputError(f"{path}: {len(items)} items, shots = {spec.shots}; give 0 to {len(items) - 1} shots")
  vocabulary = TokenizerVocabulary(tokenizer_path)
  examples = functools.cache(lambda: list(_examples(items, spec, max_items, vocabulary.tokenizer)))

  def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del split, shuffle_files, seed
    columns = {name: _column(name, examples()) for name in _DTYPES}
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
    metric_fns=[_METRICS[spec.kind]],
  )


def _examples(
  items: Sequence[Item], spec: TaskSpec, max_items: int | None, tokenizer: Tokenizer
) -> Iterator[dict[str, Any]]:
  asked = list(itertools.islice(requests(items, spec), max_items))
  pairs = [pair for options in asked for pair in options]
  tokens = iter(_tokenized(pairs, tokenizer))
  for number, (item, options) in enumerate(zip(items, asked)):
    for option, (context, continuation) in enumerate(options):
      inputs, targets = next(tokens)
      yield {
        "inputs": inputs,
        "targets": targets,
        "inputs_pretokenized": context,
        "targets_pretokenized": continuation,
        "retrieval": item.retrieval,
        "idx": np.array([number, option], np.int32),
        "is_correct": option == item.gold,
        "answers": np.array(item.answers, object),
        "group": item.group,
        "subject": item.subject,
      }


def _tokenized(pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Ids of each context and continuation: those of their text, cut after as many as the context alone has."""
  contexts = list(dict.fromkeys(context for context, _ in pairs))  # options share theirs
  sizes = dict(zip(contexts, map(len, tokenizer.encode_batch(contexts))))
  texts = [context + continuation for context, continuation in pairs]
  for (context, _), ids in zip(pairs, tokenizer.encode_batch(texts)):
    size = min(sizes[context], len(ids) - 1)  # a continuation has a token even where it melts into the context
    yield np.array(ids[:size], np.int32), np.array(ids[size:], np.int32)


def _column(name: str, examples: Sequence[Mapping[str, Any]]) -> tf.Tensor | tf.RaggedTensor:
  """One feature of all examples."""
  values = [example[name] for example in examples]
  if name not in _RAGGED:
    return tf.constant(values, _DTYPES[name])
  return tf.RaggedTensor.from_row_lengths(tf.constant(np.concatenate(values), _DTYPES[name]), list(map(len, values)))


def _postprocess(output: Any, example: Mapping[str, Any], is_target: bool) -> Any:
  """A target becomes its whole example; what a model gives stays as it is."""
  return example if is_target else output
