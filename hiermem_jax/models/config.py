"""Configurations of the anchor and of its memory, and the arithmetic on them.

Pure Python: no device is touched, so `describe` and the validation of a configuration
start at once.
"""

import dataclasses
import re
from typing import Literal

from hiermem_jax.errors import InputError


def _require_positive(owner: object, *names: str) -> None:
  for name in names:
    if getattr(owner, name) <= 0:
      raise InputError(f"{type(owner).__name__}.{name} = {getattr(owner, name)}: must be positive; bind another value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchorConfig:
  """The small dense transformer (paper, Appendix A, Tables 4-6 and 8).

  The defaults that are not sizes follow the paper and the code base it names:
  gain-only LayerNorm, q/k norm over the flat head width, RoPE base 100,000.
  """

  num_layers: int  # L
  width: int  # D
  num_heads: int  # N
  head_dim: int  # H; N * H need not equal D (the 160M anchor has 12 * 32 = 384, D = 512)
  mlp_width: int  # F, the SwiGLU inner width
  tied_embeddings: bool = False
  vocab_size: int = 50432  # V; the gpt-neox vocabulary, padded
  norm: Literal["layernorm", "rmsnorm"] = "layernorm"
  norm_eps: float = 1e-5
  qk_norm: bool = True
  rope_base: float = 100_000.0
  dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of activations and matmuls; parameters are float32
  remat: Literal["none", "dots", "full"] = "none"  # what the backward pass keeps: all, matmul outputs, layer inputs
  attention: Literal["xla", "splash"] = "xla"  # splash: the flash-attention kernel for TPUs
  logits_chunk: int | None = None  # positions whose logits exist at a time in training; None: the whole sequence's

  def __post_init__(self):
    """Rejects sizes that no decoder can have."""
    _require_positive(self, "num_layers", "width", "num_heads", "head_dim", "mlp_width", "vocab_size", "norm_eps")
    _require_positive(self, "rope_base")
    if self.head_dim % 2:
      raise InputError(f"AnchorConfig.head_dim = {self.head_dim}: RoPE rotates pairs; bind an even number")
    if self.logits_chunk is not None:
      _require_positive(self, "logits_chunk")

  @property
  def attention_width(self) -> int:
    """N * H, the flat width of q, k and v (`a` in the count below)."""
    return self.num_heads * self.head_dim

  @property
  def embedding_params(self) -> int:
    """Input table plus, when not tied, the output head."""
    return (1 if self.tied_embeddings else 2) * self.vocab_size * self.width

  @property
  def params(self) -> int:
    """Total parameters: E*V*D + L*(4*D*a + 3*D*F + 2*D + 2*a) + D.

    Agrees with all nine counts published in the paper's Tables 4-6 and 8. Without q/k norm the 2*a term is gone.
    """
    d, a = self.width, self.attention_width
    norms = 2 * d + (2 * a if self.qk_norm else 0)
    return self.embedding_params + self.num_layers * (4 * d * a + 3 * d * self.mlp_width + norms) + d

  def flops_per_token(self, context_length: int) -> int:
    """Forward FLOPs per token: 2 per matmul weight, plus causal attention.

    Counts the output head (tied or not) and not the embedding lookup. A token attends on average to half of
    `context_length` positions: q.k and p.v together cost 2 * a * context_length per layer. Training costs three
    times this (forward, and twice that backward).
    """
    d, a = self.width, self.attention_width
    weights = self.num_layers * (4 * d * a + 3 * d * self.mlp_width) + self.vocab_size * d
    return 2 * weights + self.num_layers * 2 * a * context_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
  """Memory over a cluster tree (paper, Section 2.1 and Appendix I).

  `rows` are the r_1..r_K of the paper: how many units (extra SwiGLU neurons, or what else the `kind` has) per
  transformer layer one cluster of level k owns. A level with zero rows has no table.

  `layers` places them: in all layers alike, or in some, which then share what all would have had: r_k * L / n units
  in each of n layers (Appendix F, Table 9). The sizes are those of rows in all layers.

  `part` is what of the bank there is: all of it, the clusters below one level-1 cluster (0 .. branching - 1), or no
  clusters at all ("generic"), for jobs that train parts of a bank by themselves. Leaf ids mean the same in all of
  them: those whose rows are elsewhere fetch nothing. Every part has the generic rows.
  """

  rows: tuple[int, ...]
  branching: int = 16
  kind: str = "ffn"  # ffn, lora_qk, lora_vo, lora_ffn, kv; see models/memory
  layers: tuple[int, ...] | str | None = None  # None: all; numbers from 0; or 'first 10', 'middle 10', 'last 10'
  part: Literal["all", "generic"] | int = "all"
  dtype: Literal["float32", "bfloat16"] = "float32"  # of the stored tables; bfloat16 ones are rounded stochastically

  def __post_init__(self):
    """Rejects trees, rows, kinds and layers that cannot exist."""
    from hiermem_jax.models.memory import KINDS

    if self.kind not in KINDS:
      raise InputError(f"MemoryConfig.kind = {self.kind!r}: bind one of {', '.join(KINDS)}")
    if isinstance(self.layers, str) and not re.fullmatch(r"(first|middle|last) [1-9]\d*", self.layers):
      raise InputError(f"MemoryConfig.layers = {self.layers!r}: bind 'first 10', 'middle 10', 'last 10' or numbers")
    if isinstance(self.layers, tuple) and (not self.layers or list(self.layers) != sorted(set(self.layers))):
      raise InputError(f"MemoryConfig.layers = {self.layers}: bind ascending numbers of layers, at least one")
    if not self.rows or min(self.rows) < 0 or not any(self.rows):
      raise InputError(
        f"MemoryConfig.rows = {self.rows}: needs one non-negative number per tree level, at least one positive;"
        " to train without memory bind train.memory = None"
      )
    if self.branching < 2:
      raise InputError(f"MemoryConfig.branching = {self.branching}: a tree needs at least 2; bind the tree's")
    if self.part not in ("all", "generic") and (isinstance(self.part, str) or not 0 <= self.part < self.branching):
      raise InputError(
        f"MemoryConfig.part = {self.part!r}: bind 'all', 'generic' or a level-1 cluster, 0 to {self.branching - 1}"
      )

  @property
  def depth(self) -> int:
    """K, the number of tree levels (those without rows included)."""
    return len(self.rows)

  @property
  def num_leaves(self) -> int:
    """Leaves of the tree; the leaf id `num_leaves` is the generic memory."""
    return self.branching**self.depth

  @property
  def total_rows(self) -> int:
    """R, the rows a sequence fetches per layer, over all levels."""
    return sum(self.rows)

  @property
  def levels(self) -> tuple[int, ...]:
    """The 1-based levels that have a table."""
    return tuple(level for level, rows in enumerate(self.rows, start=1) if rows)

  def clusters(self, level: int) -> int:
    """C_k, the clusters of 1-based `level` that there are (the generic slot not counted)."""
    if self.part == "generic":
      return 0
    return self.branching ** (level if self.part == "all" else level - 1)

  def first_cluster(self, level: int) -> int:
    """The number in the tree of the first of the `clusters(level)`."""
    return 0 if isinstance(self.part, str) else self.part * self.branching ** (level - 1)

  def layer_numbers(self, anchor: AnchorConfig) -> tuple[int, ...]:
    """The layers that have memory.

    Raises:
      InputError: the anchor has no such layers, or they cannot share the rows evenly.
    """
    total, chosen = anchor.num_layers, self.layers
    if chosen is None:
      return tuple(range(total))
    if isinstance(chosen, str):
      where, count = chosen.split()
      start = {"first": 0, "middle": (total - int(count)) // 2, "last": total - int(count)}[where]
      chosen = tuple(range(start, start + int(count)))
    if chosen[0] < 0 or chosen[-1] >= total:
      raise InputError(f"MemoryConfig.layers = {self.layers}: the anchor has layers 0 to {total - 1}; bind some")
    for rows in self.rows:
      if rows * total % len(chosen):
        raise InputError(
          f"MemoryConfig.rows = {self.rows}: {rows} rows in {total} layers cannot be shared by {len(chosen)} layers"
          " evenly; bind other rows or another number of layers"
        )
    return chosen

  def unit_params(self, anchor: AnchorConfig) -> int:
    """Parameters of one unit in one layer; of an FFN memory 3 * D (paper, Appendix I)."""
    from hiermem_jax.models.memory import KINDS

    return sum(vector.width for vector in KINDS[self.kind].vectors(anchor).values())

  def block_params(self, anchor: AnchorConfig, level: int) -> int:
    """Parameters of one block of `level`: r_k * L times `unit_params`."""
    return self.rows[level - 1] * anchor.num_layers * self.unit_params(anchor)

  def level_params(self, anchor: AnchorConfig, level: int) -> int:
    """Parameters of all blocks of `level`, as published: without the generic slot."""
    return self.clusters(level) * self.block_params(anchor, level)

  def fetched_params(self, anchor: AnchorConfig) -> int:
    """Parameters one sequence fetches: L * `unit_params` * (r_1 + ... + r_K)."""
    return sum(self.block_params(anchor, level) for level in self.levels)

  def bank_params(self, anchor: AnchorConfig) -> int:
    """Parameters of the whole bank, as published: without the generic memory (paper, Table 8)."""
    return sum(self.level_params(anchor, level) for level in self.levels)

  def flops_per_token(self, anchor: AnchorConfig) -> int:
    """Forward FLOPs per token that the fetched block adds: 2 per fetched weight."""
    return 2 * self.fetched_params(anchor)
