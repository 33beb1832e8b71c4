"""Weight matrices: gathered where devices hold parts of them, looked up by row, their gradients summed in float32."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hiermem_jax.models.anchor_config import AnchorConfig


class Weight(nn.Module):
  """A weight matrix, stored in float32 and returned in the type of the computation.

  Inside `parallel.batch_parallel` a device holds a part of the matrix only, because the rules split it over the data
  axis (FSDP). The module then gathers the parts, so that it always returns the whole matrix. The gradient of a gather
  is a reduce-scatter: every device ends with the gradient of its own part, summed in `config.gradient_dtype`. The whole
  weight of a layer is never kept for the backward pass, which gathers it again.
  """

  shape: tuple[int, int]
  axes: tuple[str, str]  # logical names
  sigma: float | jax.Array  # of the initial truncated normal, cut at 3 sigma
  config: AnchorConfig
  parameter: str = "kernel"  # name of the variable

  @nn.compact
  def __call__(self) -> jax.Array:
    """Gives the whole weight, of `shape` and the anchor's `dtype`."""
    dtype = self.config.dtype
    if self.is_initializing():

      def init(key, shape):
        return jax.random.truncated_normal(key, -3, 3, shape) * self.sigma

      initial: Any = self.param(self.parameter, nn.with_logical_partitioning(init, self.axes), self.shape)
      return initial.astype(dtype)
    weight: Any = self.get_variable("params", self.parameter)  # `param` refuses a part
    names: list[str | None] = list(self.axes)
    running = jax.sharding.get_abstract_mesh().manual_axes
    for axis, mesh_axis in enumerate(nn.logical_to_mesh_axes(self.axes) or ()):
      if mesh_axis in running:
        names[axis] = None
        if jax.lax.axis_size(mesh_axis) > 1:  # a gather of one part would still cost a copy
          weight = gather(weight, mesh_axis, axis, dtype, self.config.gradient_dtype)
    return nn.with_logical_constraint(weight.astype(dtype), tuple(names))  # and its gradient: split over other axes


def gather(part: jax.Array, mesh_axis: str, axis: int, dtype: str, gradient_dtype: str) -> jax.Array:
  """The whole of an array that is split along one of its axes over a mesh axis, for use inside `jax.shard_map`.

  Its gradient is a reduce-scatter, whose terms, one of each device, are sent and summed in `gradient_dtype`.

  Args:
    part: [..., n, ...], this device's.
    mesh_axis: name of the mesh axis, of size d.
    axis: number of the array's axis.
    dtype: what is sent forward.
    gradient_dtype: what is sent and summed backward.

  Returns:
    [..., d * n, ...] of `dtype`.
  """

  def forward(_, part):
    return jax.lax.all_gather(part.astype(dtype), mesh_axis, axis=axis, tiled=True)

  def transposed(_, gradient):
    terms = gradient.astype(gradient_dtype)
    return jax.lax.psum_scatter(terms, mesh_axis, scatter_dimension=axis, tiled=True).astype(part.dtype)

  return jax.custom_derivatives.linear_call(forward, transposed, (), part)


@jax.custom_vjp
def look_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
  """Rows of an embedding table.

  The gradient of a row is the sum over all positions that hold its token. It is summed in float32 and then rounded once
  to the table's type: a sum in bfloat16 stops growing after some hundred terms of the same size.

  Args:
    table: [V, D].
    tokens: int32 [B, S].

  Returns:
    [B, S, D] of the table's type.
  """
  return jnp.take(table, tokens, axis=0)


def _look_up_forward(table, tokens):
  return look_up(table, tokens), (jnp.zeros((0,), table.dtype), table.shape[0], tokens)


def _look_up_backward(saved, gradient):
  like, size, tokens = saved
  rows = jnp.zeros((size, gradient.shape[-1]), jnp.float32).at[tokens].add(gradient.astype(jnp.float32))
  return rows.astype(like.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)
