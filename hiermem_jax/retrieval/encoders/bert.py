"""The BERT encoder (Devlin et al., 2019) in Flax: word pieces -> one vector per position.

It has no dropout, no pooler and no output heads, which a sentence encoder does not use. Letters in shapes: B sequences,
S positions, D width, N heads, H head width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hiermem_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
  """The fields of a Hugging Face config.json that decide the computation, under the names that they have there."""

  vocab_size: int
  hidden_size: int
  num_hidden_layers: int
  num_attention_heads: int
  intermediate_size: int
  max_position_embeddings: int
  type_vocab_size: int
  layer_norm_eps: float

  @classmethod
  def from_hugging_face(cls, fields: Mapping[str, Any], path: str) -> "BertConfig":
    """Reads the content of a config.json.

    Raises:
      InputError: a field is missing or not a positive number, or the model is not a plain BERT encoder.
    """
    required = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    defaults = {"position_embedding_type": "absolute", "is_decoder": False}
    for name, value in required.items():
      if (found := fields.get(name, defaults.get(name))) != value:
        raise InputError(f"{path}: {name} is {found!r}, only {value!r} is supported: give a BERT sentence encoder")
    try:
      config = cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})
    except KeyError as error:
      raise InputError(f"{path}: field {error} is missing: give the config.json of a BERT model") from None
    for field in dataclasses.fields(cls):
      value, kind = getattr(config, field.name), float if field.name == "layer_norm_eps" else int
      if isinstance(value, bool) or not isinstance(value, kind) or value <= 0:
        raise InputError(f"{path}: {field.name} is {value!r}: give a positive {kind.__name__}")
    if config.hidden_size % config.num_attention_heads:
      raise InputError(f"{path}: hidden_size {config.hidden_size} is not a multiple of its attention heads: mend it")
    return config


class BertEncoder(nn.Module):
  """Embeddings and post-norm transformer layers.

  Attributes:
    config: shape of the model.
    dtype: of activations and matrix products. Normalisation, softmax and the result are float32.
  """

  config: BertConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Encodes word pieces.

    Args:
      ids: int32 [B, S].
      mask: bool [B, S]; False for padding, which no position attends to.

    Returns:
      float32 [B, S, D]; the vectors of padded positions have no meaning.
    """
    c = self.config
    x = nn.Embed(c.vocab_size, c.hidden_size, name="word")(ids)
    x += nn.Embed(c.max_position_embeddings, c.hidden_size, name="position")(jnp.arange(ids.shape[1]))
    x += nn.Embed(c.type_vocab_size, c.hidden_size, name="type")(jnp.zeros(1, jnp.int32))
    x = nn.LayerNorm(epsilon=c.layer_norm_eps, name="norm")(x)
    bias = jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)  # [B, S]
    for layer in range(c.num_hidden_layers):
      x = _Layer(c, self.dtype, name=f"layer_{layer}")(x, bias)
    return x


class _Layer(nn.Module):
  config: BertConfig
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
    c = self.config
    heads, width = c.num_attention_heads, c.hidden_size // c.num_attention_heads
    qkv = nn.Dense(3 * c.hidden_size, dtype=self.dtype, name="qkv")(x)
    qkv = qkv.reshape(*x.shape[:2], 3, heads, width).transpose(0, 2, 3, 1, 4)  # [B, 3, N, S, H]
    if jax.default_backend() == "cpu":  # one sequence at a time, so that its scores stay in the cache
      context = jax.lax.map(lambda sequence: _attend(*sequence), (qkv, bias))
    else:
      context = jax.vmap(_attend)(qkv, bias)
    context = context.transpose(0, 2, 1, 3).reshape(x.shape)
    attended = nn.Dense(c.hidden_size, dtype=self.dtype, name="output")(context)
    x = nn.LayerNorm(epsilon=c.layer_norm_eps, name="attention_norm")(x + attended)
    inner = jax.nn.gelu(nn.Dense(c.intermediate_size, dtype=self.dtype, name="up")(x), approximate=False)
    return nn.LayerNorm(epsilon=c.layer_norm_eps, name="norm")(
      x + nn.Dense(c.hidden_size, dtype=self.dtype, name="down")(inner)
    )


def _attend(qkv: jax.Array, bias: jax.Array) -> jax.Array:
  """Attention of one sequence: [3, N, S, H], float32 [S] -> [N, S, H]."""
  q, k, v = qkv
  scores = jnp.einsum("nqh,nkh->nqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
  weights = jax.nn.softmax(scores + bias).astype(v.dtype)
  return jnp.einsum("nqk,nkh->nqh", weights, v)


def from_hugging_face(tensors: Mapping[str, np.ndarray], config: BertConfig, path: str) -> dict[str, Any]:
  """Parameters of `BertEncoder`, made of the weights of Hugging Face's `BertModel`.

  Args:
    tensors: name -> tensor. The names may start with "bert.".
    config: shape of the model.
    path: of the file, for messages.

  Raises:
    InputError: a tensor is missing or has another shape.
  """
  width, inner = config.hidden_size, config.intermediate_size

  def take(name: str, *shape: int) -> np.ndarray:
    tensor = tensors.get(name, tensors.get(f"bert.{name}"))
    if tensor is None:
      raise InputError(f"{path}: tensor {name} is missing: give the weights of a BERT encoder")
    if tensor.shape != shape:
      raise InputError(f"{path}: tensor {name} has shape {tensor.shape}, config.json says {shape}: give a pair")
    return np.asarray(tensor, np.float32)

  def embedding(name: str, size: int) -> dict[str, np.ndarray]:
    return {"embedding": take(f"embeddings.{name}_embeddings.weight", size, width)}

  def norm(name: str) -> dict[str, np.ndarray]:
    return {"scale": take(f"{name}.LayerNorm.weight", width), "bias": take(f"{name}.LayerNorm.bias", width)}

  def dense(names: tuple[str, ...], inputs: int, outputs: int) -> dict[str, np.ndarray]:
    return {
      "kernel": np.concatenate([take(f"{name}.weight", outputs, inputs).T for name in names], axis=1),
      "bias": np.concatenate([take(f"{name}.bias", outputs) for name in names]),
    }

  params: dict[str, Any] = {
    "word": embedding("word", config.vocab_size),
    "position": embedding("position", config.max_position_embeddings),
    "type": embedding("token_type", config.type_vocab_size),
    "norm": norm("embeddings"),
  }
  for layer in range(config.num_hidden_layers):
    at = f"encoder.layer.{layer}"
    attention = f"{at}.attention"
    params[f"layer_{layer}"] = {
      "qkv": dense(tuple(f"{attention}.self.{name}" for name in ("query", "key", "value")), width, width),
      "output": dense((f"{attention}.output.dense",), width, width),
      "attention_norm": norm(f"{attention}.output"),
      "up": dense((f"{at}.intermediate.dense",), width, inner),
      "down": dense((f"{at}.output.dense",), inner, width),
      "norm": norm(f"{at}.output"),
    }
  return params
