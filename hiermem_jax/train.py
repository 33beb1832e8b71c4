r"""Trains an anchor, or an anchor with its memory bank, on a packed dataset.

  python -m hiermem_jax.train --gin_file=gin/runs/a2.gin --run_dir=runs/a2 \
    --gin_bindings="train.dataset = '/data/dclm_2048/train'" --gin_bindings="train.init_from = '../a1'"

Writes RUN_DIR/config.gin, checkpoints/, TensorBoard events, metrics.jsonl and, at the end, report.json. The same
command in the same directory resumes.
"""

import functools
import os

import numpy as np
from absl import logging

from hiermem_jax import files
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
  init_bank_from: str | None = None,
  frozen_anchor: bool = False,
  generic_probability: float = 1 / 17,
  z_loss: float = 0.0,
  validation: str | None = None,
  validate_every: int = 1000,
  validation_sequences: int = 1024,
  checkpoint_every: int = 1000,
  keep_checkpoints: int = 2,
  keep_every: int | None = None,
  skip_damaged_checkpoints: bool = False,
  max_skipped: int = 10,
  log_every: int = 50,
  profile_steps: tuple[int, int] | None = None,
  seed: int = 0,
) -> None:
  """Opens the dataset, the mesh over all devices and the writers, and runs the training loop.

  Args:
    run_dir: where relative paths start.
    dataset: packed dataset to train on, of one length, or of several (dataset decomposition).
    anchor: the anchor.
    memory: the bank, or None to train the anchor alone. With MemoryConfig.part bound to a level-1 cluster, training is
      on the sequences below that cluster.
    optimizer: one setting for both.
    steps: length of the run.
    batch_size: sequences per step, over all devices; of several lengths, of the longest: shorter ones are as many
      more as keep the number of tokens.
    mesh: how the devices are arranged and what is split over them.
    directory: where this training keeps its checkpoints and metrics.
    init_from: run directory whose anchor this training starts from, with a fresh optimizer.
    init_bank_from: run directory whose bank this training starts from; levels that it has no rows on start afresh.
    frozen_anchor: train the bank alone, beside the anchor of `init_from`.
    generic_probability: chance that a sequence trains the generic memory (paper: 1/17).
    z_loss: coefficient of the squared mean log-partition.
    validation: packed held-out dataset; its loss is measured on the way, and the best model kept in `DIRECTORY/best`.
    validate_every: steps between measurements.
    validation_sequences: how many of its sequences are measured, the first ones.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: how many of the newest are kept.
    keep_every: steps; checkpoints at multiples of it are kept for good.
    skip_damaged_checkpoints: set a damaged checkpoint aside, in `DIRECTORY/damaged`, and resume from the one before.
    max_skipped: batches in a row without a finite loss and gradient (each is skipped) after which the run ends.
    log_every: steps between scalars.
    profile_steps: first and last step that jax's profiler records for TensorBoard.
    seed: of initialisation, data order and the choice of generic sequences.

  Raises:
    InputError: dataset, anchor, bank and starting point do not fit each other or the devices.
  """
  from hiermem_jax.data.packed.decomposition import DecomposedDataset
  from hiermem_jax.parallel import distributed, make_mesh
  from hiermem_jax.training import loop

  directory = os.path.join(run_dir, directory)
  packed = _open(os.path.join(run_dir, dataset), anchor, memory)
  manifest = packed.manifest
  devices = make_mesh(mesh)
  batches = _batches(packed, batch_size, seed, devices, memory)
  held_out = None
  if validation is not None:
    opened = _open(os.path.join(run_dir, validation), anchor, memory)
    if isinstance(opened, DecomposedDataset):
      raise InputError(f"train.validation = {validation}: of several lengths; bind one of its datasets")
    held_out = _held_out(opened, batch_size, validation_sequences, validate_every, devices, memory)
  _log_overview(anchor, memory)
  open_writer, hooks = telemetry(directory, steps)
  if profile_steps is not None:
    hooks.append(Profiler(directory, *profile_steps))
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
    init_bank_from=None if init_bank_from is None else os.path.join(run_dir, init_bank_from),
    frozen_anchor=frozen_anchor,
    generic_probability=generic_probability,
    z_loss=z_loss,
    validation=held_out,
    describe_batch=batches.describe,
    checkpoint_every=checkpoint_every,
    keep_checkpoints=keep_checkpoints,
    keep_every=keep_every,
    skip_damaged_checkpoints=skip_damaged_checkpoints,
    max_skipped=max_skipped,
    log_every=log_every,
    seed=seed,
  )
  if scalars and distributed.is_first():
    report = {"steps": int(state.step), **scalars}
    files.write_json(os.path.join(directory, "report.json"), report, indent=2)
    logging.info("%s: done\n%s", directory, "\n".join(f"  {name:<24} {value:,.6g}" for name, value in report.items()))


def _open(directory: str, anchor: AnchorConfig, memory: MemoryConfig | None):
  """Opens a packed dataset of one or several lengths and checks that the model can read it."""
  from hiermem_jax.data.packed.decomposition import open_dataset
  from hiermem_jax.parallel import distributed

  packed = distributed.together(lambda: open_dataset(directory))
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
  return packed


def _batches(dataset, batch_size: int, seed: int, devices, memory: MemoryConfig | None):
  """The stream of what this process feeds its devices."""
  from hiermem_jax.data.packed.batches import Batches
  from hiermem_jax.data.packed.decomposition import DecomposedBatches, DecomposedDataset
  from hiermem_jax.parallel import local_rows

  if isinstance(dataset, DecomposedDataset):
    tokens = batch_size * max(dataset.buckets)
    rows = functools.partial(local_rows, devices)
    return DecomposedBatches(dataset, tokens_per_batch=tokens, seed=seed, rows=rows)
  sequences = None
  if memory is not None and isinstance(memory.part, int):
    sequences = np.flatnonzero(dataset.leaves() // (memory.num_leaves // memory.branching) == memory.part)
  return Batches(dataset, batch_size=batch_size, seed=seed, rows=local_rows(devices, batch_size), sequences=sequences)


def _held_out(dataset, batch_size: int, sequences: int, every: int, devices, memory: MemoryConfig | None):
  """The first sequences of a held-out dataset, in batches; what a last batch lacks is filled up with no tokens."""
  from hiermem_jax.data.packed.batches import to_batch
  from hiermem_jax.parallel import local_rows
  from hiermem_jax.training.validation import Validation

  if every < 1 or sequences < 1:
    raise InputError(f"train.validate_every = {every}, train.validation_sequences = {sequences}: bind positive numbers")
  chosen = np.arange(len(dataset))
  if memory is not None and isinstance(memory.part, int):
    chosen = np.flatnonzero(dataset.leaves() // (memory.num_leaves // memory.branching) == memory.part)
  chosen = chosen[:sequences]
  if not len(chosen):
    raise InputError(f"train.validation = {dataset.directory}: has no such sequences; prepare a larger one")
  rows = local_rows(devices, batch_size)

  def batches():
    for start in range(0, len(chosen), batch_size):
      numbers = np.resize(chosen[start : start + batch_size], batch_size)[rows]
      batch = to_batch(*dataset.read(numbers), bos_id=dataset.manifest.bos_id)
      batch["decoder_loss_weights"] *= (start + rows < len(chosen))[:, None]
      if memory is not None and memory.part == "generic":
        batch["memory_leaf"] = np.full_like(batch["memory_leaf"], memory.num_leaves)
      yield batch

  return Validation(batches, every)


class Profiler:
  """A hook that records some steps with jax's profiler, for TensorBoard's profile tab."""

  def __init__(self, directory: str, first: int, last: int):
    """Records the steps from `first` to `last` into `directory`."""
    if not 1 < first <= last:
      raise InputError(f"train.profile_steps = {(first, last)}: bind a first step after 1 and a last one not before it")
    self._directory, self._first, self._last = directory, first, last

  def __call__(self, step: int) -> None:
    """Starts or stops, after a step."""
    import jax

    if step == self._first - 1:
      jax.profiler.start_trace(self._directory)
    elif step == self._last:
      jax.profiler.stop_trace()


def _log_overview(anchor: AnchorConfig, memory: MemoryConfig | None) -> None:
  import flax.linen as nn
  import jax
  from clu import parameter_overview

  from hiermem_jax.training.state import init_params

  shapes = nn.unbox(jax.eval_shape(lambda: init_params(jax.random.key(0), anchor, memory)))
  logging.info("parameters:\n%s", parameter_overview.get_parameter_overview(shapes, include_stats=False))


def telemetry(directory: str, steps: int):
  """What opens the writer of scalars, given the first step, and the hooks that report progress.

  Where TensorFlow is absent, which clu needs for both, there is metrics.jsonl and what the loop itself logs. Of several
  processes the first one alone writes and reports.
  """
  from hiermem_jax.parallel import distributed
  from hiermem_jax.training.metrics import JsonlWriter, Lenient, NoWriter

  if not distributed.is_first():
    return lambda start_step: NoWriter(), []

  def open_jsonl(start_step):
    return Lenient(JsonlWriter(os.path.join(directory, "metrics.jsonl"), start_step))

  try:
    from clu import metric_writers, periodic_actions
  except ImportError as error:
    logging.warning("metrics.jsonl only, no TensorBoard events: %s", error)
    return open_jsonl, []

  def open_both(start_step):
    return metric_writers.MultiWriter([open_jsonl(start_step), Lenient(metric_writers.SummaryWriter(directory))])

  return open_both, [periodic_actions.ReportProgress(num_train_steps=steps, every_secs=30)]


if __name__ == "__main__":
  from hiermem_jax import cli

  cli.main("train")
