"""Our tokenizers as SeqIO vocabularies."""

from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from hiermem_jax.data.text.tokenizer import Tokenizer, load_tokenizer


class TokenizerVocabulary(seqio.Vocabulary):
  """A `Tokenizer` (GPT-NeoX or any other tokenizer.json, SentencePiece) behind SeqIO's interface.

  The end-of-document token is `eos_id`, padding is id 0 by convention (see tokenizer.py), and there is no unknown
  token: what would be one is spelled in bytes. Two vocabularies are equal when their files are.
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
    """The tokenizer behind it."""
    return self._tokenizer

  @property
  def bos_id(self) -> int:
    """Input at the first position of a document."""
    return self._tokenizer.bos_id

  @property
  def eos_id(self) -> int:
    """The token that ends a document."""
    return self._tokenizer.eot_id

  @property
  def unk_id(self) -> int | None:
    """None: every text can be spelled."""
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
    text = tf.numpy_function(self._decode_rows, [tf.convert_to_tensor(ids)], tf.string, stateful=False)
    text.set_shape(ids.shape[:-1])
    return text

  def _encode_bytes(self, text: bytes | np.ndarray) -> np.ndarray:
    return np.asarray(self._encode(np.asarray(text).item().decode()), np.int32)

  def _decode_rows(self, ids: np.ndarray) -> np.ndarray:
    # `decode` stops at the end of the document: behind it there may be id 0, which need not be padding.
    rows = ids.reshape(-1, ids.shape[-1]).tolist()
    return np.array([self.decode(row).encode() for row in rows], object).reshape(ids.shape[:-1])

  def __eq__(self, other: object) -> bool:
    same = isinstance(other, TokenizerVocabulary)
    return same and self._tokenizer.fingerprint == other._tokenizer.fingerprint

  def __hash__(self) -> int:
    return hash(self._tokenizer.fingerprint)

  def __reduce__(self):
    return TokenizerVocabulary, (self._path,)  # the libraries' own objects cannot all be pickled
