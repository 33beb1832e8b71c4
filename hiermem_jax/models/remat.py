"""What the backward pass keeps of a layer (`AnchorConfig.remat`), in the terms of `jax.checkpoint`."""

from collections.abc import Callable
from typing import Any

import jax

from hiermem_jax.models.anchor_config import ON_HOST, AnchorConfig

# Primitives that make a whole weight of its parts: the first is `weights.gather`.
_GATHERING = ("linear_call", "sharding_constraint")


def _all_but_gathered(primitive, *_, **__) -> bool:
  """What the backward pass keeps without remat: everything, except that weights are gathered again."""
  return primitive.name not in _GATHERING


def remat_policy(config: AnchorConfig) -> Callable[..., Any] | None:
  """What the backward pass keeps of a layer, as `jax.checkpoint` takes it; None: all, there is nothing to say."""
  if isinstance(config.remat, tuple):
    on_host = [point.removesuffix(ON_HOST) for point in config.remat if point.endswith(ON_HOST)]
    return jax.checkpoint_policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[point for point in config.remat if not point.endswith(ON_HOST)],
      names_which_can_be_offloaded=on_host,
      offload_src="device",
      offload_dst="pinned_host",
    )
  if config.remat == "none":
    mesh = jax.sharding.get_abstract_mesh()
    return _all_but_gathered if any(mesh.shape[axis] > 1 for axis in mesh.manual_axes) else None
  return {
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,
  }[config.remat]
