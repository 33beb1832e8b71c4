"""A model in all the modes of its memory that an evaluation asks for."""

import functools
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from hiermem_jax.evaluation.modes import check_mode, keep_levels, mode_levels
from hiermem_jax.evaluation.routes import Routes, is_route
from hiermem_jax.evaluation.scoring import Scorer
from hiermem_jax.models.bank import NO_MEMORY
from hiermem_jax.models.model import Model
from hiermem_jax.retrieval.retriever import Retriever


class MemoryModes:
  """Scorers and leaves by mode; see `modes` and `routes` for what modes there are."""

  def __init__(self, model: Model, mesh: Mesh, retriever: Retriever | None, modes: Sequence[str], **settings):
    """Prepares the modes.

    Args:
      model: the model.
      mesh: where its parameters are.
      retriever: of its bank; None where it has none.
      modes: those that will be asked for.
      **settings: of `Scorer`.

    Raises:
      InputError: there is no such mode, or the model has no bank for it.
    """
    for mode in modes:
      if model.memory is None or not is_route(mode):
        check_mode(mode, model.memory)
    self._model, self._retriever = model, retriever
    self._scorer = functools.cache(lambda levels: Scorer(keep_levels(model, levels), mesh, **settings))
    self._routed = functools.lru_cache(maxsize=2)(self._route)

  def of_questions(self, mode: str, texts: Sequence[str]) -> tuple[Scorer, np.ndarray]:
    """The scorer of a mode, and the leaf ids int32 [n] of questions whose retriever sees `texts`."""
    if self._model.memory is None or mode == "none":
      return self._scorer(None), np.full(len(texts), NO_MEMORY, np.int32)
    distinct = tuple(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(distinct)}
    leaf = self._routed(distinct).leaves(mode, self._model.memory)
    return self._scorer(mode_levels(mode)), leaf[[place[text] for text in texts]]

  def _route(self, texts: tuple[str, ...]) -> Routes:
    return Routes(self._retriever, texts)
