"""Sentence encoders in the directory format of sentence-transformers: word pieces, BERT, pooling, unit norm.

The paper's encoder is all-MiniLM-L6-v2, which reads the first 256 word pieces of a text, averages their vectors and
scales the result to unit norm.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval import storage
from hiermem_jax.retrieval.encoders.bert import BertConfig, BertEncoder, from_hugging_face

# What decides the vectors, by name in a sentence-transformers directory.
_CONFIG, _WEIGHTS, _TOKENIZER, _POOLING = "config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"
_MODULES = "modules.json"
_FILES = (_CONFIG, _WEIGHTS, _TOKENIZER, _POOLING, _MODULES)
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_LENGTH_STEP = 32  # lengths are rounded up to multiples, so that few shapes are compiled
_DTYPES = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceTransformer:
  """A BERT model in a sentence-transformers directory.

  Attributes:
    model: the directory, or a hub id such as "sentence-transformers/all-MiniLM-L6-v2".
    max_word_pieces: word pieces of a text that are read, [CLS] and [SEP] included (paper: the model's default, 256).
    dtype: of the computation: "float32", "bfloat16", or "auto", which is bfloat16 on accelerators.
    batch_word_pieces: word pieces of a batch on one device, padding included.
  """

  model: str
  max_word_pieces: int = 256
  dtype: str = "auto"
  batch_word_pieces: int = 4096

  def __post_init__(self):
    if self.dtype not in _DTYPES:
      raise InputError(f"SentenceTransformer.dtype = {self.dtype!r}: give one of {', '.join(_DTYPES)}")
    for name, least in (("max_word_pieces", 3), ("batch_word_pieces", self.max_word_pieces)):
      if getattr(self, name) < least:
        raise InputError(f"SentenceTransformer.{name} = {getattr(self, name)}: give at least {least}")

  def fit(self, texts: Iterable[str]) -> "FittedSentenceTransformer":
    """Loads the model; the texts are not read.

    Raises:
      InputError: no such directory or hub id, a file is missing, or the model is of another kind.
    """
    del texts
    directory = self.model if os.path.isdir(self.model) else _download(self.model)
    return FittedSentenceTransformer(config=self, directory=directory)


class FittedSentenceTransformer:
  """A loaded model; made by `SentenceTransformer.fit` or `load_encoder`.

  Attributes:
    config: the settings it was loaded with.
    directory: where its files are.
    dim: length of an embedding.
  """

  def __init__(self, *, config: SentenceTransformer, directory: str):
    """Loads the files of a sentence-transformers directory.

    Raises:
      InputError: a file is missing or damaged, or the model is not a BERT encoder with mean or [CLS] pooling.
    """
    import tokenizers
    from safetensors import SafetensorError
    from safetensors.numpy import load

    self.config = config
    self.directory = directory
    self._content = {name: _read(directory, name) for name in _FILES}
    fields = {name: _parse(directory, name, self._content[name]) for name in (_CONFIG, _POOLING, _MODULES)}
    bert = BertConfig.from_hugging_face(fields[_CONFIG], os.path.join(directory, _CONFIG))
    if config.max_word_pieces > bert.max_position_embeddings:
      raise InputError(
        f"SentenceTransformer.max_word_pieces = {config.max_word_pieces}: {directory} has"
        f" {bert.max_position_embeddings} positions; give at most that"
      )
    self._pooling = _pooling(fields[_POOLING], fields[_MODULES], directory)
    try:
      tensors = load(self._content[_WEIGHTS])
    except SafetensorError as error:
      raise InputError(f"{directory}/{_WEIGHTS} is damaged ({error}): copy or download it again") from error
    self._params = from_hugging_face(tensors, bert, f"{directory}/{_WEIGHTS}")
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(self._content[_TOKENIZER].decode())
    except Exception as error:  # the library raises plain Exception
      raise InputError(f"{directory}/{_TOKENIZER} is damaged: copy or download it again") from error
    self._tokenizer.no_padding()
    self._tokenizer.enable_truncation(config.max_word_pieces)
    self._bert = bert
    self.dim = bert.hidden_size

  @functools.cached_property
  def fingerprint(self) -> str:
    """First 16 hex characters of a sha256 over the files and the truncation; how it is computed does not count."""
    meta = {"max_word_pieces": self.config.max_word_pieces, "pooling": self._pooling}
    meta |= {name: hashlib.sha256(self._content[name]).hexdigest() for name in (_CONFIG, _WEIGHTS, _TOKENIZER)}
    return storage.digest(meta, {})

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """Embeds texts: float32 [len(texts), dim], unit L2 norm rows.

    Texts are sorted by length and run in batches of few shapes, split over all local devices; the next batch is
    prepared while one runs.
    """
    result = np.empty((len(texts), self.dim), np.float32)
    pending = None
    for rows, ids, sizes in self.batches(texts):
      vectors = self.run(ids, sizes)
      if pending is not None:
        _collect(result, *pending)
      pending = (rows, vectors)
    if pending is not None:
      _collect(result, *pending)
    return result

  def flops(self, length: int) -> int:
    """FLOPs of one text of `length` word pieces, matrix products only, two for a multiplication and an addition."""
    c = self._bert
    weights = 4 * c.hidden_size**2 + 2 * c.hidden_size * c.intermediate_size
    return 2 * length * c.num_hidden_layers * (weights + 2 * length * c.hidden_size)

  def save(self, directory: str) -> None:
    """Writes the model's files and `encoder.json`, which goes last, under `directory`.

    The result is a sentence-transformers directory.
    """
    folder = pathlib.Path(directory)
    for name, content in self._content.items():
      target = folder / name
      target.parent.mkdir(parents=True, exist_ok=True)
      temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
      try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
      finally:
        temporary.unlink(missing_ok=True)
    storage.write_artifact(directory, "encoder", self._meta(), {})

  @classmethod
  def load(cls, directory: str) -> "FittedSentenceTransformer":
    """Reads what `save` wrote.

    Raises:
      InputError: a file is missing or differs from what was saved.
    """
    meta, _ = storage.read_artifact(directory, "encoder")
    encoder = cls(config=SentenceTransformer(**meta["config"]), directory=directory)
    for name, content in encoder._content.items():
      if hashlib.sha256(content).hexdigest() != meta["sha256"][name]:
        raise InputError(f"{directory}/{name} is damaged (another sha256): restore it or cluster the corpus again")
    return encoder

  def _meta(self) -> dict[str, Any]:
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in self._content.items()}
    return {"kind": "sentence_transformer", "config": dataclasses.asdict(self.config), "sha256": sha256}

  def batches(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of `texts` [n], their word pieces int32 [b, S], padded, and numbers of word pieces int32 [b], b >= n."""
    texts = [text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates
    pieces = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
    order = np.argsort([-len(p) for p in pieces], kind="stable")  # longest first: what needs most memory fails at once
    start = 0
    while start < len(order):
      length = min(-(-len(pieces[order[start]]) // _LENGTH_STEP) * _LENGTH_STEP, self._bert.max_position_embeddings)
      size = max(1, self.config.batch_word_pieces // length) * jax.local_device_count()
      rows = order[start : start + size]
      ids = np.zeros((size, length), np.int32)
      sizes = np.ones(size, np.int32)  # of the rows that fill up the last batch
      for row, text in enumerate(rows):
        sizes[row] = len(pieces[text])
        ids[row, : sizes[row]] = pieces[text]
      yield rows, ids, sizes
      start += len(rows)

  def run(self, ids: np.ndarray, sizes: np.ndarray) -> jax.Array:
    """Vectors of one batch: int32 [b, S] word pieces, int32 [b] numbers of them -> float32 [b, dim], unit norm rows."""
    split, params, step = self._program
    return step(params, jax.device_put(ids, split), jax.device_put(sizes, split))

  @functools.cached_property
  def _program(self):
    """Layout of a batch, the parameters on every device, and the compiled step; made on first use."""
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    split, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    dtype = self.config.dtype
    if dtype == "auto":
      dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model, pooling = BertEncoder(self._bert, jnp.dtype(dtype)), self._pooling

    @functools.partial(jax.jit, in_shardings=(everywhere, split, split), out_shardings=split)
    def step(params, ids, sizes):
      mask = jnp.arange(ids.shape[1]) < sizes[:, None]
      hidden = model.apply({"params": params}, ids, mask)
      if pooling == "cls":
        pooled = hidden[:, 0]
      else:
        pooled = jnp.einsum("bsd,bs->bd", hidden, mask.astype(jnp.float32), precision="highest") / sizes[:, None]
      return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)

    return split, jax.device_put(self._params, everywhere), step


def _collect(result: np.ndarray, rows: np.ndarray, vectors: jax.Array) -> None:
  result[rows] = np.asarray(vectors)[: len(rows)]


def _download(model: str) -> str:
  from huggingface_hub import snapshot_download

  logging.info("fetching %s from the Hugging Face hub", model)
  try:
    return snapshot_download(model, allow_patterns=list(_FILES))
  except Exception as error:  # network, name and permission errors have no common class
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(
      f"SentenceTransformer.model = {model!r}: no such directory, and not to be had from the hub ({reason}); give the"
      " path of a sentence-transformers directory"
    ) from error


def _read(directory: str, name: str) -> bytes:
  path = pathlib.Path(directory) / name
  try:
    return path.read_bytes()
  except OSError as error:
    reason = error.strerror or "not readable"
    raise InputError(f"{path}: {reason}; give a complete sentence-transformers directory") from error


def _parse(directory: str, name: str, content: bytes) -> Any:
  try:
    return json.loads(content)
  except ValueError as error:
    raise InputError(f"{directory}/{name} is damaged (not json): copy or download it again") from error


def _pooling(pooling: dict[str, Any], modules: Sequence[dict[str, Any]], directory: str) -> str:
  kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
  if other := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
    raise InputError(f"{directory}/{_MODULES}: module {other[0]} is not supported; give a model without it")
  chosen = sorted(name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True)
  if len(chosen) != 1 or chosen[0] not in _POOLINGS:
    raise InputError(
      f"{directory}/{_POOLING}: {' and '.join(chosen) or 'no pooling'} is not supported; give a model with mean or"
      " [CLS] pooling"
    )
  return _POOLINGS[chosen[0]]
