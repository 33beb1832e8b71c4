"""The file of a task as requests: prompts and continuations in tokens, with what judging the model's answer needs.

Plain Python: our own scoring reads tasks through this module, and registry.py builds the SeqIO tasks on it.
"""

import dataclasses
import itertools

from hiermem_jax.data.tasks.prompts import text_pairs
from hiermem_jax.data.tasks.table import task_spec
from hiermem_jax.data.text.pairs import encode_pairs
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """One option of one item: a context that the model reads, and the continuation that it is asked about.

  A question with two options is two requests:

    Request(item=0, option=0, is_gold=False, context="Question: Is fog wet?\\nAnswer:", continuation=" no",
            retrieval="Is fog wet?", ...)
    Request(item=0, option=1, is_gold=True, context="Question: Is fog wet?\\nAnswer:", continuation=" yes", ...)

  Attributes:
    item: number of the item in its file, from 0.
    option: number of the option, from 0.
    is_gold: whether the option is the correct one. Tasks without options have one request per item, which is gold.
    context: text in front of the continuation, few-shot examples included.
    continuation: the option's text with its leading space; of generation tasks, the first accepted answer.
    inputs: token ids of the context.
    targets: token ids of the continuation, at least one.
    retrieval: the text that the memory is chosen by.
    answers: all accepted answers of a generation task, else empty.
    group: relation of an entity question, else "".
    subject: what the question is about, where the file says so, else "".
  """

  item: int
  option: int
  is_gold: bool
  context: str
  continuation: str
  inputs: tuple[int, ...]
  targets: tuple[int, ...]
  retrieval: str
  answers: tuple[str, ...] = ()
  group: str = ""
  subject: str = ""


def read_requests(
  name: str, path: str, tokenizer: Tokenizer, *, shots: int | None = None, max_items: int | None = None
) -> list[Request]:
  """Reads the file of a task.

  Args:
    name: of the task, one of `TASKS`.
    path: of the file, in a format that the task's reader knows.
    tokenizer: of the model.
    shots: few-shot examples in front of each question; None: the task's own number.
    max_items: how many items to evaluate, from the first; few-shot examples still come from the whole file. None: all.

  Returns:
    The requests of all items, item by item, option by option.

  Raises:
    InputError: no such task, a bad file, or too few items for the few-shot examples.
  """
  spec = task_spec(name)
  if shots is not None:
    spec = dataclasses.replace(spec, shots=shots)
  if max_items is not None and max_items < 1:
    raise InputError(f"task {name}: max_items = {max_items}; give 1 or more, or None for all")
  items = spec.reader(path)
  if not 0 <= spec.shots < len(items):
    raise InputError(f"{path}: {len(items)} items, shots = {spec.shots}; give 0 to {len(items) - 1} shots")
  pairs_by_item = list(itertools.islice(text_pairs(items, spec), max_items))
  tokens = iter(encode_pairs(tokenizer, [pair for pairs in pairs_by_item for pair in pairs]))
  requests = []
  for number, (item, pairs) in enumerate(zip(items, pairs_by_item)):
    for option, (context, continuation) in enumerate(pairs):
      inputs, targets = next(tokens)
      requests.append(
        Request(
          item=number,
          option=option,
          is_gold=option == item.gold,
          context=context,
          continuation=continuation,
          inputs=tuple(inputs),
          targets=tuple(targets),
          retrieval=item.retrieval,
          answers=item.answers,
          group=item.group,
          subject=item.subject,
        )
      )
  return requests
