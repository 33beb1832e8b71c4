"""The least bytes of HBM that a training step moves, by arithmetic; `cost` counts what a compiled one does.

Arrays that are made and used in one place may stay on the chip, and cost nothing here: queries, keys, values, neurons,
norms. What is counted is too large for that, unless the whole model is tiny, or waits for another part of the step:

  state         parameters and moments that the update changes, read and written once; of lazy tables the fetched rows
  weights       each matrix in the type of the computation, read in every pass that uses it, and written first where its
                parts are gathered; its gradient, written and read
  activations   what remat keeps of every layer, written forward and read backward
  logits        written and read, and so is their gradient
  block         the fetched rows, written once and read in every pass that uses them; their gradient, written and read
"""

from typing import Any

import jax
from jax.sharding import Mesh

from hiermem_jax.models.anchor_config import ON_HOST, AnchorConfig
from hiermem_jax.models.config import ModelConfig
from hiermem_jax.parallel.layout import bytes_per_device
from hiermem_jax.parallel.mesh import CONTEXT_AXIS, DATA_AXIS, MODEL_AXIS, batch_shards


def least_bytes(
  model: ModelConfig, mesh: Mesh, state: Any, *, batch_size: int, length: int, microbatches: int = 1
) -> dict[str, float]:
  """Bytes per device and step, by the module's terms.

  Args:
    model: shapes of the anchor and of the memory.
    mesh: the mesh.
    state: shapes, types and shardings of the training state: `params` and `opt_state`, each of "anchor" and "bank".
    batch_size: sequences of a global batch.
    length: tokens of a sequence.
    microbatches: parts of a device's sequences, each of which needs the weights and adds to their gradient.
  """
  anchor, parts = model.anchor, mesh.shape[MODEL_AXIS]
  size = 2 if anchor.dtype == "bfloat16" else 4
  sequences = batch_size // batch_shards(mesh)
  tokens = sequences * length // mesh.shape[CONTEXT_AXIS]
  again = 0 if anchor.remat in ("none", "dots") else 1  # times that the layers' matrices are multiplied once more
  gathered = any(DATA_AXIS in x.sharding.spec for x in jax.tree.leaves(state.params["anchor"]))

  head = anchor.vocab_size * anchor.width
  layers = anchor.params - anchor.embedding_params
  head_passes = 2 if anchor.logits_chunk is None else 3
  trained = _anchor_trained(state)
  moves = (2 + again) * layers * (1 + gathered) + (head_passes + gathered) * head + 2 * trained * (layers + head)
  return {
    "state": _updated(state, batch_size),
    "weights": size * moves * microbatches / parts,
    "activations": 2 * size * tokens * anchor.num_layers * _kept_width(anchor, parts),
    "logits": 4 * size * tokens * anchor.vocab_size / parts,
    "block": (1 + 2 + again + 2) * size * sequences * model.fetched_params / parts,
  }


def _anchor_trained(state: Any) -> bool:
  """Whether the anchor has moments; a frozen one has counts of steps at most."""
  return any(x.ndim for x in jax.tree.leaves(state.opt_state["anchor"]))


def _updated(state: Any, batch_size: int) -> float:
  """Bytes of parameters and moments that an update reads and writes."""
  total = 0.0
  if _anchor_trained(state):
    total += 2 * bytes_per_device((state.params["anchor"], state.opt_state["anchor"]))
  for name, table in state.params.get("bank", {}).items():
    moments = state.opt_state["bank"][name]
    share = min(1.0, batch_size / len(table)) if moments.row_steps.ndim else 1.0  # lazy tables count steps by row
    total += 2 * share * bytes_per_device((table, moments.mu, moments.nu))
  return total


def _kept_width(anchor: AnchorConfig, parts: int) -> float:
  """Numbers of a token that the backward pass keeps of a layer, on one of `parts` devices of the model axis."""
  widths = dict.fromkeys(("query", "key", "value", "attention"), anchor.attention_width / parts)
  widths |= {"out": anchor.width, "w1": anchor.mlp_width / parts, "w2": anchor.mlp_width / parts}
  if isinstance(anchor.remat, tuple):
    kept = {point.removesuffix(ON_HOST) for point in anchor.remat}
  else:
    kept = {"none": set(widths), "dots": set(widths) - {"attention"}, "full": set()}[anchor.remat]
  return anchor.width + sum(widths[point] for point in kept)
