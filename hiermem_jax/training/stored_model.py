"""The parameters of a run's newest checkpoint, whose bank is read table by table: no two tables need be in memory."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from hiermem_jax.models.config import ModelConfig
from hiermem_jax.models.model import Model, init_params
from hiermem_jax.parallel.layout import abstract_arrays, check_mesh
from hiermem_jax.parallel.mesh import DEFAULT_RULES, Rules
from hiermem_jax.training.checkpoint_reader import CheckpointReader
from hiermem_jax.training.digest import array_digest


class StoredModel(CheckpointReader):
  """The newest checkpoint of a finished or running training, which is the same one for all that is read.

  Attributes:
    config: of the model.
    facts: what the checkpoint says beside the arrays.
    tables: names of the bank's tables; none without memory.
  """

  def __init__(
    self,
    run_dir: str,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
    *,
    bank: bool = True,
    setting: str = "another directory",
  ):
    """Reads what it says beside the arrays.

    Args:
      run_dir: of the training.
      mesh: where arrays are put.
      rules: how they are laid out.
      bank: False is the anchor alone, as if there was no memory.
      setting: what to bind where `run_dir` is the wrong one.

    Raises:
      InputError: there is no checkpoint, it is damaged or cannot be read, or the mesh does not fit the model.
    """
    super().__init__(run_dir)
    self._step = self.require_step(setting)
    self.facts = self._metadata(self._step)
    self.config = ModelConfig.from_json(self.facts if bank else self.facts | {"memory": None})
    check_mesh(mesh, self.config)
    self._abstract = abstract_arrays(lambda: init_params(jax.random.key(0), self.config), mesh, rules)
    self.tables = tuple(sorted(self._abstract.get("bank", {})))
    self._digests: dict[str, str] = {}

  def anchor(self) -> Any:
    """Reads the anchor's parameters.

    Raises:
      InputError: they are damaged or cannot be read.
    """
    return self._restore_arrays(self._step, {"anchor": self._abstract["anchor"]}, self.facts)["anchor"]

  def table(self, name: str) -> jax.Array:
    """Reads one table of the bank; whether it is what was saved, `check` says in the end.

    Raises:
      InputError: it is damaged or cannot be read.
    """
    wanted = {name: self._abstract["bank"][name]}
    how = ocp.args.PyTreeRestore(
      item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
    )
    path, seconds = self._path(self._step), self._seconds(wanted)
    table = self._agreed(path, lambda: self._read(self._step, "bank", how), seconds)[name]
    self._digests[name] = array_digest(table)
    return table

  def check(self) -> None:
    """Checks that the tables, each of which has been read by now, are what was saved.

    Raises:
      DamagedCheckpointError: they are not.
    """
    self._require_digest(self._step, "bank", {name: self._digests[name] for name in self.tables}, self.facts)


def load_model_as(
  dtype: Literal["float32", "bfloat16"], run_dir: str, mesh: Mesh, *, setting: str = "another directory"
) -> Model:
  """The newest checkpoint of a training, its bank in another type than it is stored in.

  Beside the bank of the new type, one table of the stored type is in memory at a time.

  Args:
    dtype: of the bank; numbers are rounded to the nearest.
    run_dir: of the training.
    mesh: where to put the parameters.
    setting: what to bind where `run_dir` is the wrong one.

  Raises:
    InputError: there is no checkpoint, or it is damaged or cannot be read.
  """
  stored = StoredModel(run_dir, mesh, setting=setting)
  config, params = stored.config, {"anchor": stored.anchor()}
  if config.memory is not None:
    config = dataclasses.replace(config, memory=dataclasses.replace(config.memory, dtype=dtype))
    params["bank"] = {name: jax.block_until_ready(jnp.astype(stored.table(name), dtype)) for name in stored.tables}
    stored.check()
  return Model(config, params, stored.facts)
