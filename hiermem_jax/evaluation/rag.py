"""The RAG baseline: the nearest document of the training corpus in front of a question (paper, Appendix H, Table 3)."""

from collections.abc import Sequence

import numpy as np

from hiermem_jax.data.corpus.reading import good_texts
from hiermem_jax.data.sources import resolve_data_dir
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.evaluation.config import RagConfig
from hiermem_jax.evaluation.loading import LoadedModel
from hiermem_jax.models.config import ModelConfig
from hiermem_jax.retrieval.document_index import DocumentIndex
from hiermem_jax.retrieval.retriever import Retriever


class Documents:
  """Documents to put in front of questions.

  Attributes:
    text_bytes: UTF-8 bytes of all documents together.
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
      n token lists; a prompt whose question's cluster has no document is unchanged.
    """
    distinct = list(dict.fromkeys(questions))
    nearest = dict(zip(distinct, self._index.nearest(self._retriever.encoder.encode(distinct)).tolist()))
    wanted = sorted({number for number in nearest.values() if number >= 0})
    ids = dict(zip(wanted, self._tokenizer.encode_batch([self._texts[number] for number in wanted])))
    line_break, result = self._tokenizer.encode("\n"), []
    for prompt, question in zip(prompts, questions):
      remaining = max_length - following - len(prompt) - len(line_break)
      document = ids.get(nearest[question], [])[: max(remaining, 0)]
      result.append([*document, *line_break, *prompt] if document else list(prompt))
    return result


def load_documents(config: RagConfig, run_dir: str, loaded: LoadedModel) -> Documents:
  """Reads and indexes documents; relative paths start in `run_dir`."""
  assert loaded.retriever is not None  # loaded with `needs_tree`
  texts = good_texts(resolve_data_dir(config.documents, run_dir))
  return Documents(list(texts), loaded.retriever, loaded.tokenizer, config.level)


def relative_flops(model: ModelConfig, lengths: np.ndarray, plain_lengths: np.ndarray) -> float:
  """Forward FLOPs of prompts under a model, over those of the plain prompts under its anchor alone.

  Args:
    model: the anchor and what is fetched.
    lengths: int [n] tokens of each prompt.
    plain_lengths: int [n] the same without documents.
  """
  plain = sum(n * model.anchor.flops_per_token(n) for n in plain_lengths.tolist())
  return sum(n * model.flops_per_token(n) for n in lengths.tolist()) / plain
