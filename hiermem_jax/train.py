r"""Trains an anchor, or an anchor with its memory bank, on a packed dataset.

  python -m hiermem_jax.train --gin_file=gin/runs/a2.gin --run_dir=runs/a2 \
    --gin_bindings="train.dataset = '/data/dclm_2048/train'" --gin_bindings="train.init_from = '../a1'"

Writes RUN_DIR/config.gin, checkpoints/, TensorBoard events, metrics.jsonl and, at the end, report.json. The same
command in the same directory resumes.
"""

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refused flag answer at once
  from hiermem_jax import cli

  cli.main("train")

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
from typing import TYPE_CHECKING, Any

from absl import logging

from hiermem_jax import console, files
from hiermem_jax.errors import InputError
from hiermem_jax.models.config import ModelConfig
from hiermem_jax.training.config import TrainingRun, ValidationConfig

if TYPE_CHECKING:
  from jax.sharding import Mesh

  from hiermem_jax.data.packed.decomposition import DecomposedDataset
  from hiermem_jax.data.packed.reading import PackedDataset
  from hiermem_jax.data.packed.selection import HeldOutBatches
  from hiermem_jax.training.loop import LoopData
  from hiermem_jax.training.validation import HeldOut


def train(
  *,
  run_dir: str,
  dataset: str,
  run: TrainingRun,
  directory: str = ".",
  validation: ValidationConfig | None = None,
  profile_steps: tuple[int, int] | None = None,
  wandb_project: str | None = None,
) -> None:
  """Opens the dataset, the mesh over all devices and the writers, and runs the training loop.

  In gin the fields of the run are parameters of `train` itself, e.g. `train.steps = 1000`.

  Args:
    run_dir: where relative paths start.
    dataset: packed dataset to train on, of one length, or of several (dataset decomposition).
    run: the run. With MemoryConfig.part bound to a level-1 cluster, training is on the sequences below that cluster.
    directory: where this training keeps its checkpoints and metrics.
    validation: held-out text whose losses are measured during training.
    profile_steps: first and last step that jax's profiler records for TensorBoard; with several steps per call, the
      next whole calls.
    wandb_project: project of Weights & Biases that the scalars are sent to, too; needs the package wandb.

  Raises:
    InputError: dataset, anchor, bank and starting point do not fit each other or the devices.
  """
  from hiermem_jax.parallel import distributed, make_mesh
  from hiermem_jax.training import loop, writers

  directory = os.path.join(run_dir, directory)
  mesh = make_mesh(run.mesh)
  run = _with_absolute_sources(run, run_dir)
  data = _open_data(os.path.join(run_dir, dataset), run, mesh)
  if validation is not None:
    measured = _open(os.path.join(run_dir, validation.dataset), run.model)
    metadata = {**data.metadata, "validation_fingerprint": _fingerprint(measured)}
    held_out = _open_held_out(run_dir, validation, run, mesh)
    data = dataclasses.replace(data, held_out=held_out, metadata=metadata)
  writers.log_parameters(run.model)
  shown = writers.Shown(
    hparams=writers.flattened(run), tokens_per_step=data.tokens_per_step, wandb_project=wandb_project
  )
  open_writer = writers.open_writers(directory, shown)
  with contextlib.ExitStack() as stack:
    hooks = []
    if profile_steps is not None:
      hooks.append(stack.enter_context(writers.Profiler(directory, *profile_steps, run.steps_per_call)))
    state, scalars = loop.train(run, directory, data, mesh, open_writer=open_writer, hooks=hooks)
  if scalars and distributed.is_first():
    report = {"steps": int(state.step), **scalars}
    files.write_json(os.path.join(directory, "report.json"), report, indent=2)
    beside = f", held-out loss {report['loss/validation']:.3f}" if "loss/validation" in report else ""
    tokens, speed = console.short(report["tokens"]), console.short(report["mean_tokens_per_second"])
    console.say("loss %.3f%s; %s tokens, %s tokens/s", report.get("loss", math.nan), beside, tokens, speed)
    logging.info("%s: done\n%s", directory, "\n".join(f"  {name:<24} {value:,.6g}" for name, value in report.items()))


def _with_absolute_sources(run: TrainingRun, run_dir: str) -> TrainingRun:
  """The run with `init_from` and `init_bank_from` taken to start in `run_dir`."""
  sources = {name: getattr(run, name) for name in ("init_from", "init_bank_from")}
  joined: dict[str, Any] = {name: os.path.join(run_dir, path) for name, path in sources.items() if path is not None}
  return dataclasses.replace(run, **joined)


def _open(directory: str, model: ModelConfig) -> "PackedDataset | DecomposedDataset":
  """Opens a packed dataset of one or several lengths and checks that the model can read it."""
  from hiermem_jax.data.packed.decomposition import open_dataset
  from hiermem_jax.parallel import distributed

  packed = distributed.together(lambda: open_dataset(directory))
  model.check_data(str(packed.directory), packed.manifest.vocab_size, packed.manifest.num_leaves)
  return packed


def _fingerprint(dataset: "PackedDataset | DecomposedDataset") -> str:
  """First 16 hex digits of a sha256 over the checksums of a dataset's shards: of what it holds, wherever it is."""
  from hiermem_jax.data.packed.decomposition import DecomposedDataset

  parts = dataset.buckets.values() if isinstance(dataset, DecomposedDataset) else [dataset]
  held = [[part.manifest.length, *(shard.sha256 for shard in part.manifest.shards)] for part in parts]
  return hashlib.sha256(json.dumps(held).encode()).hexdigest()[:16]


def _open_data(directory: str, run: TrainingRun, mesh: "Mesh") -> "LoopData":
  """The stream of batches that this process feeds its devices, and what checkpoints say of their origin."""
  from hiermem_jax.data.packed.batches import Batches
  from hiermem_jax.data.packed.decomposition import DecomposedBatches, DecomposedDataset
  from hiermem_jax.data.packed.selection import below_cluster
  from hiermem_jax.parallel import check_length, local_sequences
  from hiermem_jax.training.loop import LoopData

  dataset, memory = _open(directory, run.model), run.model.memory
  tokens = run.batch_size * dataset.manifest.length
  for length in dataset.buckets if isinstance(dataset, DecomposedDataset) else (dataset.manifest.length,):
    check_length(mesh, length)
  if isinstance(dataset, DecomposedDataset):
    tokens = run.batch_size * max(dataset.buckets)
    batches: DecomposedBatches | Batches = DecomposedBatches(
      dataset, tokens_per_batch=tokens, seed=run.seed, positions=functools.partial(local_sequences, mesh)
    )
  else:
    sequences = None
    if memory is not None and isinstance(memory.part, int):
      sequences = below_cluster(dataset, memory.part, memory.branching)
    positions = local_sequences(mesh, run.batch_size)
    batches = Batches(dataset, batch_size=run.batch_size, seed=run.seed, positions=positions, sequences=sequences)
  fingerprints = ("tree_fingerprint", "tokenizer_fingerprint")
  metadata = {name: getattr(dataset.manifest, name) for name in fingerprints}
  metadata["dataset_fingerprint"] = _fingerprint(dataset)
  return LoopData(batches=batches.iterate, origin=batches.origin, metadata=metadata, tokens_per_step=tokens)


def _open_held_out(run_dir: str, config: ValidationConfig, run: TrainingRun, mesh: "Mesh") -> "HeldOut":
  """All held-out sets."""
  from hiermem_jax.training.validation import HeldOut

  main, *others = (
    _held_out_batches(name, os.path.join(run_dir, path), config.sequences, run, mesh) for name, path in config.datasets
  )
  named = dict(zip((name for name, _ in config.others), others))
  return HeldOut(main, config.every, named, config.modes)


def _held_out_batches(setting: str, directory: str, count: int, run: TrainingRun, mesh: "Mesh") -> "HeldOutBatches":
  """The first `count` sequences that this run's part of the bank is about; `setting` is what binds the directory."""
  import numpy as np

  from hiermem_jax.data.packed.decomposition import DecomposedDataset
  from hiermem_jax.data.packed.selection import HeldOutBatches, below_cluster
  from hiermem_jax.parallel import check_length, local_sequences

  dataset, memory = _open(directory, run.model), run.model.memory
  if isinstance(dataset, DecomposedDataset):
    raise InputError(f"{setting} = {directory}: of several lengths; bind one of its datasets")
  check_length(mesh, dataset.manifest.length)
  sequences = np.arange(len(dataset))
  if memory is not None and isinstance(memory.part, int):
    sequences = below_cluster(dataset, memory.part, memory.branching)
  return HeldOutBatches(
    dataset,
    sequences=sequences[:count],
    batch_size=run.batch_size,
    positions=local_sequences(mesh, run.batch_size),
  )
