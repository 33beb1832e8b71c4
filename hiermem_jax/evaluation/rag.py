"""The RAG baseline: the nearest document of the training corpus in front of a question (paper, Appendix H, Table 3)."""

from collections.abc import Sequence

import numpy as np

from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.retrieval.document_index import DocumentIndex
from hiermem_jax.retrieval.retriever import Retriever


class Documents:
  """Documents to put in front of questions.

  Attributes:
    text_bytes: of all documents, UTF-8.
  """

  def __init__(self, texts: Sequence[str], retriever: Retriever, tokenizer: Tokenizer, level: int = 3):
    """Indexes the documents; see `DocumentIndex`."""
    self._texts, self._retriever, self._tokenizer = list(texts), retriever, tokenizer
    self._index = DocumentIndex(retriever, self._texts, level)
    self.text_bytes = sum(len(text.encode()) for text in self._texts)

  def prepend(
    self, prompts: Sequence[Sequence[int]], questions: Sequence[str], following: int, max_length: int
  ) -> list[list[int]]:
    """Prompts behind the document that is nearest to their question, and a line break.

    Args:
      prompts: n token lists.
      questions: what the retriever sees of each.
      following: tokens that must fit behind a prompt.
      max_length: of document, prompt and what follows; documents lose their end to fit.

    Returns:
      n token lists; a question whose cluster has no document stays as it is.
    """
    distinct = list(dict.fromkeys(questions))
    nearest = dict(zip(distinct, self._index.nearest(self._retriever.encoder.encode(distinct)).tolist()))
    wanted = sorted({number for number in nearest.values() if number >= 0})
    ids = dict(zip(wanted, self._tokenizer.encode_batch([self._texts[number] for number in wanted])))
    line_break, result = self._tokenizer.encode("\n"), []
    for prompt, question in zip(prompts, questions):
      room = max_length - following - len(prompt) - len(line_break)
      document = ids.get(nearest[question], [])[: max(room, 0)]
      result.append([*document, *line_break, *prompt] if document else list(prompt))
    return result


def relative_flops(
  anchor: AnchorConfig, memory: MemoryConfig | None, lengths: np.ndarray, plain_lengths: np.ndarray
) -> float:
  """Forward FLOPs of prompts, over those of the plain prompts under the anchor alone.

  Args:
    anchor: the anchor.
    memory: what is fetched, or None.
    lengths: int [n] tokens of each prompt.
    plain_lengths: int [n] the same without documents.
  """

  def flops(lengths, memory):
    extra = ModelConfig(anchor=anchor, memory=memory).memory_flops_per_token
    return sum(n * (anchor.flops_per_token(n) + extra) for n in lengths.tolist())

  return flops(lengths, memory) / flops(plain_lengths, None)
