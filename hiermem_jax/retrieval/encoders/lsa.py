"""Latent semantic analysis: an encoder without pretrained weights, fitted to the corpus within seconds."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval import storage
from hiermem_jax.retrieval.encoders.base import Encoder, EncoderConfig

_ENCODE_CHUNK = 4096  # texts encoded at a time, so that memory does not grow with the corpus
_RANK_TOLERANCE = 1e-5  # singular values below this share of the first are float32 noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class LsaEncoder(EncoderConfig):
  """Latent semantic analysis: hashed words -> TF-IDF -> truncated SVD -> unit norm.

  English stop words are left out. They are half of the words of a short question, and would
  draw it to a cluster of the same style rather than of the same topic. A word that occurs tf
  times in a text counts 1 + log(tf): a text that says a word five times is not five times as
  much about it.

  Attributes:
    dim: length of an embedding. If the corpus has fewer texts or fewer words than `dim`,
      embeddings are shorter, which is logged. Longer ones would only have zeros at the end.
    num_features: number of buckets that words are hashed to. Collisions are rare while the
      vocabulary is much smaller. Only buckets that occur in the corpus are stored.
    word_ngrams: largest number of consecutive words that count as one feature.
    max_words: number of words of a text that are read, from its beginning. The paper's encoder
      reads 256 word pieces.
    seed: of the randomised SVD.

  Raises:
    InputError: a value is out of range.
  """

  dim: int = 128
  num_features: int = 2**18
  word_ngrams: int = 1
  max_words: int = 256
  seed: int = 0

  def __post_init__(self):
    for name in ("dim", "num_features", "word_ngrams", "max_words"):
      if getattr(self, name) < 1:
        raise InputError(f"LsaEncoder.{name} is {getattr(self, name)}: set it to at least 1")
    if self.seed < 0:
      raise InputError(f"LsaEncoder.seed is {self.seed}: set it to at least 0")

  def fit(self, texts: Iterable[str]) -> "FittedLsaEncoder":
    """Fits the encoder. Reads `texts` once and holds their word counts in memory.

    For a large corpus a sample of a few hundred thousand texts is enough.

    Raises:
      InputError: no text contains a word.
    """
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.utils.extmath import randomized_svd

    # scikit-learn fails without any text, so an empty one is added, and its counts are removed.
    counts = self.count_words(itertools.chain(texts, [""]))[:-1]
    features = np.flatnonzero(np.asarray(counts.sum(axis=0)).ravel()).astype(np.int32)
    if not features.size:
      raise InputError(
        f"LsaEncoder.fit found no words in {counts.shape[0]} texts: check the field that is read as text"
      )
    counts = counts[:, features]
    idf = TfidfTransformer().fit(counts).idf_.astype(np.float32)
    rank = min(self.dim, *counts.shape)
    _, strength, components = randomized_svd(_tfidf(counts, idf), rank, random_state=self.seed, flip_sign=True)
    # Directions of no strength are rounding errors, which differ between machines.
    components = components[strength > _RANK_TOLERANCE * strength[0]].astype(np.float32)
    if len(components) < self.dim:
      logging.warning(
        "LsaEncoder.dim is %d, but %d texts with %d different words span only %d: embeddings are that long",
        self.dim, *counts.shape, len(components),
      )  # fmt: skip
    return FittedLsaEncoder(config=self, features=features, idf=idf, components=components)

  def count_words(self, texts: Iterable[str]) -> Any:
    """Number of occurrences of each hashed word: scipy CSR float32 [len(texts), num_features]."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hasher = HashingVectorizer(
      n_features=self.num_features,
      ngram_range=(1, self.word_ngrams),
      stop_words="english",
      alternate_sign=False,
      norm=None,
      dtype=np.float32,
    )
    return hasher.transform(self._truncated(texts))

  def _truncated(self, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
      yield " ".join(text.split(maxsplit=self.max_words)[: self.max_words])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FittedLsaEncoder(Encoder):
  """Latent semantic analysis, fitted: made by `LsaEncoder.fit` or `load_encoder`.

  Attributes:
    config: the settings it was fitted with.
    features: int32 [V], numbers of the hash buckets that occur in the corpus, ascending.
    idf: float32 [V], their smoothed inverse document frequencies.
    components: float32 [dim, V], right singular vectors of the corpus's TF-IDF matrix.
  """

  kind = "lsa"
  config: LsaEncoder
  features: np.ndarray
  idf: np.ndarray
  components: np.ndarray

  @property
  def dim(self) -> int:
    """Length of an embedding: `config.dim`, or the rank of the corpus if that is lower."""
    return self.components.shape[0]

  @functools.cached_property
  def fingerprint(self) -> str:
    """First 16 hex characters of a sha256 over settings and arrays."""
    return storage.digest(self._meta(), self._arrays())

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """Embeds texts: float32 [len(texts), dim], each of unit L2 norm.

    A text without any known word has the first basis vector as its embedding. This is the
    direction that all texts of the corpus share, so its cluster is one of unspecific documents.
    """
    embeddings = np.zeros((len(texts), self.dim), np.float32)
    for start in range(0, len(texts), _ENCODE_CHUNK):
      counts = self.config.count_words(texts[start : start + _ENCODE_CHUNK])[:, self.features]
      embeddings[start : start + _ENCODE_CHUNK] = _tfidf(counts, self.idf) @ self.components.T
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unknown = norms[:, 0] < 1e-12
    embeddings /= np.where(unknown[:, None], 1.0, norms)
    embeddings[unknown] = np.eye(1, self.dim, dtype=np.float32)
    return embeddings

  def save(self, directory: str) -> None:
    """Writes `encoder.npz` and `encoder.json` under `directory`."""
    storage.write_artifact(directory, "encoder", self._meta(), self._arrays())

  @classmethod
  def load(cls, directory: str) -> "FittedLsaEncoder":
    """Reads what `save` wrote.

    Raises:
      InputError: a file is missing or damaged.
    """
    meta, arrays = storage.read_artifact(directory, "encoder")
    return cls(config=LsaEncoder(**meta["config"]), **arrays)

  def _meta(self) -> dict[str, Any]:
    return {"kind": self.kind, "config": dataclasses.asdict(self.config)}

  def _arrays(self) -> dict[str, np.ndarray]:
    return {"features": self.features, "idf": self.idf, "components": self.components}


def _tfidf(counts: Any, idf: np.ndarray) -> Any:
  """CSR word counts [n, V], weighted by (1 + log tf) * idf; each text's weights are scaled to unit norm."""
  from sklearn.preprocessing import normalize

  weighted = counts.copy()
  weighted.data = (1.0 + np.log(weighted.data)) * idf[weighted.indices]
  return normalize(weighted, copy=False)
