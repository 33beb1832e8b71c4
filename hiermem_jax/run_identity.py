"""Which of the names that can be bound decide what a stage makes, and which only how it is done.

A stage that has finished, and a training that has a checkpoint, keep what decides their result: their identity. The
rest, the operation, a later command may bind to something else. Every name is in exactly one of the two tables, by its
owner, a verb or a constructor; an owner that is in none of them, as a source of another package, is identity.
"""

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

_SCHEDULE = ("peak_learning_rate", "final_learning_rate", "warmup_steps", "schedule_kind", "decay_steps")
_FILE = ("pattern", "required", "text_field", "max_shards", "max_records", "max_characters")

IDENTITY: dict[str, tuple[str, ...]] = {
  "train_tokenizer": ("corpus", "vocab_size", "tokenizer", "max_characters"),
  "cluster": ("corpus", "encoder", "tokenizer", "tokenizer_vocab_size", "directory", "tree", "read", "sample"),
  "prepare": ("train", "validation", "directory", "pack", "read"),
  "train": (
    *("directory", "model", "optimizer", "batch_size", "objective", "seed"),
    # A run that resumes reads neither; its configuration would tell of another beginning than it had.
    *("init_from", "init_bank_from"),
  ),
  "merge": ("subtrees", "generic", "directory"),
  "evaluate": (
    *("model", "baseline", "validation", "probes", "buckets", "modes", "rag", "attribution", "scoring", "directory"),
  ),
  "evaluate_tasks": (
    *("model", "tasks", "max_items", "articles", "modes", "rag", "frequency", "scoring", "directory"),
  ),
  "ModelConfig": ("anchor", "memory"),
  "AnchorConfig": (
    *("num_layers", "width", "num_heads", "head_dim", "mlp_width", "tied_embeddings", "vocab_size"),
    *("norm", "norm_eps", "qk_norm", "rope_base"),
    *("dtype", "gradient_dtype"),  # sums are rounded to them
  ),
  "MemoryConfig": ("rows", "branching", "kind", "layers", "part", "dtype"),
  "OptimizerConfig": (
    *("weight_decay", "beta1", "beta2", "epsilon", "clip_norm", "bank_update", "bank_moment_dtype", "no_decay"),
    *("anchor", "bank", "levels"),  # whether they have something of their own; see `is_past` for what that is
  ),
  "PartSettings": ("weight_decay", "beta1", "beta2"),
  "Objective": ("generic_probability", "z_loss", "frozen_anchor"),
  "ValidationConfig": ("sequences", "modes"),  # `best/` is chosen by them
  "PackConfig": ("length", "buckets", "tails", "num_shards", "seed", "shuffle_leaves"),
  "ReadConfig": ("window_tokens",),
  "TreeConfig": ("branching", "depth", "steps", "batch_size", "balance", "seed"),
  "WorldConfig": (
    *("seed", "domains", "kinds_per_domain", "entities_per_kind", "zipf_exponent", "min_mentions", "max_mentions"),
    *("mean_mentions", "probe_wording", "common_share", "validation_fraction", "max_probes"),
  ),
  "ModelFiles": ("directory", "tree", "tokenizer", "bank_dtype"),
  "ScoringConfig": ("max_length",),
  "RagConfig": ("documents", "level"),
  "FrequencyConfig": ("corpus", "buckets"),
  "TaskSet": ("names", "data", "shots"),
  "JsonlSource": _FILE,
  "ParquetSource": _FILE,
  "TextSource": (*_FILE, "one_per_line"),
  "TfdsSource": ("name", "split", "max_records", "drop_markers"),
  "WorldSource": ("world", "split", "max_records"),
  "LsaEncoder": ("dim", "num_features", "word_ngrams", "max_words", "seed"),
  "SentenceTransformer": ("model", "max_word_pieces", "dtype"),
}

OPERATION: dict[str, tuple[str, ...]] = {
  "cluster": ("beam",),
  "prepare": (
    "beam",
    *("tokenizer", "tree"),  # paths: the dataset keeps the fingerprints of both
  ),
  # Nothing is kept of what these two print, or of the order in which a chain calls its stages.
  "describe": ("context_length", "topology", "num_slices", "devices"),
  "compile_pod": ("topology", "num_slices", "length"),
  "run": ("stages",),
  "train": (
    "dataset",  # a path: checkpoints keep the fingerprint of the dataset
    "steps",  # see `is_past`
    *("validation", "profile_steps", "wandb_project", "mesh", "microbatches", "steps_per_call"),
    *("checkpoints", "log_every", "max_skipped"),
  ),
  "merge": ("mesh",),
  "evaluate": ("title",),
  "evaluate_tasks": ("title",),
  "AnchorConfig": ("remat", "unroll", "attention", "splash_blocks", "logits_chunk"),
  "OptimizerConfig": _SCHEDULE,  # see `is_past`
  "PartSettings": _SCHEDULE,
  "MeshConfig": ("slices", "context", "model", "rules"),
  "CheckpointConfig": ("every", "keep", "keep_every", "skip_damaged"),
  "ValidationConfig": (
    "dataset",  # a path: checkpoints keep the fingerprint of the dataset
    *("every", "others"),
  ),
  "BeamConfig": ("runner", "options"),
  "ReadConfig": ("max_bad_share",),
  "ScoringConfig": ("batch_size",),
  "TfdsSource": ("data_dir",),
  "WorldSource": ("data_dir",),
  "SentenceTransformer": ("batch_word_pieces",),
}

_PAST = {"train.steps", *(f"{owner}.{name}" for owner in ("OptimizerConfig", "PartSettings") for name in _SCHEDULE)}


@dataclasses.dataclass(frozen=True)
class Setting:
  """The value of one name, as text.

  Attributes:
    value: bound to it.
    default: of the code; None where it must be bound.
    parent: the name whose value it is a part of; "" for an argument of a verb.
    path: where it is: an argument of the verb, and the attribute, or the place in a tuple, at each step further in.
  """

  value: str
  default: str | None
  parent: str
  path: tuple[str | int, ...] = ()


def is_operation(name: str) -> bool:
  """Whether a name, e.g. 'train.log_every', only says how a stage is done; a place may stand before it."""
  owner, _, field = short(name).partition(".")
  return field in OPERATION.get(owner, ())


def is_past(name: str) -> bool:
  """Whether the learning rates follow from a name: it may change as long as no step that is done had another rate."""
  return short(name) in _PAST


def short(name: str) -> str:
  """A name without the place before it: 'prepare.validation: WorldSource.split' is WorldSource.split."""
  return name.rpartition(": ")[2]


def changed(held: Mapping[str, str], now: Mapping[str, Setting]) -> dict[str, tuple[str, str]]:
  """The names whose value is another one than before: name -> (value before, value now).

  A name that the record does not have yet had its default. One that the code does not have any more says nothing. What
  belongs to an object that is new, or of another class, is not listed beside it.

  Args:
    held: values of an earlier run, perhaps of an earlier version.
    now: values of this one.
  """
  found: dict[str, tuple[str, str]] = {}
  elsewhere = set()  # names of objects that are new or of another class, and of what is in them
  for name, setting in now.items():
    before = held.get(name, setting.default)
    if setting.parent in elsewhere:
      elsewhere.add(name)
    elif before != setting.value:
      found[name] = ("nothing" if before is None else before, setting.value)
      elsewhere.add(name)
  return found


def same(value: Any, other: Any) -> bool:
  """Whether two objects, e.g. of a constructor, are the same but for their operation."""
  if type(value) is not type(other) or not dataclasses.is_dataclass(value):
    return value == other
  owner = type(value).__name__
  names = [field.name for field in dataclasses.fields(value) if not is_operation(f"{owner}.{field.name}")]
  return all(same(getattr(value, name), getattr(other, name)) for name in names)


def other_rate(run: Any, before: Mapping[tuple[str | int, ...], str], done: int) -> tuple[int, float, float] | None:
  """The first step whose learning rate was another one than it would be now.

  Args:
    run: the `TrainingRun` as it is now.
    before: values, as text, that parts of it had, by their paths in it.
    done: steps that are done.

  Returns:
    The step, from 1, its rate, and what it would be; None where all are the same.
  """
  import numpy as np

  was = run
  for path, text in before.items():
    was = _replaced(was, path, ast.literal_eval(text))
  schedules = [each.optimizer.schedules(each.steps, each.model.memory) for each in (was, run)]
  for name in schedules[0].keys() | schedules[1].keys():
    old, new = (np.broadcast_to(each.get(name, each["learning_rate"])(np.arange(done)), done) for each in schedules)
    if len(differs := np.flatnonzero(old != new)):
      return int(differs[0]) + 1, float(old[differs[0]]), float(new[differs[0]])
  return None


def _replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
  """An object with another value at a path in it."""
  if not path:
    return new
  if isinstance(value, tuple):
    return tuple(_replaced(part, path[1:], new) if place == path[0] else part for place, part in enumerate(value))
  name = str(path[0])
  return dataclasses.replace(value, **{name: _replaced(getattr(value, name), path[1:], new)})
