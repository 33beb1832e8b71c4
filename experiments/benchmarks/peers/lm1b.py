"""The step of flax's lm1b example, for `anchor_throughput.py --peer`; the folder is flax/examples/lm1b.

`train.train_step`, jitted as in its `train_and_evaluate`, without dropout; `logits_via_embedding` ties the embeddings.
It needs TensorFlow, tensorflow_datasets and tensorflow_text to be imported.
"""

import functools

import jax
import models
import optax
import train
from flax import linen as nn
from flax.training.train_state import TrainState


def training_step(flags, batch):
  """A function that starts one more step on the batch and returns its results."""
  config = models.TransformerConfig(
    vocab_size=flags.vocab,
    output_vocab_size=flags.vocab,
    logits_via_embedding=True,
    dtype=flags.dtype,
    emb_dim=flags.width,
    num_heads=flags.heads,
    num_layers=flags.layers,
    qkv_dim=flags.heads * flags.head_dim,
    mlp_dim=4 * flags.width,
    max_len=flags.length,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
  )
  names = {"inputs": "target_tokens", "inputs_position": "positions", "inputs_segmentation": "segment_ids"}
  batch = jax.device_put({ours: batch[f"decoder_{theirs}"] for ours, theirs in names.items()})
  model = models.TransformerLM(config)
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), batch["inputs"]))["params"]
  rate = train.create_learning_rate_schedule(learning_rate=0.0016, warmup_steps=1000)
  optimizer = optax.adamw(rate, b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.1)
  state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
  step = jax.jit(train.train_step, static_argnums=(2, 3, 4), donate_argnums=0)
  run_step = functools.partial(step, dropout_rng=jax.random.key(1))

  def run():
    nonlocal state
    state, metrics = run_step(state, batch, config, rate, 0.0)
    return state, metrics

  return run
