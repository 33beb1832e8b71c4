"""Configuration of the anchor, and the arithmetic on it. Pure Python."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from hiermem_jax.errors import InputError

# What the backward pass may keep of a layer: outputs of the attention's and the MLP's steps.
REMAT_POINTS = ("query", "key", "value", "attention", "out", "w1", "w2")
ON_HOST = "@host"  # ends the name of a point whose values wait in the host's memory


def require_positive(owner: object, *names: str) -> None:
  """Raises InputError for the first of `names` whose value in `owner`, a configuration, is not positive."""
  for name in names:
    if getattr(owner, name) <= 0:
      raise InputError(f"{type(owner).__name__}.{name} = {getattr(owner, name)}: must be positive; bind another value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchorConfig:
  """The small dense transformer (paper, Appendix A, Tables 4-6 and 8).

  The defaults that are not sizes follow the paper and the code base it names:
  gain-only LayerNorm, q/k norm over the flat head width, RoPE base 100,000.

  Attributes:
    num_layers: L.
    width: D.
    num_heads: N.
    head_dim: H; N * H need not equal D (the 160M anchor has 12 * 32 = 384, D = 512).
    mlp_width: F, the SwiGLU inner width.
    tied_embeddings: one matrix for the embedding and the output.
    vocab_size: V; by default the gpt-neox vocabulary, padded.
    norm: kind of all normalisations.
    norm_eps: added to the variance.
    qk_norm: normalise queries and keys.
    rope_base: base of the rotary embedding's frequencies.
    dtype: of activations and matmuls; parameters are float32.
    gradient_dtype: in which devices send and sum the gradients of weights that are split over them (FSDP). bfloat16
      halves the bytes and rounds at every addition.
    remat: what the backward pass keeps. "none" computes nothing again, and keeps all but gathered weights; "dots" keeps
      the outputs of matmuls, "full" the layers' inputs. Or names of points whose outputs are kept beside the layers'
      inputs, e.g. ("attention", "w1", "w2@host"): query, key, value, attention, out, w1, w2. Those that end in "@host"
      wait in the host's memory.
    unroll: layers in each round of the scan over layers. More make a longer program, which is faster on a CPU.
    attention: "xla" runs everywhere. "splash" is the flash-attention kernel for TPUs, "cudnn" the one for GPUs.
    splash_blocks: block sizes of the splash kernel: queries, keys, and keys that are computed with at a time, of the
      forward and then of the backward pass. None: the largest of 128, 256 and 512 that divides the length.
    logits_chunk: positions whose logits exist at a time in training; None: the whole sequence's.
  """

  num_layers: int
  width: int
  num_heads: int
  head_dim: int
  mlp_width: int
  tied_embeddings: bool = False
  vocab_size: int = 50432
  norm: Literal["layernorm", "rmsnorm"] = "layernorm"
  norm_eps: float = 1e-5
  qk_norm: bool = True
  rope_base: float = 100_000.0
  dtype: Literal["bfloat16", "float32"] = "bfloat16"
  gradient_dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "dots", "full"] | tuple[str, ...] = "none"
  unroll: int = 1
  attention: Literal["xla", "splash", "cudnn"] = "xla"
  splash_blocks: tuple[int, int, int, int, int, int] | None = None
  logits_chunk: int | None = None

  def __post_init__(self):
    """Rejects sizes that no decoder can have."""
    require_positive(self, "num_layers", "width", "num_heads", "head_dim", "mlp_width", "vocab_size", "norm_eps")
    require_positive(self, "rope_base", "unroll")
    if self.head_dim % 2:
      raise InputError(f"AnchorConfig.head_dim = {self.head_dim}: RoPE rotates pairs; bind an even number")
    if not isinstance(self.remat, str):
      points = [point.removesuffix(ON_HOST) for point in self.remat]
      if not set(points) <= set(REMAT_POINTS) or len(set(points)) < len(points) or not points:
        raise InputError(
          f"AnchorConfig.remat = {self.remat}: bind 'none', 'dots', 'full' or a tuple of points, each once:"
          f" {', '.join(REMAT_POINTS)}, or e.g. 'attention{ON_HOST}'"
        )
    if self.attention == "cudnn" and (self.dtype != "bfloat16" or self.head_dim % 8 or self.head_dim > 256):
      raise InputError(
        f"AnchorConfig.attention = 'cudnn': the kernel computes in bfloat16, with a head_dim that is a multiple of"
        f" 8 up to 256, not in {self.dtype} with {self.head_dim}; bind 'xla'"
      )
    if self.splash_blocks is not None:
      self._check_splash_blocks(self.splash_blocks)
    if self.logits_chunk is not None:
      require_positive(self, "logits_chunk")

  @classmethod
  def from_json(cls, stored: Mapping[str, Any]) -> "AnchorConfig":
    """The configuration whose fields JSON holds, tuples as lists. A field that `stored` lacks gets its default."""
    fields: dict[str, Any] = {
      name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
    }
    return cls(**fields)

  def _check_splash_blocks(self, blocks: tuple[int, ...]) -> None:
    if len(blocks) != 6 or any(size < 1 or size % 128 for size in blocks):
      raise InputError(f"AnchorConfig.splash_blocks = {blocks}: bind six positive multiples of 128")
    for keys, computed in (blocks[1:3], blocks[4:6]):
      if keys % computed:
        raise InputError(f"AnchorConfig.splash_blocks = {blocks}: {computed} does not divide {keys}; bind a divisor")

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
