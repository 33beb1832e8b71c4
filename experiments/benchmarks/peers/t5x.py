"""The step of t5x's decoder-only example, for `anchor_throughput.py --peer`; the folder is a checkout of t5x.

Its network with document masks, and its defaults for the rest: Adafactor is replaced by AdamW, so that all sides
compute the same kind of update. t5x itself (and seqio with it) is not imported.
"""

import sys
import types

import jax
import jax.numpy as jnp
import optax
from common import optax_steps

sys.modules["t5x"] = types.ModuleType("t5x")
sys.modules["t5x"].__path__ = [f"{sys.path[0]}/t5x"]
from t5x.examples.decoder_only import network  # noqa: E402


def training_step(flags, batch):
  """A function that starts one more step on the batch and returns its results."""
  config = network.TransformerConfig(
    vocab_size=flags.vocab,
    dtype=jnp.dtype(flags.dtype),
    emb_dim=flags.width,
    num_heads=flags.heads,
    num_layers=flags.layers,
    head_dim=flags.head_dim,
    mlp_dim=4 * flags.width,
    dropout_rate=0.0,
    logits_via_embedding=True,
  )
  decoder = network.Decoder(config)
  names = ("input_tokens", "target_tokens", "segment_ids", "positions")
  inputs = jax.device_put([batch[f"decoder_{name}"] for name in names])
  params = jax.jit(lambda key: decoder.init(key, *inputs, enable_dropout=False))(jax.random.key(0))["params"]
  optimizer = optax.adamw(1e-3, weight_decay=0.1)

  def losses(params):
    logits = decoder.apply({"params": params}, *inputs, enable_dropout=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, inputs[1]).mean()

  return optax_steps(losses, params, optimizer)
