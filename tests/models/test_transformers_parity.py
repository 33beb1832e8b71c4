"""The anchor against independent PyTorch models: Llama for the whole decoder, OLMo 2 for q/k norm over the flat heads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermem_jax.models.anchor import Anchor, Attention
from hiermem_jax.models.attention import document_mask
from hiermem_jax.models.config import AnchorConfig
from hiermem_jax.models.rope import rope_angles

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = AnchorConfig(
  num_layers=3,
  width=20,
  num_heads=4,
  head_dim=6,  # decoupled: 4 * 6 is not 20
  mlp_width=36,
  vocab_size=41,
  norm="rmsnorm",
  norm_eps=1e-4,
  qk_norm=False,
  rope_base=500.0,
  dtype="float32",
)


def hugging_face(config, kind):
  return kind(
    vocab_size=config.vocab_size,
    hidden_size=config.width,
    intermediate_size=config.mlp_width,
    num_hidden_layers=config.num_layers,
    num_attention_heads=config.num_heads,
    num_key_value_heads=config.num_heads,
    head_dim=config.head_dim,
    hidden_act="silu",
    max_position_embeddings=64,
    rms_norm_eps=config.norm_eps,
    tie_word_embeddings=config.tied_embeddings,
    rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
    attn_implementation="eager",
  )


def randomise(module, seed=0):
  """Gains near one, matrices of a size that makes attention uneven."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in module.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else 0.3 * noise)
  return module.eval()


def linear(weight):
  return {"kernel": weight.detach().numpy().T}


def gain(norm):
  return {"norm": {"scale": norm.weight.detach().numpy()}}


def llama_params(model):
  layers = []
  for layer in model.model.layers:
    attention, mlp = layer.self_attn, layer.mlp
    layers.append(
      {
        "attention_norm": gain(layer.input_layernorm),
        "attention": {
          "query": linear(attention.q_proj.weight),
          "key": linear(attention.k_proj.weight),
          "value": linear(attention.v_proj.weight),
          "out": linear(attention.o_proj.weight),
        },
        "feed_forward_norm": gain(layer.post_attention_layernorm),
        "feed_forward": {
          "w1": linear(mlp.gate_proj.weight),
          "w2": linear(mlp.up_proj.weight),
          "w3": linear(mlp.down_proj.weight),
        },
      }
    )
  params = {
    "embed": {"embedding": model.model.embed_tokens.weight.detach().numpy()},
    "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
    "final_norm": gain(model.model.norm),
  }
  return params if model.config.tie_word_embeddings else params | {"head": linear(model.lm_head.weight)}


@pytest.mark.parametrize("tied", [False, True])
def test_llama_logits(tied):
  config = dataclasses.replace(CONFIG, tied_embeddings=tied)
  model = randomise(transformers.LlamaForCausalLM(hugging_face(config, transformers.LlamaConfig)))
  tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 17))
  with torch.no_grad():
    expected = model(torch.tensor(tokens)).logits.numpy()
  segments, positions = np.ones_like(tokens), np.tile(np.arange(17), (2, 1))
  logits = jax.jit(Anchor(config).apply)({"params": llama_params(model)}, tokens, segments, positions)
  assert expected.std() > 0.1
  np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_olmo2_attention_with_norms_over_the_flat_heads():
  olmo2 = pytest.importorskip("transformers.models.olmo2.modeling_olmo2")
  config = dataclasses.replace(CONFIG, qk_norm=True)
  theirs = hugging_face(config, transformers.Olmo2Config)
  attention = randomise(olmo2.Olmo2Attention(theirs, layer_idx=0))
  x = np.random.default_rng(0).standard_normal((2, 11, config.width)).astype(np.float32)
  positions = np.tile(np.arange(11), (2, 1))
  segments = jnp.ones((2, 11), jnp.int32)
  mask = np.asarray(document_mask(segments))
  with torch.no_grad():
    angles = olmo2.Olmo2RotaryEmbedding(theirs)(torch.tensor(x), torch.tensor(positions))
    blocked = torch.tensor(np.where(mask, 0.0, -np.inf).astype(np.float32))
    expected = attention(torch.tensor(x), angles, blocked)[0].numpy()
  params = {
    "query": linear(attention.q_proj.weight),
    "key": linear(attention.k_proj.weight),
    "value": linear(attention.v_proj.weight),
    "out": linear(attention.o_proj.weight),
    "query_norm": gain(attention.q_norm),
    "key_norm": gain(attention.k_norm),
  }
  ours = rope_angles(positions, config.head_dim, config.rope_base)
  inputs = (x, None, None, segments, positions, ours, None, jnp.int32(0))
  result, _ = jax.jit(Attention(config).apply)({"params": params}, *inputs)
  assert expected.std() > 0.1
  np.testing.assert_allclose(result, expected, atol=1e-5)
