"""What an evaluation is told: where the model is, how text is scored, which tasks, which documents.

Importing this module loads neither jax nor TensorFlow, so that the command line starts quickly.
"""

import dataclasses
from typing import Literal

from hiermem_jax.data.sources import Source
from hiermem_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFiles:
  """Where a trained model is, with the tree and the tokenizer that it was trained with.

  Relative paths start in the run directory.

  Attributes:
    directory: of its training; `checkpoints/` is in it.
    tree: directory of the cluster tree and its encoder; read where the model has a bank, or documents are retrieved.
    tokenizer: path of the tokenizer.
    bank_dtype: type that the bank has in memory; None is the one that it is stored in. An anchor that computes in
      bfloat16 fetches the same bits from a float32 bank and from one in bfloat16, which takes half of the memory.
  """

  directory: str = "."
  tree: str = "tree"
  tokenizer: str = "tokenizer.model"
  bank_dtype: Literal["float32", "bfloat16"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig:
  """How text is scored.

  Attributes:
    batch_size: sequences scored at once.
    max_length: tokens of a prompt and what follows it, together. Longer prompts lose their beginning and are counted;
      longer documents are scored in windows.
  """

  batch_size: int = 64
  max_length: int = 2048

  def __post_init__(self):
    """Rejects sizes that nothing fits in."""
    for name in ("batch_size", "max_length"):
      if getattr(self, name) < 1:
        raise InputError(f"ScoringConfig.{name} = {getattr(self, name)}: must be positive; bind another value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RagConfig:
  """What the 'rag' modes put in front of a question: the nearest document of the question's cluster.

  Attributes:
    documents: where documents come from, as a rule the training text.
    level: tree level of the clusters that are searched (paper, Appendix H: 3).
  """

  documents: Source
  level: int = 3

  def __post_init__(self):
    """Rejects what is no level."""
    if self.level < 1:
      raise InputError(f"RagConfig.level = {self.level}: bind a level of the tree, from 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrequencyConfig:
  """How questions with a subject are sorted by how often the training text names it.

  Attributes:
    corpus: the training text.
    buckets: how many buckets of nearly equal size there are.
  """

  corpus: Source
  buckets: int = 5

  def __post_init__(self):
    """Rejects a number that is not positive."""
    if self.buckets < 1:
      raise InputError(f"FrequencyConfig.buckets = {self.buckets}: bind a positive number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSet:
  """Tasks to evaluate.

  Attributes:
    names: see data/tasks/table.py; 'cloze=/data/mine.jsonl' gives the path of the file as well.
    data: directory of the tasks' files.
    shots: few-shot examples in front of each question; None: as many as the paper has for the task.
  """

  names: tuple[str, ...] = ()
  data: str | None = None
  shots: int | None = None

  def __post_init__(self):
    """Rejects a negative number."""
    if self.shots is not None and self.shots < 0:
      raise InputError(f"TaskSet.shots = {self.shots}: bind 0 or a positive number, or None")
