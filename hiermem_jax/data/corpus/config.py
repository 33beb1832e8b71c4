"""Settings of the pipelines that users bind: how documents are read, and how windows become a packed dataset."""

import dataclasses
from typing import Any

from hiermem_jax.data.text.windows import LONGEST_CHARACTER
from hiermem_jax.errors import InputError

TAILS = ("pad", "drop", "mix")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadConfig:
  """How the documents of a corpus are read, by `cluster` and by `prepare`.

  Attributes:
    window_tokens: largest number of tokens in a window. A longer document is cut into several windows; each window has
      one embedding and one leaf (paper, Appendix C).
    max_bad_share: share of malformed records above which the run fails.

  Raises:
    InputError: a value is out of range.
  """

  window_tokens: int = 2048
  max_bad_share: float = 0.001

  def __post_init__(self):
    if self.window_tokens < LONGEST_CHARACTER:
      raise InputError(f"ReadConfig.window_tokens = {self.window_tokens}: give at least {LONGEST_CHARACTER}")
    if not 0 <= self.max_bad_share <= 1:
      raise InputError(f"ReadConfig.max_bad_share = {self.max_bad_share}: give a share from 0 to 1")

  def identity(self) -> dict[str, Any]:
    """The settings that decide what is read. `max_bad_share` does not: it only decides whether the run fails."""
    return {name: value for name, value in dataclasses.asdict(self).items() if name != "max_bad_share"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackConfig:
  """How the windows of a corpus become a packed dataset (paper, Appendix A.2).

  Attributes:
    length: positions of a sequence, S.
    buckets: several lengths of sequences, each twice the one before, for dataset decomposition (paper, Appendix A.1;
      see packed/decomposition.py). They replace `length`. Documents are then not cut into windows, and there must be no
      tree.
    tails: what becomes of the last sequence of a leaf when it is incomplete: "pad" fills it with padding, "drop" leaves
      it out, "mix" packs it together with those of the leaf's siblings in the tree. With `buckets`, what becomes of the
      last tokens of a document, too few for the shortest length: "pad" packs those of several documents into one
      sequence, "drop" leaves them out.
    num_shards: files to write, per length of sequences; fewer where there are few sequences.
    seed: of all random orders.
    shuffle_leaves: for a control experiment only. Every window gets the leaf of a random window, so that a leaf says
      nothing about its text any more. Gains of fetched memories on such a dataset do not come from retrieval.

  Raises:
    InputError: a value is out of range.
  """

  length: int = 2048
  buckets: tuple[int, ...] = ()
  tails: str = "pad"
  num_shards: int = 8
  seed: int = 0
  shuffle_leaves: bool = False

  def __post_init__(self):
    for name, smallest in (("length", 1), ("num_shards", 1), ("seed", 0)):
      if getattr(self, name) < smallest:
        raise InputError(f"PackConfig.{name} = {getattr(self, name)}: give at least {smallest}")
    if self.tails not in TAILS:
      raise InputError(f"PackConfig.tails = {self.tails!r}: give one of {', '.join(TAILS)}")
    if self.buckets and (self.buckets[0] < 1 or any(b != 2 * a for a, b in zip(self.buckets, self.buckets[1:]))):
      raise InputError(
        f"PackConfig.buckets = {self.buckets}: give lengths that double, e.g. (256, 512, 1024), or () for one length"
      )

  @property
  def lengths(self) -> tuple[int, ...]:
    """Lengths of the sequences, ascending."""
    return self.buckets or (self.length,)

  def check_tree(self, has_tree: bool) -> None:
    """Checks that the settings can be used with a tree, or without one.

    Raises:
      InputError: they cannot.
    """
    if self.buckets and has_tree:
      raise InputError(
        f"PackConfig.buckets = {self.buckets}: decomposed documents have no leaf; bind prepare.tree = None"
      )
    if self.tails == "mix" and not has_tree:
      raise InputError("PackConfig.tails = 'mix': without a tree no leaf has siblings; give 'pad' or 'drop'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
  """What `prepare` is bound to, as far as it decides which sequences a run trains on."""

  pack: PackConfig = PackConfig()

  def batches(self, batch_size: int) -> dict[int, int]:
    """Length of sequences -> how many a batch has of them, longest first.

    `batch_size` counts sequences of the longest; a batch of shorter ones has the same number of tokens.
    """
    longest = max(self.pack.lengths)
    return {length: batch_size * longest // length for length in reversed(self.pack.lengths)}


ONE_LENGTH = Prepared()
