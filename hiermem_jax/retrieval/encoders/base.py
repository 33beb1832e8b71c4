"""What a sentence encoder is."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Encoder(Protocol):
  """A fitted encoder; its fingerprint (16 hex characters) says which vectors it makes."""

  @property
  def dim(self) -> int:
    """Length of an embedding."""

  @property
  def fingerprint(self) -> str:
    """Equal for two encoders exactly when they were fitted to the same arrays with the same settings."""

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """Returns float32 [len(texts), dim]; every row has unit L2 norm."""

  def save(self, directory: str) -> None:
    """Writes everything that `load_encoder(directory)` needs."""


@runtime_checkable
class EncoderConfig(Protocol):
  """What can be turned into an `Encoder` given the texts to be clustered."""

  def fit(self, texts: Iterable[str]) -> Encoder:
    """Returns the encoder for these texts."""
