"""Sentence encoders: texts -> float32 unit vectors, the space in which the corpus is clustered.

The paper embeds with all-MiniLM-L6-v2 (Appendix C), which `SentenceTransformer` runs, like other BERT models.
`LsaEncoder` needs no weights: it is fitted to the corpus.

  base.py                  `EncoderConfig` (settings), `Encoder` (ready to encode), `register_encoder`, `load_encoder`
  lsa.py                   latent semantic analysis, fitted to the corpus
  bert.py                  the BERT encoder in Flax
  model_directory.py       reads and checks a directory in the format of sentence-transformers
  sentence_transformer.py  the encoder of such a directory: word pieces, BERT, pooling, unit norm

A new encoder is a module with two classes, one that satisfies `EncoderConfig` and one that satisfies `Encoder`, and one
line that registers them: below for an encoder of this package; for an encoder of another package, in a module that a
gin file imports (`import mypkg.ext`, see plugins.py).
"""

from hiermem_jax.retrieval.encoders.base import Encoder, EncoderConfig, load_encoder, register_encoder
from hiermem_jax.retrieval.encoders.lsa import FittedLsaEncoder, LsaEncoder
from hiermem_jax.retrieval.encoders.sentence_transformer import FittedSentenceTransformer, SentenceTransformer

__all__ = ["Encoder", "EncoderConfig", "FittedLsaEncoder", "FittedSentenceTransformer", "LsaEncoder",
           "SentenceTransformer", "load_encoder", "register_encoder"]  # fmt: skip

register_encoder(LsaEncoder, FittedLsaEncoder)
register_encoder(SentenceTransformer, FittedSentenceTransformer)
