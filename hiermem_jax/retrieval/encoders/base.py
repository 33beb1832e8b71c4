"""What a sentence encoder is, and the registry of encoders."""

import abc
from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from hiermem_jax.errors import InputError
from hiermem_jax.plugins import import_attribute, register_constructor
from hiermem_jax.retrieval import storage


@runtime_checkable
class EncoderConfig(Protocol):
  """Settings of an encoder: a frozen dataclass, whose fields can be bound in gin files.

  `fit` makes the encoder. The texts to be clustered are given to it; an encoder with pretrained weights need not read
  them. Settings are compared with == to those of an encoder on disk. A class need not be a subclass of this one.
  """

  @abc.abstractmethod
  def fit(self, texts: Iterable[str]) -> "Encoder":
    """Returns the encoder for these texts."""


@runtime_checkable
class Encoder(Protocol):
  """A sentence encoder that is ready to encode.

  Attributes:
    kind: name of the class in `encoder.json`, by which `load_encoder` finds it. It is a short name for the encoders of
      this package. For any other class it is "module:Class", which a subclass has unless it says otherwise, and
      `load_encoder` imports that module.
    config: the settings that the encoder was made with.
  """

  kind: ClassVar[str]
  config: EncoderConfig

  def __init_subclass__(cls, **arguments):
    super().__init_subclass__(**arguments)
    if "kind" not in cls.__dict__:
      cls.kind = f"{cls.__module__}:{cls.__qualname__}"

  @property
  @abc.abstractmethod
  def dim(self) -> int:
    """Length of an embedding, E."""

  @property
  @abc.abstractmethod
  def fingerprint(self) -> str:
    """16 hex characters, equal exactly for encoders that compute the same embeddings (see `storage.digest`)."""

  @abc.abstractmethod
  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """Embeds texts: float32 [len(texts), E]; every embedding has unit L2 norm."""

  @abc.abstractmethod
  def save(self, directory: str) -> None:
    """Writes the encoder under `directory`.

    Among the files must be `encoder.json` with the field `kind`, as `storage.write_artifact(directory, "encoder", ...)`
    writes it.
    """

  @classmethod
  @abc.abstractmethod
  def load(cls, directory: str) -> "Encoder":
    """Reads what `save` wrote.

    Raises:
      InputError: a file is missing or damaged.
    """


_KINDS: dict[str, type[Encoder]] = {}


def register_encoder(config: type[EncoderConfig], encoder: type[Encoder]) -> None:
  """Makes an encoder known to `load_encoder`, and its settings to gin.

  Args:
    config: the class of its settings.
    encoder: the class of what `config.fit` returns. Registering another class of the same kind replaces it.

  Raises:
    InputError: the class is none of this package and its kind is not "module:Class".
  """
  kind = getattr(encoder, "kind", "")
  if ":" not in kind and not encoder.__module__.startswith("hiermem_jax."):
    name = encoder.__qualname__
    raise InputError(f"{name}.kind = {kind!r}: no other process finds it; write '{encoder.__module__}:{name}'")
  _KINDS[kind] = encoder
  register_constructor(config)


def load_encoder(directory: str) -> Encoder:
  """Loads what an encoder's `save(directory)` wrote.

  Raises:
    InputError: the directory holds no encoder, a damaged one, or one of an unknown kind.
  """
  kind = storage.read_meta(directory, "encoder").get("kind")
  return _encoder_class(kind, f"{directory}/encoder.json").load(directory)


def _encoder_class(kind: object, path: str) -> type[Encoder]:
  """The class of a kind, which `path` names.

  Raises:
    InputError: there is none.
  """
  if isinstance(kind, str) and kind not in _KINDS and ":" in kind:
    found = import_attribute(kind, f"the encoder of {path}")
    if isinstance(found, type) and hasattr(found, "load") and hasattr(found, "encode"):
      return found
  if kind not in _KINDS:
    known = ", ".join(map(repr, _KINDS))
    raise InputError(
      f"{path} has kind {kind!r}: known are {known}; cluster the corpus again with one of these encoders"
    )
  return _KINDS[kind]
