"""A whole model: its configuration and its parameters, the anchor's and the bank's."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from hiermem_jax.models.anchor import init_anchor
from hiermem_jax.models.bank import init_bank
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig


@dataclasses.dataclass(frozen=True)
class Model:
  """A trained model, as evaluation and later training phases take it.

  Attributes:
    config: shapes of the anchor and of the memory.
    params: {"anchor": Linen parameters, "bank": {table name: array}}; no "bank" where there is no memory.
    metadata: what the checkpoint says beside the arrays: the step, the fingerprints of tree and tokenizer.
  """

  config: ModelConfig
  params: dict[str, Any]
  metadata: dict[str, Any]

  @property
  def anchor(self) -> AnchorConfig:
    """The anchor's configuration."""
    return self.config.anchor

  @property
  def memory(self) -> MemoryConfig | None:
    """The memory's configuration; None where the model is an anchor alone."""
    return self.config.memory


def init_params(key: jax.Array, model: ModelConfig) -> dict[str, Any]:
  """Fresh parameters {"anchor": ..., "bank": ...}, boxed with their logical axis names."""
  anchor_key, bank_key = jax.random.split(key)
  params = {"anchor": init_anchor(anchor_key, model.anchor)}
  if model.memory is not None:
    names = ("bank_cluster", "bank_row")
    bank = init_bank(bank_key, model)
    params["bank"] = {name: nn.LogicallyPartitioned(table, names) for name, table in bank.items()}
  return params
