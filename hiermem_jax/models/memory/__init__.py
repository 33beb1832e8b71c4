"""What a fetched block is and where it acts in a layer: one file per kind of memory.

A block is `rows` *units* per level (of an FFN memory: neurons; of a LoRA: ranks; of a KV memory: tokens), and a unit
is a few named vectors in every layer that has memory. A `MemoryKind` names these vectors and says what a block adds at
which place of a layer. A new kind is a file beside these and a line in `KINDS`.
"""

from hiermem_jax.models.memory.base import Block, MemoryKind, Vector, with_memory
from hiermem_jax.models.memory.ffn import FFN
from hiermem_jax.models.memory.kv import KV
from hiermem_jax.models.memory.lora import LORA_FFN, LORA_QK, LORA_VO

KINDS: dict[str, MemoryKind] = {
  "ffn": FFN,
  "lora_qk": LORA_QK,
  "lora_vo": LORA_VO,
  "lora_ffn": LORA_FFN,
  "kv": KV,
}

__all__ = ["Block", "KINDS", "MemoryKind", "Vector", "with_memory"]
