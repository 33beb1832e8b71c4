"""Reads and checks a directory in the format of sentence-transformers.

It reads `config.json` and `model.safetensors` (the BERT model), `tokenizer.json`, `1_Pooling/config.json`, and
`modules.json` (the modules that are applied one after the other). No other file of the directory has an influence on
the embeddings.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.encoders.bert import BertConfig, from_hugging_face

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
POOLING, MODULES = "1_Pooling/config.json", "modules.json"
FILES = (CONFIG, WEIGHTS, TOKENIZER, POOLING, MODULES)
_FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}  # by the names of safetensors
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Model:
  """A sentence encoder, as read from its directory.

  Attributes:
    files: name -> content of each of `FILES`.
    config: shape of the BERT model.
    params: of `BertEncoder`, numpy float32.
    tokenizer: a `tokenizers.Tokenizer` that adds [CLS] and [SEP] and does not pad.
    pooling: "mean" or "cls".
  """

  files: Mapping[str, bytes]
  config: BertConfig
  params: Mapping[str, Any]
  tokenizer: Any
  pooling: str


def read_model(directory: str, expected: Mapping[str, str] | None = None) -> Model:
  """Reads a model.

  Args:
    directory: of the files.
    expected: name of each file -> sha256 that it must have; None for no check.

  Raises:
    InputError: a file is missing or damaged, or the model is not a BERT encoder with mean or [CLS] pooling.
  """
  files = {name: _read(f"{directory}/{name}") for name in FILES}
  if expected is not None:
    for name, found in sha256(files).items():
      if found != expected[name]:
        raise InputError(f"{directory}/{name} is damaged (another sha256): restore it or cluster the corpus again")
  fields = {name: _parse(files[name], f"{directory}/{name}") for name in (CONFIG, POOLING, MODULES)}
  config = BertConfig.from_hugging_face(fields[CONFIG], f"{directory}/{CONFIG}")
  _check_modules(fields[MODULES], f"{directory}/{MODULES}")
  return Model(
    files=files,
    config=config,
    params=_params(files[WEIGHTS], config, f"{directory}/{WEIGHTS}"),
    tokenizer=_tokenizer(files[TOKENIZER], config, f"{directory}/{TOKENIZER}"),
    pooling=_pooling(fields[POOLING], f"{directory}/{POOLING}"),
  )


def sha256(files: Mapping[str, bytes]) -> dict[str, str]:
  """Hexadecimal sha256 of each file."""
  return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def download(model: str) -> str:
  """Downloads a model from the Hugging Face hub and returns its directory.

  Args:
    model: hub id, e.g. "sentence-transformers/all-MiniLM-L6-v2".

  Raises:
    InputError: the hub cannot be reached or has no such model.
  """
  from huggingface_hub import snapshot_download

  logging.info("fetching %s from the Hugging Face hub", model)
  try:
    return snapshot_download(model, allow_patterns=list(FILES))
  except Exception as error:  # network, name and permission errors have no common class
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(
      f"SentenceTransformer.model = {model!r}: no such directory, and the download from the hub failed ({reason}); give"
      " the path of a sentence-transformers directory"
    ) from error


def _read(path: str) -> bytes:
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    reason = error.strerror or "not readable"
    raise InputError(f"{path}: {reason}; give a complete sentence-transformers directory") from error


def _parse(content: bytes, path: str) -> Any:
  """The JSON object in a file; for modules.json, the list of its objects."""
  try:
    found = json.loads(content)
  except ValueError as error:
    raise InputError(f"{path} is damaged (not json): copy or download it again") from error
  objects = found if path.endswith(MODULES) else [found]
  if not isinstance(objects, list) or not all(isinstance(entry, dict) for entry in objects):
    raise InputError(f"{path} is damaged (not json objects): copy or download it again")
  return found


def _params(content: bytes, config: BertConfig, path: str) -> dict[str, Any]:
  from safetensors import SafetensorError, deserialize

  try:
    found = deserialize(content)
  except SafetensorError as error:
    raise InputError(f"{path} is damaged ({error}): copy or download it again") from error
  # safetensors.numpy does not know bfloat16.
  tensors = {
    name: np.frombuffer(tensor["data"], _FLOATS[tensor["dtype"]]).reshape(tensor["shape"])
    for name, tensor in found
    if tensor["dtype"] in _FLOATS
  }
  return from_hugging_face(tensors, config, path)


def _tokenizer(content: bytes, config: BertConfig, path: str) -> Any:
  import tokenizers

  try:
    tokenizer = tokenizers.Tokenizer.from_str(content.decode())
  except Exception as error:  # the library raises plain Exception
    raise InputError(f"{path} is damaged: copy or download it again") from error
  if tokenizer.num_special_tokens_to_add(is_pair=False) != 2:
    raise InputError(f"{path} does not add [CLS] and [SEP]: give the tokenizer of a BERT model")
  if (size := 1 + max(tokenizer.get_vocab().values(), default=-1)) > config.vocab_size:
    raise InputError(f"{path} has {size} word pieces, config.json says {config.vocab_size}: give a matching pair")
  tokenizer.no_padding()
  return tokenizer


def _check_modules(modules: Sequence[Mapping[str, Any]], path: str) -> None:
  kinds = {str(module.get("type")).rsplit(".", 1)[-1] for module in modules}
  if other := sorted(kinds - {"Transformer", "Pooling", "Normalize"}):
    raise InputError(f"{path}: module {other[0]} is not supported; give a model without it")


def _pooling(fields: Mapping[str, Any], path: str) -> str:
  chosen = sorted(name for name, value in fields.items() if name.startswith("pooling_mode_") and value is True)
  if len(chosen) != 1 or chosen[0] not in _POOLINGS:
    found = " and ".join(chosen) or "no pooling"
    raise InputError(f"{path}: {found} is not supported; give a model with {' or '.join(_POOLINGS)}")
  return _POOLINGS[chosen[0]]
