r"""Assembles the bank that jobs have trained one level-1 subtree at a time (paper, Appendix A.2).

  python -m hiermem_jax.merge --run_dir=runs/a3
  python -m hiermem_jax.merge --run_dir=runs/a3 --gin_bindings="merge.generic = None"

Reads RUN_DIR/subtree_*/ and RUN_DIR/generic/, writes RUN_DIR/merged/checkpoints/: anchor and bank, which `evaluate`
reads and `train` starts from (train.init_from, train.init_bank_from).
"""

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refused flag answer at once
  from hiermem_jax import cli

  cli.main("merge")

import glob
import os

from hiermem_jax.errors import InputError
from hiermem_jax.parallel.mesh import ALL_DEVICES, MeshConfig


def merge(
  *,
  run_dir: str,
  subtrees: tuple[str, ...] = (),
  generic: str | None = "generic",
  directory: str = "merged",
  mesh: MeshConfig = ALL_DEVICES,
) -> None:
  """Puts the newest checkpoints of the parts together.

  The devices must hold the whole bank, and beside it the largest table of one part.

  Args:
    run_dir: where relative paths start.
    subtrees: training directories of the subtrees, in any order; by default `subtree_*`.
    generic: that of the generic memory; None leaves it untrained, and it adds nothing.
    directory: where the result goes.
    mesh: how the devices are arranged.

  Raises:
    InputError: a part is missing, there twice, or does not fit the others; or `directory` has a checkpoint.
  """
  from hiermem_jax.parallel import make_mesh
  from hiermem_jax.training.merge import merge_parts

  found = [os.path.join(run_dir, name) for name in subtrees] or sorted(
    glob.glob(os.path.join(glob.escape(run_dir), "subtree_*"))
  )
  if not found:
    raise InputError(f"{run_dir}: no directory subtree_*; train the subtrees there, or bind merge.subtrees")
  merge_parts(
    found,
    None if generic is None else os.path.join(run_dir, generic),
    os.path.join(run_dir, directory),
    make_mesh(mesh),
    mesh.rules,
  )
