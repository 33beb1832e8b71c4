"""What a device gets of a sequence that it shares; `tests/parallel/test_shared_sequences.py` has eight that do."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.models import AnchorConfig, context
from hiermem_jax.models.anchor import init_anchor
from hiermem_jax.models.losses import anchor_losses
from hiermem_jax.parallel import batch_parallel
from hiermem_jax.parallel.mesh import BATCH_AXES, CONTEXT_AXIS, DEFAULT_RULES, abstract_mesh

SEQUENCES, POSITIONS = PartitionSpec(BATCH_AXES), PartitionSpec(BATCH_AXES, CONTEXT_AXIS)


def shapes(mesh, split_positions):
  """Shapes on a device, of 8 sequences of 24 positions: segments, all heads' queries, some heads', and these again."""
  seen = []

  def local(segments, q):
    heads = context.to_heads(q)
    seen.extend(x.shape for x in (context.whole_sequence(segments), q, heads, context.to_positions(heads)))
    return segments

  spec = POSITIONS if split_positions else SEQUENCES
  run = batch_parallel(local, abstract_mesh(mesh), DEFAULT_RULES, (spec, spec), spec, split_positions=split_positions)
  jaxpr = jax.make_jaxpr(run)(jnp.zeros((8, 24), jnp.int32), jnp.zeros((8, 24, 12, 2)))
  return seen, str(jaxpr).count("all_to_all[") + str(jaxpr).count("all_gather[")


@pytest.mark.parametrize("model", [1, 2])
def test_all_positions_of_a_part_of_the_heads(model):
  seen, collectives = shapes((1, 2, 3, model), split_positions=True)
  assert seen == [(4, 24), (4, 8, 12, 2), (4, 24, 4, 2), (4, 8, 12, 2)]
  assert collectives == 3


@pytest.mark.parametrize("mesh, split_positions", [((1, 2, 1, 2), True), ((1, 2, 3, 1), False)])
def test_nothing_moves_where_a_device_has_whole_sequences(mesh, split_positions):
  seen, collectives = shapes(mesh, split_positions)
  assert seen == [(4, 24), (4, 24, 12, 2), (4, 24, 12, 2), (4, 24, 12, 2)]
  assert collectives == 0


def test_outside_of_a_mesh():
  x = jnp.zeros((2, 4, 3, 2))
  assert context.axis() is None
  assert context.to_heads(x) is x and context.to_positions(x) is x and context.whole_sequence(x) is x


def test_chunk_of_logits_that_does_not_divide_a_part():
  anchor = AnchorConfig(num_layers=1, width=8, num_heads=4, head_dim=2, mlp_width=8, vocab_size=8, logits_chunk=4)
  names = ("input_tokens", "target_tokens", "segment_ids", "positions")
  batch = {f"decoder_{name}": jnp.zeros((2, 24), jnp.int32) for name in names}
  params = nn.unbox(jax.eval_shape(lambda: init_anchor(jax.random.key(0), anchor)))
  run = batch_parallel(
    lambda params, batch: anchor_losses(anchor, params, batch, None),
    abstract_mesh((1, 1, 4, 1)),
    DEFAULT_RULES,
    (PartitionSpec(), POSITIONS),
    POSITIONS,
    split_positions=True,
  )
  message = "AnchorConfig.logits_chunk = 4: does not divide a device's parts of sequences of 6; bind a divisor"
  with pytest.raises(InputError, match=message):
    jax.eval_shape(run, params, batch)
