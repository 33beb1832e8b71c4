"""The model: configuration and its arithmetic, the anchor decoder, the memory bank.

Hands out `AnchorConfig` and `MemoryConfig` (frozen dataclasses that know every
parameter and FLOP count of the paper), `Anchor` (a Linen decoder that takes a
fetched memory block as an argument and does not know that a bank exists) and the
functions of `bank` (row tables, leaf arithmetic, fetched rows to blocks). Needs jax
and flax only.

Letters used in shapes: B sequences, S positions, D width, L layers, N heads,
H head dim, F MLP width, V vocabulary, K tree levels, C_k clusters of level k,
R_k memory rows of level k, R the sum of all R_k.
"""

from hiermem_jax.models.anchor import Anchor
from hiermem_jax.models.bank import GENERIC_ROWS, NO_MEMORY
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.model import Model

__all__ = ["Anchor", "AnchorConfig", "GENERIC_ROWS", "MemoryConfig", "Model", "ModelConfig", "NO_MEMORY"]
