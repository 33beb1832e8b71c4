"""The retrieval of the RAG baseline: the document nearest to a question, among those of the question's cluster."""

from collections.abc import Sequence

import numpy as np

from hiermem_jax.retrieval.retriever import Retriever

_CHUNK = 4096  # documents that are embedded at a time


class DocumentIndex:
  """Embeddings of documents, sorted by their clusters on one level (paper, Appendix H: level 3).

  It needs 4 * E bytes of memory per document, where E is the length of an embedding.
  """

  def __init__(self, retriever: Retriever, texts: Sequence[str], level: int = 3):
    """Embeds the documents and finds their clusters.

    Args:
      retriever: encoder and tree.
      texts: the documents.
      level: of the clusters. If the tree has fewer levels, its leaves are the clusters.
    """
    self._tree, self._level = retriever.tree, min(level, retriever.tree.depth)
    chunks = [retriever.encoder.encode(texts[start : start + _CHUNK]) for start in range(0, len(texts), _CHUNK)]
    self._embeddings = np.concatenate(chunks)
    cluster = self._clusters(self._embeddings)
    self._order = np.argsort(cluster, kind="stable")
    edges = np.arange(retriever.tree.branching**self._level + 1)
    self._starts = np.searchsorted(cluster[self._order], edges)

  def nearest(self, embeddings: np.ndarray) -> np.ndarray:
    """Finds the nearest document (L2) in the cluster of each question.

    Args:
      embeddings: float32 [n, E], of the questions.

    Returns:
      int64 [n], numbers of the documents; -1 if the question's cluster has no document.
    """
    result = np.full(len(embeddings), -1, np.int64)
    for number, cluster in enumerate(self._clusters(embeddings)):
      documents = self._order[self._starts[cluster] : self._starts[cluster + 1]]
      if len(documents):
        distance = np.square(self._embeddings[documents] - embeddings[number]).sum(axis=1)
        result[number] = documents[distance.argmin()]
    return result

  def _clusters(self, embeddings: np.ndarray) -> np.ndarray:
    return self._tree.ancestors(self._tree.assign(embeddings))[:, self._level - 1]
