"""Items to text: the context that the model reads, and the continuation that it is asked about.

Text of item 7 with one few-shot example, item 2, `prelimiter` "Question: ", `delimiter` "\\nAnswer: ":

  Question: <query 2>\\nAnswer: <gold choice 2>\\nQuestion: <query 7>\\nAnswer: <choice 7>

It is cut in front of the space before the last choice, because a context that ends in a space would be tokenised in
another way than the same text in a document.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from hiermem_jax.data.tasks.formats import Item


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompting:
  """How items become text.

  Attributes:
    shots: few-shot examples in front of an item: other items of the same file with their correct answers.
    delimiter: text between an item's query and its continuation; ends in a space.
    prelimiter: text in front of an item's query.
    example_delimiter: text behind each few-shot example.
    seed: of the random choice of few-shot examples.
  """

  shots: int = 0
  delimiter: str = " "
  prelimiter: str = ""
  example_delimiter: str = "\n"
  seed: int = 1234


def text_pairs(items: Sequence[Item], prompting: Prompting) -> Iterator[list[tuple[str, str]]]:
  """Yields the (context, continuation) pairs of each item, one pair per option.

  Which few-shot examples an item gets depends on the seed, the item's number and the number of items alone.

  Args:
    items: all items of a file, more than `prompting.shots`.
    prompting: how they become text.

  Yields:
    One (context, continuation) per option. The context does not end in a space; the continuation begins with it.
  """
  for number, item in enumerate(items):
    examples = _few_shot_examples(number, len(items), prompting)
    preamble = "".join(
      "".join(_text_pair(items[i], items[i].gold, prompting)) + prompting.example_delimiter for i in examples
    )
    pairs = (_text_pair(item, option, prompting) for option in range(len(item.contexts or item.choices)))
    yield [(preamble + context, continuation) for context, continuation in pairs]


def _few_shot_examples(number: int, count: int, prompting: Prompting) -> list[int]:
  """Numbers of other items than `number`."""
  rng = np.random.default_rng((prompting.seed, number))
  drawn = rng.choice(count - 1, prompting.shots, replace=False)
  return [int(i) + int(i >= number) for i in drawn]


def _text_pair(item: Item, option: int, prompting: Prompting) -> tuple[str, str]:
  """Context and continuation of one option, without few-shot examples."""
  if item.contexts is None:
    shown, continuation = item.query, item.choices[option]
  else:
    shown, continuation = item.contexts[option], item.choices[0]
  text = f"{prompting.prelimiter}{shown}{prompting.delimiter}"
  context = text.rstrip(" ")
  return context, text[len(context) :] + continuation
