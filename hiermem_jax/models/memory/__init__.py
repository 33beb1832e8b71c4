"""The kinds of memory, one file each: the vectors of a fetched block, and what they add to a transformer layer.

A block has `MemoryConfig.rows` *units* per tree level. A unit is a neuron of an FFN memory, a rank of a LoRA memory, or
a token of a KV memory. A unit consists of a few named vectors in every layer that has memory. A `MemoryKind` names
these vectors and says what a block adds at which place of a layer. A new kind is a file beside these and a line in
`KINDS`; a kind of another package is named as 'module:KIND'.
"""

from hiermem_jax.errors import InputError
from hiermem_jax.models.memory.base import Block, MemoryKind, Vector, with_memory
from hiermem_jax.models.memory.ffn import FFN
from hiermem_jax.models.memory.kv import KV
from hiermem_jax.models.memory.lora import LORA_FFN, LORA_QK, LORA_VO
from hiermem_jax.plugins import import_attribute

KINDS: dict[str, MemoryKind] = {
  "ffn": FFN,
  "lora_qk": LORA_QK,
  "lora_vo": LORA_VO,
  "lora_ffn": LORA_FFN,
  "kv": KV,
}

__all__ = ["Block", "KINDS", "MemoryKind", "Vector", "memory_kind", "with_memory"]


def memory_kind(name: str) -> MemoryKind:
  """The kind of that name: one of `KINDS`, or "module:KIND" of any package.

  Raises:
    InputError: there is none.
  """
  if name in KINDS:
    return KINDS[name]
  found = import_attribute(name, "MemoryConfig.kind") if ":" in name else None
  if not isinstance(found, MemoryKind):
    known = ", ".join(KINDS)
    raise InputError(f"MemoryConfig.kind = {name!r}: bind one of {known}, or 'module:KIND' that names a MemoryKind")
  return found
