"""One bank of the parts that separate jobs have trained beside the same frozen anchor (paper, Appendix A.2)."""

import dataclasses
import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from hiermem_jax.errors import InputError
from hiermem_jax.models.bank import Bank
from hiermem_jax.models.config import MemoryConfig
from hiermem_jax.models.model import init_params
from hiermem_jax.parallel.layout import abstract_arrays
from hiermem_jax.parallel.mesh import Rules
from hiermem_jax.training.checkpoint import CheckpointStore
from hiermem_jax.training.stored_model import StoredModel


def merge_parts(
  subtrees: Sequence[str], generic: str | None, directory: str, mesh: Mesh, rules: Rules
) -> tuple[MemoryConfig, Bank]:
  """Writes the merged model to `directory`, as a checkpoint without an optimizer.

  The whole bank is in memory once, and beside it one table of one part at a time.

  Args:
    subtrees: run directories, one for every level-1 cluster, in any order.
    generic: that of the job that trained the generic rows; None leaves them as the subtrees' jobs have them.
    directory: where to write; must have no checkpoint.
    mesh: devices to do it on.
    rules: of the layout.

  Returns:
    The bank's configuration and tables.

  Raises:
    InputError: a part is missing, there twice, or does not fit the others; or `directory` has a checkpoint.
  """
  models = {source: StoredModel(source, mesh, rules, setting="merge.subtrees") for source in subtrees}
  by_part: dict[int | str, str] = {}
  for source, model in models.items():
    part = None if model.config.memory is None else model.config.memory.part
    if not isinstance(part, int):
      raise InputError(f"{source}: its bank's part is {part!r}, not a level-1 cluster; train it with MemoryConfig.part")
    if part in by_part:
      raise InputError(f"{source}: has level-1 cluster {part}, and so has {by_part[part]}; give one of them")
    by_part[part] = source
  first = models[subtrees[0]]
  branching = first.config.required_memory.branching
  if missing := [part for part in range(branching) if part not in by_part]:
    raise InputError(f"level-1 clusters {missing} are missing beside {sorted(by_part)}; train or name them")
  if generic is not None:
    models[generic] = StoredModel(generic, mesh, rules, setting="merge.generic")
    held = models[generic].config.memory
    if held is None or held.part != "generic":
      raise InputError(f"{generic}: its bank's part is {held and held.part!r}, not 'generic'; bind merge.generic")
  for source, model in models.items():
    _require_same(subtrees[0], first, source, model)

  memory = dataclasses.replace(first.config.required_memory, part="all")
  config = dataclasses.replace(first.config, memory=memory)
  store = CheckpointStore(directory)
  try:
    if store.latest_step is not None:
      raise InputError(f"{directory}: has a checkpoint already; give another directory, or delete it")
    abstract = abstract_arrays(lambda: init_params(jax.random.key(0), config), mesh, rules)["bank"]
    parts = [models[by_part[part]] for part in range(branching)]
    last = parts[0] if generic is None else models[generic]
    bank = {name: _assemble(name, table, parts, last) for name, table in abstract.items()}
    for model in models.values():
      model.check()
    steps = {source: model.facts["step"] for source, model in models.items()}
    metadata = first.facts | config.to_json() | {"merged": steps}
    store.save_model(max(steps.values()), {"anchor": first.anchor(), "bank": bank}, metadata)
    store.wait()
    if store.failed:
      raise OSError(f"{directory}: could not be written; make room and merge again")
  finally:
    store.close()
  logging.info("%s: merged from %s (steps)", directory, steps)
  return memory, bank


def _assemble(name: str, table: jax.ShapeDtypeStruct, parts: Sequence[StoredModel], generic: StoredModel) -> jax.Array:
  """One table of the whole bank: the clusters of all parts in order, and the generic row of `generic`.

  Beside it, the table of one part is in memory at a time.
  """
  fill = functools.partial(jax.jit, donate_argnums=0, out_shardings=table.sharding)

  @fill
  def put_clusters(whole, part, start):
    return jax.lax.dynamic_update_slice_in_dim(whole, part[:-1], start, axis=0)

  @fill
  def put_generic(whole, part):
    return whole.at[-1].set(part[-1])

  whole = jax.jit(lambda: jnp.zeros(table.shape, table.dtype), out_shardings=table.sharding)()
  size = (table.shape[0] - 1) // len(parts)
  for number, part in enumerate(parts):
    whole = jax.block_until_ready(put_clusters(whole, part.table(name), number * size))
  return jax.block_until_ready(put_generic(whole, generic.table(name)))


def _require_same(source: str, model: StoredModel, other_source: str, other: StoredModel) -> None:
  held, others = (dataclasses.replace(m.config.required_memory, part="all") for m in (model, other))
  pairs = {
    "anchor configuration": (model.config.anchor, other.config.anchor),
    "bank": (held, others),
    "tree": (model.facts.get("tree_fingerprint"), other.facts.get("tree_fingerprint")),
    "anchor (digest)": (model.facts["digests"]["anchor"], other.facts["digests"]["anchor"]),
  }
  for name, (mine, theirs) in pairs.items():
    if mine != theirs:
      raise InputError(
        f"{source} has {name} {mine}, {os.path.basename(other_source)} has {theirs}; parts of one bank are trained"
        " beside one frozen anchor"
      )
