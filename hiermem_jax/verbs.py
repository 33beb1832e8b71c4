"""The verbs of the command line, in the order of the data flow, and what each takes.

A verb is a function of keyword arguments in the module of the same name: `hiermem_jax/train.py` has `train`. This table
is all that the command line, the configuration and the tools around them need to know of a verb before it is imported.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

_EVERY = ("gin_file", "gin_bindings")
_RUN = (*_EVERY, "run_dir", "validate_only", "verbose")
_BEAM = ("skip_bad_records", "runner", "pipeline_option")
_ON_DEVICES = ("compilation_cache", "distributed", "coordinator_address", "num_processes", "process_id")
_PRINTED = ("json", "topology", "num_slices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
  """One verb.

  Attributes:
    name: of the module and of its function.
    help: what it does, one line without a full stop.
    flags: that it takes, by their names in `cli`; no others are accepted.
    trains: whether it trains. Such a run owns its directory (its configuration is RUN_DIR/config.gin), and a process
      that is told to end saves its state first.
    replaces: whether a second run in a directory may have another configuration; the newer one is kept.
    takes_fields_of: an argument of the function that is a dataclass. Its fields are bound as arguments of the verb
      itself: `train.steps`.
    reads: arguments of the function that are not bound themselves: a dataclass made of what is bound to another verb,
      whose name is given. See `configuration.call`.
    looks: whether it looks at runs that are there. It writes nothing into them, and takes no configuration of its own.
    positional: what its arguments without a flag are, e.g. 'RUN RUN...'; "" where it takes none.
    made: files below its argument `directory`, one of which is there when it has finished; in braces, an argument.
  """

  name: str
  help: str
  flags: tuple[str, ...]
  trains: bool = False
  replaces: bool = False
  takes_fields_of: str | None = None
  reads: tuple[tuple[str, str], ...] = ()
  looks: bool = False
  positional: str = ""
  made: tuple[str, ...] = ()

  @property
  def module(self) -> str:
    """Full name of its module."""
    return f"hiermem_jax.{self.name}"

  @property
  def has_run_dir(self) -> bool:
    """Whether it fills a run directory; otherwise it prints."""
    return "run_dir" in self.flags and not self.looks

  @property
  def distributed(self) -> bool:
    """Whether it can be one of several processes."""
    return "distributed" in self.flags

  @property
  def saved_as(self) -> str:
    """Name of its configuration in the run directory."""
    return "config.gin" if self.trains else f"{self.name}.config.gin"


_ALL = (
  Verb(name="train_tokenizer", help="trains a SentencePiece tokenizer on a small corpus", flags=_RUN),
  Verb(
    name="cluster",
    help="learns the cluster tree of a corpus, and a tokenizer",
    flags=(*_RUN, *_BEAM),
    made=("report.json",),
  ),
  Verb(
    name="prepare",
    help="routes a corpus to the tree's leaves and packs it for training",
    flags=(*_RUN, *_BEAM),
    made=("train/manifest.json", "train/decomposition.json"),
  ),
  Verb(
    name="describe",
    help="prints the parameters, FLOPs and bytes of a run; compares runs; lists what can be bound",
    flags=(*_EVERY, *_PRINTED, "diff", "params"),
    reads=(("run", "train"), ("prepared", "prepare"), ("clustered", "cluster")),
  ),
  Verb(
    name="compile_pod",
    help="compiles the training step for a TPU pod on a machine without one, and prints what it needs",
    flags=(*_EVERY, *_PRINTED),
    reads=(("run", "train"), ("prepared", "prepare")),
  ),
  Verb(
    name="train",
    help="trains an anchor, or an anchor with its memory bank, on a packed dataset",
    flags=(*_RUN, "skip_damaged_checkpoints", *_ON_DEVICES),
    trains=True,
    takes_fields_of="run",
    made=("checkpoints/{steps}",),
  ),
  Verb(
    name="merge",
    help="assembles the bank that was trained one subtree at a time",
    flags=(*_RUN, *_ON_DEVICES),
    made=("checkpoints",),
  ),
  Verb(
    name="evaluate",
    help="measures held-out perplexity and probe accuracy in every mode of the memory",
    flags=(*_RUN, *_ON_DEVICES),
    replaces=True,
  ),
  Verb(
    name="evaluate_tasks",
    help="measures public question sets and articles in every mode of the memory",
    flags=(*_RUN, *_ON_DEVICES),
    replaces=True,
  ),
  Verb(
    name="inspect",
    help="shows what a run's cluster tree, memory blocks and training text look like",
    flags=("run_dir", "tree", "leaf", "text", "token_budget", "json"),
    looks=True,
  ),
  Verb(
    name="compare",
    help="compares runs: configurations, loss curves, and results with intervals",
    flags=("out", "json"),
    looks=True,
    positional="RUN RUN...",
  ),
  Verb(
    name="run",
    help="runs a chain of these verbs from one gin file",
    flags=(*_RUN, "stages", *_BEAM, "skip_damaged_checkpoints", *_ON_DEVICES),
    trains=True,
  ),
)
VERBS = {verb.name: verb for verb in _ALL}
CONFIGURED = {verb.name: verb for verb in _ALL if not verb.looks}  # those that gin configures


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """A stage of a chain: a verb with its bindings.

  Attributes:
    name: the verb, behind its scope where it has one, e.g. 'cotrain/train'.
    call: the verb, which takes `run_dir`.
    number: place in the chain, from 1.
    total: stages of the chain.
  """

  name: str
  call: Callable[..., Any]
  number: int
  total: int

  @property
  def verb(self) -> str:
    """Name of the verb."""
    return self.name.rpartition("/")[2]

  @property
  def title(self) -> str:
    """What the console calls it, e.g. '5/6 train cotrain'."""
    scope = self.name.rpartition("/")[0]
    return f"{self.number}/{self.total} {self.verb} {scope}".rstrip()

  def __call__(self, *, run_dir: str) -> None:
    """Runs it."""
    self.call(run_dir=run_dir)
