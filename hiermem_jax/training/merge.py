"""One bank of the parts that separate jobs have trained beside the same frozen anchor (paper, Appendix A.2)."""

import dataclasses
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from hiermem_jax.errors import InputError
from hiermem_jax.models.bank import Bank
from hiermem_jax.models.config import MemoryConfig
from hiermem_jax.models.model import Model, init_params
from hiermem_jax.parallel.layout import abstract_arrays
from hiermem_jax.parallel.mesh import Rules
from hiermem_jax.training.checkpoint import CheckpointStore, load_model


def merge_parts(
  subtrees: Sequence[str], generic: str | None, directory: str, mesh: Mesh, rules: Rules
) -> tuple[MemoryConfig, Bank]:
  """Writes the merged model to `directory`, as a checkpoint without an optimizer.

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
  models = {source: load_model(source, mesh, rules, setting="merge.subtrees") for source in subtrees}
  by_part: dict[int | str, str] = {}
  for source, model in models.items():
    part = None if model.memory is None else model.memory.part
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
    models[generic] = load_model(generic, mesh, rules, setting="merge.generic")
    held = models[generic].memory
    if held is None or held.part != "generic":
      raise InputError(f"{generic}: its bank's part is {held and held.part!r}, not 'generic'; bind merge.generic")
  for source, model in models.items():
    _require_same(subtrees[0], first, source, model)

  memory = dataclasses.replace(first.config.required_memory, part="all")
  config = dataclasses.replace(first.config, memory=memory)
  abstract = abstract_arrays(lambda: init_params(jax.random.key(0), config), mesh, rules)["bank"]
  parts = [models[by_part[part]].params["bank"] for part in range(branching)]
  last = parts[0] if generic is None else models[generic].params["bank"]
  bank = {}
  for name, table in abstract.items():
    tables = [*(part[name][:-1] for part in parts), last[name][-1:]]
    bank[name] = jax.jit(lambda *tables: jnp.concatenate(tables), out_shardings=table.sharding)(*tables)
  store = CheckpointStore(directory)
  try:
    if store.latest_step is not None:
      raise InputError(f"{directory}: has a checkpoint already; give another directory, or delete it")
    steps = {source: model.metadata["step"] for source, model in models.items()}
    metadata = first.metadata | config.to_json() | {"merged": steps}
    store.save_model(max(steps.values()), first.params | {"bank": bank}, metadata)
    store.wait()
    if store.failed:
      raise OSError(f"{directory}: could not be written; make room and merge again")
  finally:
    store.close()
  logging.info("%s: merged from %s (steps)", directory, steps)
  return memory, bank


def _require_same(source: str, model: Model, other_source: str, other: Model) -> None:
  held, others = (dataclasses.replace(m.config.required_memory, part="all") for m in (model, other))
  pairs = {
    "anchor configuration": (model.anchor, other.anchor),
    "bank": (held, others),
    "tree": (model.metadata.get("tree_fingerprint"), other.metadata.get("tree_fingerprint")),
    "anchor (digest)": (model.metadata["digests"]["anchor"], other.metadata["digests"]["anchor"]),
  }
  for name, (mine, theirs) in pairs.items():
    if mine != theirs:
      raise InputError(
        f"{source} has {name} {mine}, {os.path.basename(other_source)} has {theirs}; parts of one bank are trained"
        " beside one frozen anchor"
      )
