"""Latent semantic analysis, fitted on the corpus itself within seconds: the encoder that needs no weights."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval import storage

_ENCODE_CHUNK = 4096  # texts encoded at a time, so that memory does not grow with the corpus
_RANK_TOLERANCE = 1e-5  # singular values below this share of the first are float32 noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class LsaEncoder:
  """Latent semantic analysis: hashed words -> TF-IDF -> truncated SVD -> unit norm.

  English stop words are dropped: half of a short question's words are among them, and
  they would pull it to whatever cluster has the same style. Term frequency is 1 + log(tf),
  as a document that says a word five times is not five times as much about it.

  Attributes:
    dim: length of an embedding. A corpus of lower rank (fewer texts or words than `dim`)
      gives a shorter one, with a warning; nothing is lost, the rest would be zeros.
    num_features: buckets of the word hash; collisions are harmless while the vocabulary
      is smaller. Only buckets that the corpus uses are stored.
    word_ngrams: longest run of words that counts as a feature.
    max_words: words of a text that are read; the rest does not influence its cluster, as
      the paper's encoder truncates at 256 word pieces.
    seed: of the randomised SVD.
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

  def fit(self, texts: Iterable[str]) -> "FittedLsaEncoder":
    """Fits the encoder; reads `texts` once and holds their word counts in memory.

    For a large corpus give a sample: a few hundred thousand texts settle the weights.

    Raises:
      InputError: no text holds a word.
    """
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.utils.extmath import randomized_svd

    # One empty text more, dropped again, as scikit-learn fails on none at all.
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
    # Directions without strength are rounding noise: they would differ between machines.
    components = components[strength > _RANK_TOLERANCE * strength[0]].astype(np.float32)
    if len(components) < self.dim:
      logging.warning(
        "LsaEncoder.dim is %d, but %d texts with %d different words span only %d: embeddings are that long",
        self.dim, *counts.shape, len(components),
      )  # fmt: skip
    return FittedLsaEncoder(config=self, features=features, idf=idf, components=components)

  def count_words(self, texts: Iterable[str]) -> Any:
    """Counts hashed words: scipy CSR float32 [len(texts), num_features]."""
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
class FittedLsaEncoder:
  """An `LsaEncoder` with its arrays; made by `LsaEncoder.fit` or `load_encoder`.

  Attributes:
    config: the settings it was fitted with.
    features: int32 [V], the hash buckets in use, ascending.
    idf: float32 [V], smoothed inverse document frequencies.
    components: float32 [dim, V], right singular vectors of the corpus's TF-IDF matrix.
  """

  config: LsaEncoder
  features: np.ndarray
  idf: np.ndarray
  components: np.ndarray

  @property
  def dim(self) -> int:
    """Length of an embedding: `config.dim`, or the corpus's rank where that is lower."""
    return self.components.shape[0]

  @functools.cached_property
  def fingerprint(self) -> str:
    """First 16 hex characters of a sha256 over settings and arrays."""
    return storage.digest(self._meta(), self._arrays())

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """Embeds texts: float32 [len(texts), dim], unit L2 norm rows.

    A text without any known word gets the first basis vector, which is the direction the
    whole corpus shares: it lands with the least specific documents.
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
    """Reads what `save` wrote."""
    meta, arrays = storage.read_artifact(directory, "encoder")
    return cls(config=LsaEncoder(**meta["config"]), **arrays)

  def _meta(self) -> dict[str, Any]:
    return {"kind": "lsa", "config": dataclasses.asdict(self.config)}

  def _arrays(self) -> dict[str, np.ndarray]:
    return {"features": self.features, "idf": self.idf, "components": self.components}


def _tfidf(counts: Any, idf: np.ndarray) -> Any:
  """Weights CSR word counts [n, V] by (1 + log tf) * idf and scales each row to unit norm."""
  from sklearn.preprocessing import normalize

  weighted = counts.copy()
  weighted.data = (1.0 + np.log(weighted.data)) * idf[weighted.indices]
  return normalize(weighted, copy=False)
