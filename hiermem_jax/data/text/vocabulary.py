"""A tokenizer as a SeqIO vocabulary."""

from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from hiermem_jax.data.text.tokenizer import Tokenizer, load_tokenizer


class TokenizerVocabulary(seqio.Vocabulary):
  """A `Tokenizer` behind SeqIO's interface.

  `eos_id` is the end-of-document token, and padding is id 0 (see tokenizer.py). There is no unknown token, because
  rare characters are encoded as bytes. Two vocabularies are equal if their files are equal.
  """

  def __init__(self, path: str):
    """Loads the tokenizer.

    Raises:
      InputError: see `load_tokenizer`.
    """
    super().__init__(extra_ids=0)
    self._path = path
    self._tokenizer: Tokenizer = load_tokenizer(path)

  @property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer."""
    return self._tokenizer

  @property
  def bos_id(self) -> int:
    """The input at the first position of a document."""
    return self._tokenizer.bos_id

  @property
  def eos_id(self) -> int:
    """The token that ends a document."""
    return self._tokenizer.eot_id

  @property
  def unk_id(self) -> int | None:
    """None, because there is no unknown token."""
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self._tokenizer.vocab_size

  def _encode(self, s: str) -> Sequence[int]:
    return self._tokenizer.encode(s)

  def _decode(self, ids: Sequence[int]) -> str:
    return self._tokenizer.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    ids = tf.numpy_function(self._encode_bytes, [tf.convert_to_tensor(s)], tf.int32, stateful=False)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    text = tf.numpy_function(self._decode_array, [tf.convert_to_tensor(ids)], tf.string, stateful=False)
    text.set_shape(ids.shape[:-1])
    return text

  def _encode_bytes(self, text: bytes | np.ndarray) -> np.ndarray:
    return np.asarray(self._encode(np.asarray(text).item().decode()), np.int32)

  def _decode_array(self, ids: np.ndarray) -> np.ndarray:
    """Texts [...] of ids [..., S]."""
    # SeqIO's `decode` stops at the end-of-document token, so padding after it does no harm.
    texts = [self.decode(one).encode() for one in ids.reshape(-1, ids.shape[-1]).tolist()]
    return np.array(texts, object).reshape(ids.shape[:-1])

  def __eq__(self, other: object) -> bool:
    if not isinstance(other, TokenizerVocabulary):
      return False
    return self._tokenizer.fingerprint == other._tokenizer.fingerprint

  def __hash__(self) -> int:
    return hash(self._tokenizer.fingerprint)

  def __reduce__(self):
    return TokenizerVocabulary, (self._path,)  # some objects of the tokenizer libraries cannot be pickled
