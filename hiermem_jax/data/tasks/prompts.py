"""Items to requests: what the model reads, and the continuation that it is asked about.

Text of item 7 with one exemplar, item 2, `prelimiter` "Question: ", `delimiter` "\\nAnswer: ":

  Question: <query 2>\\nAnswer: <gold choice 2>\\nQuestion: <query 7>\\nAnswer: <choice 7>

It is cut in front of the space before the last choice: a context that ends in a space would be tokenised otherwise than
the same text in a document.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from hiermem_jax.data.tasks.formats import Item


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompting:
  """How items become text.

  Attributes:
    shots: exemplars in front of an item, other items of the same file with their correct answers.
    delimiter: between what is shown of an item and its continuation; ends in a space.
    prelimiter: in front of what is shown of an item.
    example_delimiter: after an exemplar.
    seed: of the draw of exemplars.
  """

  shots: int = 0
  delimiter: str = " "
  prelimiter: str = ""
  example_delimiter: str = "\n"
  seed: int = 1234


def requests(items: Sequence[Item], prompting: Prompting) -> Iterator[list[tuple[str, str]]]:
  """Yields the requests of each item, one per option.

  The exemplars of an item depend on the seed, the item's number and the number of items, on nothing else.

  Args:
    items: of one file, more than `prompting.shots`.
    prompting: see `Prompting`.

  Yields:
    One (context, continuation) per option: the context does not end in a space, the continuation begins with it.
  """
  for number, item in enumerate(items):
    drawn = _exemplars(number, len(items), prompting)
    preamble = "".join(
      "".join(_request(items[i], items[i].gold, prompting)) + prompting.example_delimiter for i in drawn
    )
    pairs = (_request(item, option, prompting) for option in range(len(item.contexts or item.choices)))
    yield [(preamble + context, continuation) for context, continuation in pairs]


def _exemplars(number: int, count: int, prompting: Prompting) -> list[int]:
  rng = np.random.default_rng((prompting.seed, number))
  drawn = rng.choice(count - 1, prompting.shots, replace=False)
  return [int(i) + int(i >= number) for i in drawn]  # the item itself is passed over


def _request(item: Item, option: int, prompting: Prompting) -> tuple[str, str]:
  if item.contexts is None:
    shown, continuation = item.query, item.choices[option]
  else:
    shown, continuation = item.contexts[option], item.choices[0]
  text = f"{prompting.prelimiter}{shown}{prompting.delimiter}"
  context = text.rstrip(" ")
  return context, text[len(context) :] + continuation
