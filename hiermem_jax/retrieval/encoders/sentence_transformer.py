"""Sentence encoders in the directory format of sentence-transformers: word pieces, BERT, pooling, unit norm.

The paper's encoder is all-MiniLM-L6-v2 (Appendix C), which reads the first 256 word pieces of a text, averages their
vectors and scales the result to unit norm.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hiermem_jax import files
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval import storage
from hiermem_jax.retrieval.encoders.base import Encoder, EncoderConfig
from hiermem_jax.retrieval.encoders.bert import BertEncoder
from hiermem_jax.retrieval.encoders.model_directory import CONFIG, TOKENIZER, WEIGHTS, download, read_model, sha256

_LENGTH_STEP = 32  # lengths are rounded up to multiples, so that few shapes are compiled
_CHUNK = 2**14  # texts that are sorted by length together, and tokenised while the chunk before runs
_AHEAD = 2  # batches dispatched before the first of them is waited for
_DTYPES = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceTransformer(EncoderConfig):
  """A BERT model in a sentence-transformers directory.

  Attributes:
    model: the directory, or a hub id such as "sentence-transformers/all-MiniLM-L6-v2".
    max_word_pieces: number of word pieces of a text that are read, from its beginning, [CLS] and [SEP] included. The
      paper uses the model's default, 256.
    dtype: of the computation: "float32", "bfloat16", or "auto", which is float32 on a CPU and bfloat16 elsewhere.
    batch_word_pieces: number of word pieces in a batch on one device, padding included. None means 4,096 on a CPU and
      65,536 elsewhere.

  Raises:
    InputError: a value is out of range.
  """

  model: str
  max_word_pieces: int = 256
  dtype: str = "auto"
  batch_word_pieces: int | None = None

  def __post_init__(self):
    if self.dtype not in _DTYPES:
      raise InputError(f"SentenceTransformer.dtype = {self.dtype!r}: give one of {', '.join(_DTYPES)}")
    for name, least in (("max_word_pieces", 3), ("batch_word_pieces", self.max_word_pieces)):
      value = getattr(self, name)
      if value is not None and value < least:
        raise InputError(f"SentenceTransformer.{name} = {value}: give at least {least}")

  def fit(self, texts: Iterable[str]) -> "FittedSentenceTransformer":
    """Loads the model; the texts are not read.

    Raises:
      InputError: no such directory or hub id, a file is missing, or the model is of another kind.
    """
    del texts
    directory = self.model if os.path.isdir(self.model) else download(self.model)
    return FittedSentenceTransformer(config=self, directory=directory)


class FittedSentenceTransformer(Encoder):
  """A loaded model: made by `SentenceTransformer.fit` or `load_encoder`.

  Attributes:
    config: the settings that it was loaded with.
  """

  kind = "sentence_transformer"
  config: SentenceTransformer

  def __init__(self, *, config: SentenceTransformer, directory: str, expected: Mapping[str, str] | None = None):
    """Loads the files of a sentence-transformers directory.

    Args:
      config: see `SentenceTransformer`.
      directory: of the files.
      expected: name of each file -> sha256 that it must have; None for no check.

    Raises:
      InputError: a file is missing or damaged, or the model is not a BERT encoder with mean or [CLS] pooling.
    """
    self.config = config
    self._model = read_model(directory, expected)
    if config.max_word_pieces > (positions := self._model.config.max_position_embeddings):
      raise InputError(
        f"SentenceTransformer.max_word_pieces = {config.max_word_pieces}: {directory} has {positions} positions; give"
        " at most that"
      )
    self._model.tokenizer.enable_truncation(config.max_word_pieces)

  @property
  def dim(self) -> int:
    """Length of an embedding: the width of the model."""
    return self._model.config.hidden_size

  @functools.cached_property
  def fingerprint(self) -> str:
    """First 16 hex characters of a sha256 over the files and `max_word_pieces`; dtype and batches do not count."""
    checksums = sha256(self._model.files)
    meta = {"max_word_pieces": self.config.max_word_pieces, "pooling": self._model.pooling}
    meta |= {name: checksums[name] for name in (CONFIG, WEIGHTS, TOKENIZER)}
    return storage.digest(meta, {})

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """Embeds texts: float32 [len(texts), dim], each of unit L2 norm.

    Texts are sorted by length and run in batches of few shapes, split over all local devices; while they run, the next
    ones are tokenised. The same texts in the same order give the same bytes.
    """
    result = np.empty((len(texts), self.dim), np.float32)
    running: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

    def collect():
      numbers, vectors = running.popleft()
      result[numbers] = np.asarray(vectors)[: len(numbers)]

    for numbers, ids, sizes in self.batches(texts):
      running.append((numbers, self.run(ids, sizes)))
      if len(running) > _AHEAD:
        collect()
    while running:
      collect()
    return result

  def batches(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the batches that `encode` runs.

    Yields:
      Numbers of the texts int [n], their padded word pieces int32 [b, S], and how many each text has, int32 [b]. The
      last batch is filled up to the shape of the others, so b >= n.
    """
    most = self.config.batch_word_pieces
    if most is None:
      most = max(self.config.max_word_pieces, 4096 if jax.default_backend() == "cpu" else 65_536)
    starts = range(0, len(texts), _CHUNK)
    with ThreadPoolExecutor(1) as pool:
      for first, pieces in zip(starts, pool.map(self._tokenise, (texts[i : i + _CHUNK] for i in starts))):
        order = np.argsort(
          [-len(p) for p in pieces], kind="stable"
        )  # longest first: if memory runs out, it does so at once
        while len(order):
          length = -(-len(pieces[order[0]]) // _LENGTH_STEP) * _LENGTH_STEP
          length = min(length, self._model.config.max_position_embeddings)
          size = max(1, most // length) * jax.local_device_count()
          chosen, order = order[:size], order[size:]
          ids = np.zeros((size, length), np.int32)
          sizes = np.ones(size, np.int32)
          for i, number in enumerate(chosen):
            sizes[i] = len(pieces[number])
            ids[i, : sizes[i]] = pieces[number]
          yield first + chosen, ids, sizes

  def run(self, ids: np.ndarray, sizes: np.ndarray) -> jax.Array:
    """Dispatches one of `batches`; the result, float32 [b, dim] of unit L2 norm, is not waited for."""
    step, params, split = self._program
    return step(params, *jax.device_put((ids, sizes), split))

  def flops(self, length: int) -> int:
    """FLOPs of one text of `length` word pieces: matrix products only, a multiplication and an addition count two."""
    c = self._model.config
    weights = 4 * c.hidden_size**2 + 2 * c.hidden_size * c.intermediate_size
    return 2 * length * c.num_hidden_layers * (weights + 2 * length * c.hidden_size)

  def save(self, directory: str) -> None:
    """Writes the model's files, then `encoder.json`, under `directory`, which is a sentence-transformers directory."""
    for name, content in self._model.files.items():
      files.write_bytes(os.path.join(directory, name), content)
    meta = {"kind": self.kind, "config": dataclasses.asdict(self.config)}
    meta["sha256"] = sha256(self._model.files)
    storage.write_artifact(directory, "encoder", meta, {})

  @classmethod
  def load(cls, directory: str) -> "FittedSentenceTransformer":
    """Reads what `save` wrote.

    Raises:
      InputError: a file is missing or differs from what was saved.
    """
    meta, _ = storage.read_artifact(directory, "encoder")
    return cls(config=SentenceTransformer(**meta["config"]), directory=directory, expected=meta["sha256"])

  def _tokenise(self, texts: Sequence[str]) -> list[np.ndarray]:
    whole = [text.encode("utf-8", "replace").decode() for text in texts]  # the tokenizer refuses lone surrogates
    return [np.array(encoding.ids, np.int32) for encoding in self._model.tokenizer.encode_batch_fast(whole)]

  @functools.cached_property
  def _program(self) -> tuple[Any, Any, NamedSharding]:
    """The compiled forward pass, the parameters on every device, and the sharding of a batch; made on first use."""
    dtype = self.config.dtype
    if dtype == "auto":
      dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model, pooling = BertEncoder(self._model.config, jnp.dtype(dtype)), self._model.pooling
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    everywhere, split = P(), P("data")

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(everywhere, split, split), out_specs=split, check_vma=False)
    def step(params, ids, sizes):
      mask = jnp.arange(ids.shape[1]) < sizes[:, None]
      # By default an accelerator rounds the factors of float32 products.
      with jax.default_matmul_precision("float32"):
        hidden: Any = model.apply({"params": params}, ids, mask)
      if pooling == "cls":
        pooled = hidden[:, 0]
      else:
        pooled = jnp.where(mask[..., None], hidden, 0).sum(axis=1) / sizes[:, None]
      return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)

    return step, jax.device_put(self._model.params, NamedSharding(mesh, everywhere)), NamedSharding(mesh, split)
