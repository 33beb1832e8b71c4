"""Sentence encoders: texts -> float32 unit vectors, the space in which the corpus is clustered.

The paper embeds with all-MiniLM-L6-v2 (Appendix C), which `SentenceTransformer` runs, as it does other BERT models;
`LsaEncoder` stands in where no weights can be had. Another encoder is one more class with the methods of `Encoder` and
a line in `load_encoder`.

  base.py                  the protocols `EncoderConfig` (settings) and `Encoder` (ready to encode)
  lsa.py                   latent semantic analysis, fitted on the corpus
  bert.py                  the BERT encoder in Flax
  model_directory.py       a directory of the sentence-transformers format, read and checked
  sentence_transformer.py  the encoder of such a directory: word pieces, BERT, pooling, unit norm
"""

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval import storage
from hiermem_jax.retrieval.encoders.base import Encoder, EncoderConfig
from hiermem_jax.retrieval.encoders.lsa import FittedLsaEncoder, LsaEncoder
from hiermem_jax.retrieval.encoders.sentence_transformer import FittedSentenceTransformer, SentenceTransformer

__all__ = ["Encoder", "EncoderConfig", "FittedLsaEncoder", "FittedSentenceTransformer", "LsaEncoder",
           "SentenceTransformer", "load_encoder"]  # fmt: skip


def load_encoder(directory: str) -> Encoder:
  """Loads what an encoder's `save(directory)` wrote.

  Raises:
    InputError: the directory holds no encoder, a damaged one, or one of an unknown kind.
  """
  kind = storage.read_meta(directory, "encoder").get("kind")
  kinds = {"lsa": FittedLsaEncoder, "sentence_transformer": FittedSentenceTransformer}
  if kind not in kinds:
    known = ", ".join(map(repr, kinds))
    raise InputError(
      f"{directory}/encoder.json has kind {kind!r}: this version knows {known}; cluster the corpus again"
    )
  return kinds[kind].load(directory)
