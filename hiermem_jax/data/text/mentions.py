"""Counts how often names occur in a corpus. Facts about rarely mentioned names are the rare knowledge of evaluation."""

import collections
import re
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"\w+")


def count_mentions(names: Sequence[str], texts: Iterable[str]) -> dict[str, int]:
  """Counts occurrences of each name as whole words, without regard to case, spaces and punctuation.

  For example, the name "Niels Bohr" occurs once in "niels-BOHR discovered hafnium", and "Bohr" once.

  Args:
    names: the names to count.
    texts: the corpus.

  Returns:
    name -> number of occurrences.
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
