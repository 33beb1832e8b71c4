"""Where a question's memory comes from: modes that change the path, not what is fetched along it.

blocked 3        around the level-3 cluster of the question's own path, as if its blocks were not there (Figure 6b)
blocked 1:5 3:60 around these clusters, given as level:number, whatever the question
rank 2           the leaf that is second nearest
cut 50           the path of the first 50% of the question's words
paraphrased      the path of the question in other words
"""

import functools
import re
from collections.abc import Sequence

import numpy as np

from hiermem_jax.errors import InputError
from hiermem_jax.evaluation.modes import mode_leaves
from hiermem_jax.models.config import MemoryConfig
from hiermem_jax.retrieval.retriever import Retriever
from hiermem_jax.retrieval.search import assign_excluding, exclude_clusters, exclude_own_cluster, kth_nearest_leaf

_PATHS = re.compile(r"blocked [1-9]|blocked( \d+:\d+)+|rank [1-9]\d*|cut [1-9]\d?|paraphrased")


def is_route(mode: str) -> bool:
  """Whether a mode changes the path of questions."""
  return bool(_PATHS.fullmatch(mode))


class Routes:
  """The leaves of some questions, in every mode.

  Attributes:
    leaf: int32 [n], by the text of the question.
  """

  def __init__(self, retriever: Retriever, texts: Sequence[str], paraphrases: Sequence[str | None] = ()):
    """Embeds the questions.

    Args:
      retriever: encoder and tree.
      texts: what the retriever sees of each question.
      paraphrases: the same in other words, where there are such.
    """
    self._retriever, self._texts, self._paraphrases = retriever, list(texts), list(paraphrases)
    self._embeddings = retriever.encoder.encode(self._texts)
    self.leaf = retriever.tree.assign(self._embeddings)
    self._leaves = functools.cache(self._route)

  def leaves(self, mode: str, memory: MemoryConfig) -> np.ndarray:
    """Leaf ids int32 [n] to fetch in a mode, one of this module's or of `modes`.

    Raises:
      InputError: the tree has no such level, cluster or rank, or the questions have no paraphrases.
    """
    return self._leaves(mode) if is_route(mode) else mode_leaves(mode, self.leaf, memory)

  def _route(self, mode: str) -> np.ndarray:
    tree = self._retriever.tree
    kind, _, rest = mode.partition(" ")
    if kind == "rank":
      return kth_nearest_leaf(tree, self._embeddings, int(rest))
    if kind == "cut":
      words = [text.split() for text in self._texts]
      return self._retriever.route([" ".join(w[: max(1, len(w) * int(rest) // 100)]) for w in words])
    if kind == "paraphrased":
      if not self._paraphrases or None in self._paraphrases:
        raise InputError("mode 'paraphrased': the questions have no field `paraphrase`; add it, or leave the mode out")
      return self._retriever.route(self._paraphrases)
    if ":" in rest:
      pairs = [tuple(map(int, pair.split(":"))) for pair in rest.split()]
      return assign_excluding(tree, self._embeddings, exclude_clusters(tree, pairs))
    if int(rest) > tree.depth:
      raise InputError(f"mode {mode!r}: the tree has levels 1 to {tree.depth}; choose one of them")
    return assign_excluding(tree, self._embeddings, exclude_own_cluster(tree, self.leaf, int(rest)))
