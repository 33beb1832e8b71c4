"""Modes of the memory: which memory a measurement gives to the model.

none               no memory
generic            the context-independent memory
fetched            the blocks on the path that the retriever finds for the question
wrong              the blocks at the same place of another level-1 subtree, drawn at random: none of them is on the path
levels 1 2         of the blocks on the path, those of these levels alone; any levels, e.g. 'levels 3'
blocked 3          the path that the retriever finds when the question's own level-3 cluster is excluded (Figure 6b)
blocked 1:5 3:60   the path without these clusters, given as level:number, for all questions alike
rank 2             the leaf that is second nearest to the question
cut 50             the path of the first 50% of the question's words
paraphrased        the path of the question in other words
rag fetched        'fetched', and the nearest document of the training corpus in front of the question; any mode may
                   stand behind 'rag'
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np
from jax.sharding import Mesh

from hiermem_jax.errors import InputError
from hiermem_jax.evaluation.config import ScoringConfig
from hiermem_jax.evaluation.scoring import Scorer
from hiermem_jax.models.bank import NO_MEMORY, table_name
from hiermem_jax.models.config import MemoryConfig
from hiermem_jax.models.model import Model
from hiermem_jax.retrieval.retriever import Retriever
from hiermem_jax.retrieval.search import assign_excluding, exclude_clusters, exclude_own_cluster, kth_nearest_leaf

_CHOICES = (
  "none, generic, fetched, wrong, 'levels 1 2', 'blocked 3', 'blocked 1:5', 'rank 2', 'cut 50', paraphrased, or one of"
  " these behind 'rag '"
)
_GRAMMAR = re.compile(
  r"(?P<document>rag )?"
  r"((?P<path>none|generic|fetched|wrong|paraphrased)"
  r"|levels(?P<levels>( [1-9])+)"
  r"|blocked (?P<level>[1-9])"
  r"|blocked(?P<clusters>( \d+:\d+)+)"
  r"|rank (?P<rank>[1-9]\d*)"
  r"|cut (?P<percent>[1-9]\d?))"
)
_OF_QUESTIONS = ("blocked", "rank", "cut", "paraphrased")  # paths that are found from the question's text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
  """A mode of the memory; `Mode.parse` makes one of its name.

  Attributes:
    name: as users write it.
    path: 'none', 'generic', 'fetched', 'wrong', 'blocked', 'rank', 'cut' or 'paraphrased'.
    levels: of the blocks on the path, the levels that are used; None: all.
    level: 'blocked': the level of the question's own cluster that is excluded; None where `clusters` are.
    clusters: 'blocked': the (level, number) of the clusters that are excluded.
    rank: 'rank': which leaf it is by its distance, from 1.
    percent: 'cut': the share of the words that the retriever sees.
    document: whether a document stands in front of the question.
  """

  name: str
  path: str
  levels: tuple[int, ...] | None = None
  level: int | None = None
  clusters: tuple[tuple[int, int], ...] = ()
  rank: int = 1
  percent: int = 100
  document: bool = False

  @classmethod
  def parse(cls, name: str) -> "Mode":
    """The mode of that name.

    Raises:
      InputError: there is none.
    """
    match = _GRAMMAR.fullmatch(name)
    if match is None:
      raise InputError(f"mode {name!r}: choose from {_CHOICES}")
    part, document = match.groupdict(), match["document"] is not None
    if part["levels"]:
      levels = tuple(sorted(set(map(int, part["levels"].split()))))
      return cls(name=name, path="fetched", levels=levels, document=document)
    if part["level"]:
      return cls(name=name, path="blocked", level=int(part["level"]), document=document)
    if part["clusters"]:
      pairs = [pair.split(":") for pair in part["clusters"].split()]
      clusters = tuple((int(level), int(number)) for level, number in pairs)
      return cls(name=name, path="blocked", clusters=clusters, document=document)
    if part["rank"]:
      return cls(name=name, path="rank", rank=int(part["rank"]), document=document)
    if part["percent"]:
      return cls(name=name, path="cut", percent=int(part["percent"]), document=document)
    return cls(name=name, path=part["path"], document=document)

  @property
  def needs_questions(self) -> bool:
    """Whether the mode looks at the text of questions; packed text, which has leaf ids alone, cannot have it."""
    return self.document or self.path in _OF_QUESTIONS

  def check(self, memory: MemoryConfig | None) -> None:
    """Checks that a model has the memory that the mode asks for.

    Args:
      memory: of the model, or None.

    Raises:
      InputError: it has not.
    """
    if memory is None:
      if self.path != "none":
        raise InputError(f"mode {self.name!r}: the checkpoint has no bank; choose 'none', or a model that has one")
      return
    if missing := sorted(set(self.levels or ()) - set(memory.levels)):
      raise InputError(f"mode {self.name!r}: rows {memory.rows} has none on levels {missing}; leave them out")
    levels = [level for level, _ in self.clusters] + ([] if self.level is None else [self.level])
    if any(not 1 <= level <= memory.depth for level in levels):
      raise InputError(f"mode {self.name!r}: the tree has levels 1 to {memory.depth}; choose one of them")
    for level, number in self.clusters:
      if number >= memory.branching**level:
        raise InputError(
          f"mode {self.name!r}: level {level} of the tree has clusters 0 to {memory.branching**level - 1}; choose one"
        )
    if self.rank > memory.num_leaves:
      raise InputError(f"mode {self.name!r}: the tree has {memory.num_leaves} leaves; choose 1 to {memory.num_leaves}")


def parse_modes(names: Iterable[str], memory: MemoryConfig | None) -> list[Mode]:
  """Parses modes that a model is to be measured in, and checks that it has the memory for them.

  Raises:
    InputError: there is no such mode, one is named twice, or the model has no memory for it.
  """
  modes = [Mode.parse(name) for name in names]
  for number, mode in enumerate(modes):
    mode.check(memory)
    if mode in modes[:number]:
      raise InputError(f"mode {mode.name!r}: named twice; leave one out")
  return modes


def path_leaves(mode: Mode, leaf: np.ndarray, memory: MemoryConfig, seed: int = 0) -> np.ndarray:
  """Leaf ids whose blocks a mode uses, for text that has leaf ids and is no question.

  Args:
    mode: one that does not need questions.
    leaf: int32 [n] leaf ids of the text.
    memory: of the model.
    seed: of the wrong paths.

  Returns:
    int32 [n].
  """
  if mode.path == "none":
    return np.full_like(leaf, NO_MEMORY)
  if mode.path == "generic":
    return np.full_like(leaf, memory.num_leaves)
  if mode.path == "wrong":
    subtree = memory.num_leaves // memory.branching
    subtrees = np.random.default_rng(seed).integers(1, memory.branching, size=leaf.shape)
    return ((leaf + subtrees * subtree) % memory.num_leaves).astype(leaf.dtype)
  if mode.path == "fetched":
    return leaf
  raise ValueError(f"mode {mode.name!r} needs the text of questions")


def keep_levels(model: Model, levels: tuple[int, ...] | None) -> Model:
  """The model with the tables of some levels alone; None: of all."""
  memory = model.memory
  if levels is None or memory is None:
    return model
  rows = tuple(rows if level in levels else 0 for level, rows in enumerate(memory.rows, start=1))
  bank = {table_name(level): model.params["bank"][table_name(level)] for level in levels}
  config = dataclasses.replace(model.config, memory=dataclasses.replace(memory, rows=rows))
  return dataclasses.replace(model, config=config, params=model.params | {"bank": bank})


class QuestionPaths:
  """Some questions, embedded once, and the leaf of each in every mode.

  Attributes:
    leaf: int32 [n], the leaf that the retriever finds.
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
    self._found = functools.cache(self._find)

  def leaves(self, mode: Mode, memory: MemoryConfig) -> np.ndarray:
    """Leaf ids int32 [n] whose blocks a mode uses.

    Raises:
      InputError: the questions have no paraphrases, or the excluded clusters leave no path.
    """
    return self._found(mode) if mode.path in _OF_QUESTIONS else path_leaves(mode, self.leaf, memory)

  def _find(self, mode: Mode) -> np.ndarray:
    tree = self._retriever.tree
    if mode.path == "rank":
      return kth_nearest_leaf(tree, self._embeddings, mode.rank)
    if mode.path == "cut":
      words = [text.split() for text in self._texts]
      return self._retriever.route([" ".join(w[: max(1, len(w) * mode.percent // 100)]) for w in words])
    if mode.path == "paraphrased":
      paraphrases = [text for text in self._paraphrases if text is not None]
      if len(paraphrases) < len(self._texts):
        raise InputError("mode 'paraphrased': the questions have no field `paraphrase`; add it, or leave the mode out")
      return self._retriever.route(paraphrases)
    if mode.level is None:
      excluded = exclude_clusters(tree, mode.clusters)
    else:
      excluded = exclude_own_cluster(tree, self.leaf, mode.level)
    return assign_excluding(tree, self._embeddings, excluded)


class MemoryModes:
  """A model, ready to be measured in any mode; the modes that use the same tables share their compiled functions.

  Attributes:
    model: the model.
    config: how text is scored.
  """

  def __init__(
    self,
    model: Model,
    mesh: Mesh,
    retriever: Retriever | None,
    config: ScoringConfig = ScoringConfig(),  # noqa: B008 (frozen)
    *,
    bos_id: int = 0,
  ):
    """Prepares to measure.

    Args:
      model: the model.
      mesh: where its parameters are.
      retriever: encoder and tree of its bank; None where it has none.
      config: how many sequences at once, and of what length.
      bos_id: the input at the beginning of a document.
    """
    self.model, self.config, self._retriever = model, config, retriever
    settings = dataclasses.asdict(config) | {"bos_id": bos_id}
    self._scorer = functools.cache(lambda levels: Scorer(keep_levels(model, levels), mesh, **settings))
    self._paths = functools.lru_cache(maxsize=2)(self._embed)

  def scorer(self, mode: Mode) -> Scorer:
    """The scorer of the model with the levels that the mode uses."""
    return self._scorer(mode.levels)

  def leaves(self, mode: Mode, texts: Sequence[str], paraphrases: Sequence[str | None] = ()) -> np.ndarray:
    """Leaf ids int32 [n] of questions in a mode.

    Args:
      mode: one that the model has the memory for.
      texts: what the retriever sees of each question.
      paraphrases: the same in other words, where there are such.

    Raises:
      InputError: see `QuestionPaths.leaves`.
    """
    if self.model.memory is None or mode.path == "none" or not texts:
      return np.full(len(texts), NO_MEMORY, np.int32)
    # Equal questions, such as the options of one item, are embedded once.
    questions = list(zip(texts, paraphrases or [None] * len(texts)))
    distinct = tuple(dict.fromkeys(questions))
    place = {question: number for number, question in enumerate(distinct)}
    leaf = self._paths(distinct).leaves(mode, self.model.memory)
    return leaf[[place[question] for question in questions]]

  def _embed(self, questions: tuple[tuple[str, str | None], ...]) -> QuestionPaths:
    assert self._retriever is not None  # the loader reads that of a model with a bank
    return QuestionPaths(self._retriever, *zip(*questions))
