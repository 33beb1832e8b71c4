"""What the backward pass keeps of the forward pass, read from the program of the gradients; no device computes."""

import collections

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from hiermem_jax.models.config import AnchorConfig, ModelConfig
from hiermem_jax.models.model import init_params
from hiermem_jax.parallel.layout import abstract_arrays
from hiermem_jax.parallel.mesh import abstract_mesh
from hiermem_jax.training.config import Objective
from hiermem_jax.training.step import make_gradients

SIZES = {"num_layers": 3, "width": 8, "num_heads": 2, "head_dim": 4, "mlp_width": 12, "vocab_size": 24}


def computed(jaxpr):
  """Primitive and shape of every array that a program, or one within it, computes."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield equation.primitive.name, getattr(variable.aval, "shape", ())
    for inner in jaxprs_in_params(equation.params):
      yield from computed(inner)


def gradients(mesh_shape, **changes):
  """How often the gradients' program computes what, for 16 sequences of 128 tokens."""
  model, mesh = ModelConfig(anchor=AnchorConfig(**SIZES | changes)), abstract_mesh(mesh_shape)
  params = abstract_arrays(lambda: init_params(jax.random.key(0), model), mesh)
  names = ("input_tokens", "target_tokens", "segment_ids", "positions")
  batch = {f"decoder_{name}": jax.ShapeDtypeStruct((16, 128), jnp.int32) for name in names}
  batch["decoder_loss_weights"] = jax.ShapeDtypeStruct((16, 128), jnp.float32)
  function = make_gradients(model, mesh, objective=Objective())
  program = jax.make_jaxpr(function)(params, jax.ShapeDtypeStruct((16,), jnp.int32), batch)
  return collections.Counter(computed(program.jaxpr))


@pytest.mark.parametrize("mesh", [(1, 4, 1, 1), (2, 2, 1, 2)])
def test_whole_weight_of_a_layer_is_not_kept(mesh):
  """The loop forward would hand [layers, width, MLP] to the one backward, whose results are parts of that."""
  found = gradients(mesh)
  assert found["all_gather", (8, 12)] == 2 * 2  # w1 and w2, forward and backward
  assert found["scan", (3, 8 // mesh[1], 12)] >= 2
  assert not [shape for name, shape in found if name == "scan" and shape in ((3, 8, 12), (3, 12, 8), (3, 8, 8))]


def test_without_remat_one_device_computes_nothing_again():
  plain, again = gradients((1, 1, 1, 1)), gradients((1, 1, 1, 1), remat="full")
  products = [sum(n for (name, _), n in found.items() if name == "dot_general") for found in (plain, again)]
  # Per layer 7 weights and 2 products of attention, and the head; 3 products for each, and one more of all but the last.
  assert products == [3 * 10, 3 * 10 + 8]
  many = gradients((1, 4, 1, 1))
  assert sum(n for (name, _), n in many.items() if name == "dot_general") == products[0]


@pytest.mark.parametrize("remat, kept, moved", [("full", 0, 0), (("attention",), 1, 0), (("attention@host",), 1, 2)])
def test_output_of_the_attention_kernel_is_kept_where_that_is_asked_for(remat, kept, moved):
  """Of all layers, [layers, B, N, S, H], once; to the host and back where it waits there."""
  found = gradients((1, 2, 1, 1), attention="splash", head_dim=128, remat=remat)
  assert found["scan", (3, 8, 2, 128, 128)] == kept
  assert found["device_put", (8, 2, 128, 128)] == moved
