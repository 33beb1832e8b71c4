r"""Trains an anchor, or an anchor with its memory bank, on a packed dataset.

  python -m hiermem_jax.train --gin_file=gin/runs/a2.gin --run_dir=runs/a2 \
    --gin_bindings="train.dataset = '/data/dclm_2048/train'" --gin_bindings="train.init_from = '../a1'"

Writes RUN_DIR/config.gin, checkpoints/, TensorBoard events, metrics.jsonl and, at the end, report.json. The same
command in the same directory resumes.
"""

import functools
import json
import os

from absl import logging

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, MemoryConfig
from hiermem_jax.parallel.mesh import ALL_DEVICES, MeshConfig
from hiermem_jax.training.optimizer import OptimizerConfig


def train(
  *,
  run_dir: str,
  dataset: str,
  anchor: AnchorConfig,
  memory: MemoryConfig | None,
  optimizer: OptimizerConfig,
  steps: int,
  batch_size: int,
  mesh: MeshConfig = ALL_DEVICES,
  directory: str = ".",
  init_from: str | None = None,
  generic_probability: float = 1 / 17,
  z_loss: float = 0.0,
  checkpoint_every: int = 1000,
  log_every: int = 50,
  seed: int = 0,
) -> None:
  """Opens the dataset, the mesh over all devices and the writers, and runs the training loop.

  Args:
    run_dir: where relative paths start.
    dataset: packed dataset to train on, of one length, or of several (dataset decomposition).
    anchor: the anchor.
    memory: the bank, or None to train the anchor alone.
    optimizer: one setting for both.
    steps: length of the run.
    batch_size: sequences per step, over all devices; of several lengths, of the longest: shorter ones are as many
      more as keep the number of tokens.
    mesh: how the devices are arranged and what is split over them.
    directory: where this training keeps its checkpoints and metrics.
    init_from: run directory whose anchor this training starts from, with a fresh optimizer.
    generic_probability: chance that a sequence trains the generic memory (paper: 1/17).
    z_loss: coefficient of the squared mean log-partition.
    checkpoint_every: steps between checkpoints.
    log_every: steps between scalars.
    seed: of initialisation, data order and the choice of generic sequences.

  Raises:
    InputError: dataset, anchor, bank and starting point do not fit each other or the devices.
  """
  from hiermem_jax.data.decomposition import open_dataset
  from hiermem_jax.parallel import distributed, make_mesh
  from hiermem_jax.training import loop

  directory = os.path.join(run_dir, directory)
  packed = distributed.together(lambda: open_dataset(os.path.join(run_dir, dataset)))
  manifest = packed.manifest
  if manifest.vocab_size > anchor.vocab_size:
    raise InputError(
      f"{packed.directory}: its tokenizer has {manifest.vocab_size} pieces, AnchorConfig.vocab_size is"
      f" {anchor.vocab_size}; bind at least as many"
    )
  if memory is not None and not manifest.num_leaves:
    raise InputError(
      f"{packed.directory}: prepared without a cluster tree, which a memory bank needs; bind train.memory = None, or"
      " prepare it with prepare.tree"
    )
  if memory is not None and memory.num_leaves != manifest.num_leaves:
    raise InputError(
      f"{packed.directory}: its tree has {manifest.num_leaves} leaves, MemoryConfig (branching {memory.branching}, rows"
      f" {memory.rows}) has {memory.num_leaves}; bind the tree's branching and one entry of rows per level"
    )
  devices = make_mesh(mesh)
  batches = _batches(packed, batch_size, seed, devices)
  _log_overview(anchor, memory)
  open_writer, hooks = _telemetry(directory, steps)
  state, scalars = loop.train(
    run_dir=directory,
    anchor=anchor,
    memory=memory,
    optimizer=optimizer,
    batches=batches.iterate,
    steps=steps,
    batch_size=batch_size,
    mesh=devices,
    mesh_config=mesh,
    metadata={
      "tree_fingerprint": manifest.tree_fingerprint,
      "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
    },
    open_writer=open_writer,
    hooks=hooks,
    init_from=None if init_from is None else os.path.join(run_dir, init_from),
    generic_probability=generic_probability,
    z_loss=z_loss,
    checkpoint_every=checkpoint_every,
    log_every=log_every,
    seed=seed,
  )
  if scalars and distributed.is_first():
    path = os.path.join(directory, "report.json")
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
      json.dump({"steps": int(state.step), **scalars}, file, indent=2)
      file.write("\n")
    os.replace(f"{path}.tmp", path)


def _batches(dataset, batch_size: int, seed: int, devices):
  """The stream of what this process feeds its devices."""
  from hiermem_jax.data.batches import Batches
  from hiermem_jax.data.decomposition import DecomposedBatches, DecomposedDataset
  from hiermem_jax.parallel import local_rows

  if isinstance(dataset, DecomposedDataset):
    tokens = batch_size * max(dataset.buckets)
    rows = functools.partial(local_rows, devices)
    return DecomposedBatches(dataset, tokens_per_batch=tokens, seed=seed, rows=rows)
  return Batches(dataset, batch_size=batch_size, seed=seed, rows=local_rows(devices, batch_size))


def _log_overview(anchor: AnchorConfig, memory: MemoryConfig | None) -> None:
  import flax.linen as nn
  import jax
  from clu import parameter_overview

  from hiermem_jax.training.state import init_params

  shapes = nn.unbox(jax.eval_shape(lambda: init_params(jax.random.key(0), anchor, memory)))
  logging.info("parameters:\n%s", parameter_overview.get_parameter_overview(shapes, include_stats=False))


def _telemetry(directory: str, steps: int):
  """What opens the writer of scalars, given the first step, and the hooks that report progress.

  Where TensorFlow is absent, which clu needs for both, there is metrics.jsonl and what the loop itself logs. Of several
  processes the first one alone writes and reports.
  """
  from hiermem_jax.parallel import distributed
  from hiermem_jax.training.metrics import JsonlWriter, NoWriter

  if not distributed.is_first():
    return lambda start_step: NoWriter(), []

  def open_jsonl(start_step):
    return JsonlWriter(os.path.join(directory, "metrics.jsonl"), start_step)

  try:
    from clu import metric_writers, periodic_actions
  except ImportError as error:
    logging.warning("metrics.jsonl only, no TensorBoard events: %s", error)
    return open_jsonl, []

  def open_both(start_step):
    return metric_writers.MultiWriter([open_jsonl(start_step), metric_writers.SummaryWriter(directory)])

  return open_both, [periodic_actions.ReportProgress(num_train_steps=steps, every_secs=30)]


if __name__ == "__main__":
  from hiermem_jax import cli

  cli.main("train")
