"""The step of nanodo, for `anchor_throughput.py --peer`; the folder is a checkout of google-deepmind/nanodo.

Its model and optimizer, and the step of its `train.py` without the statistics that it logs (so that grain is not
needed). It has no document masks: each sequence is one document to it.
"""

import jax
import jax.numpy as jnp
import optax
from common import optax_steps
from flax import linen as nn
from nanodo import model, optimizer
from nanodo.configs import default


def training_step(flags, batch):
  """A function that starts one more step on the batch and returns its results."""
  sizes = {"D": flags.width, "H": flags.heads, "L": flags.length, "N": flags.layers, "V": flags.vocab}
  decoder = model.TransformerDo(model.DoConfig(**sizes, F=4 * flags.width, dtype=flags.dtype))
  tokens = jax.device_put(batch["decoder_target_tokens"])
  params = nn.unbox(jax.jit(decoder.init)(jax.random.key(0), tokens))["params"]
  transformation = optimizer.get_optimizer(default.get_config().opt)

  def losses(params):
    logits = decoder.apply({"params": params}, jnp.pad(tokens[:, :-1], ((0, 0), (1, 0))))
    weights = tokens > 0
    return (optax.softmax_cross_entropy_with_integer_labels(logits, tokens) * weights).sum() / weights.sum()

  return optax_steps(losses, params, transformation)
