"""How often names occur in a corpus: the frequency that rare and common knowledge are told apart by."""

import collections
import re
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"\w+")


def count_mentions(names: Sequence[str], texts: Iterable[str]) -> dict[str, int]:
  """Occurrences of each name as whole words, whatever the case and what is between the words.

  Args:
    names: any number; two that are spelled alike up to case have the same count.
    texts: the corpus.

  Returns:
    name -> occurrences.
  """
  words = {name: tuple(_WORD.findall(name.lower())) for name in names}
  by_first: dict[str, set[tuple[str, ...]]] = collections.defaultdict(set)
  for spelled in words.values():
    if spelled:
      by_first[spelled[0]].add(spelled)
  counts: collections.Counter[tuple[str, ...]] = collections.Counter()
  for text in texts:
    found = _WORD.findall(text.lower())
    for start, word in enumerate(found):
      for spelled in by_first.get(word, ()):
        if len(spelled) == 1 or tuple(found[start : start + len(spelled)]) == spelled:
          counts[spelled] += 1
  return {name: counts[spelled] for name, spelled in words.items()}
