"""From a source to a packed dataset: cut documents into windows, route, tokenise, group by leaf, pack, shuffle, write.

Two Beam pipelines (route.py, then pack.py) that keep finished work under `DIRECTORY/work/` (paper, Appendix A.2). A
directory without a manifest is unfinished. The same call again does what is missing; the result is the same, byte for
byte, whatever the number of workers and however often the work was interrupted.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from hiermem_jax import console, files
from hiermem_jax.data.corpus.config import PackConfig, ReadConfig
from hiermem_jax.data.corpus.embed import embedding_inputs, parts_fingerprint
from hiermem_jax.data.corpus.pack import PIECE_TOKENS, PackJob, pack_corpus
from hiermem_jax.data.corpus.reading import Counts
from hiermem_jax.data.corpus.route import RoutePart, Router, token_dtype
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.corpus.steps import claim, require_same_inputs, run_over, source_repr
from hiermem_jax.data.packed.decomposition import DecomposedDataset, is_decomposed, open_dataset, write_decomposition
from hiermem_jax.data.packed.format import Manifest, Shard, write_manifest
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.data.sources import Source
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.retriever import Retriever, load_retriever
from hiermem_jax.retrieval.tree import ClusterTree

_DEFAULTS = dataclasses.asdict(PackConfig()) | ReadConfig().identity()  # of what the record of a dataset has of both
_WHOLE_DOCUMENTS = 2**30  # tokens in a window, so that no document is cut


def prepare(
  *,
  source: Source,
  tokenizer: Tokenizer,
  tree: str | None,
  directory: str,
  pack: PackConfig = PackConfig(),  # noqa: B008 (frozen)
  read: ReadConfig = ReadConfig(),  # noqa: B008 (frozen)
  beam_config: BeamConfig = BeamConfig(),  # noqa: B008 (frozen)
) -> PackedDataset | DecomposedDataset:
  """Writes the packed dataset of a source, or opens it if `directory` already holds it.

  Args:
    source: the documents.
    tokenizer: of the language model.
    tree: directory of the cluster tree and its encoder, which give each window its leaf. None packs all documents
      together, for training an anchor alone.
    directory: where to write. It must be new, empty, or hold the result of the same inputs, finished or not.
    pack: how windows become sequences.
    read: how documents are read.
    beam_config: where the pipelines run.

  Raises:
    InputError: settings that do not go together, too many malformed records, no documents, or a directory that holds
      something else.
  """
  pack.check_tree(tree is not None)
  retriever = None if tree is None else load_retriever(tree)
  inputs = _inputs(source, tokenizer, retriever, pack, read)
  if (dataset := _finished(directory, inputs)) is not None:
    return dataset
  work = os.path.join(directory, "work")
  _check_unfinished(directory)
  parts = list(enumerate(source.parts()))
  names = [part for _, part in parts]
  claim(work, inputs | {"parts": names}, _DEFAULTS)
  router = None
  if tree is not None and retriever is not None:
    embedded = embedding_inputs(source, tokenizer, retriever.encoder.fingerprint, read)
    router = Router(tree, embedded | {"parts": parts_fingerprint(names)})
  window_tokens = _WHOLE_DOCUMENTS if pack.buckets else read.window_tokens
  task = RoutePart(source, tokenizer.path, router, work, window_tokens)
  missing = [part for part in parts if not files.as_path(task.summary(part[0])).exists()]
  logging.info("%s: reading %d of %d parts of the corpus", directory, len(missing), len(parts))
  if missing:
    run_over(missing, task, beam_config)
  summaries = [files.read_json(task.summary(number)) for number, _ in parts]
  counts = Counts.total(summary["counts"] for summary in summaries)
  counts.check(source, read.max_bad_share)
  logging.info("%s: %d documents, %d windows, %d tokens", directory, counts.documents, counts.windows, counts.tokens)
  job = _pack_job(directory, tokenizer, None if retriever is None else retriever.tree, pack, _sum_leaves(summaries))
  pack_corpus(job, [chunk for summary in summaries for chunk in summary["chunks"]], beam_config)
  _write_manifests(directory, job, tokenizer, retriever, counts, inputs)
  _clean(job)
  dataset = open_dataset(directory)
  console.say(
    "%s: %s tokens of %s documents in %s sequences",
    *(directory, f"{counts.tokens:,}", f"{counts.documents:,}", f"{len(dataset):,}"),
  )
  return dataset


def _inputs(
  source: Source, tokenizer: Tokenizer, retriever: Retriever | None, pack: PackConfig, read: ReadConfig
) -> dict[str, Any]:
  """Everything that the dataset is a function of, as it is stored in JSON."""
  inputs = {
    "source": source_repr(source),
    "tokenizer": tokenizer.fingerprint,
    "tree": "" if retriever is None else retriever.tree.fingerprint,
    **dataclasses.asdict(pack),
    **read.identity(),
  }
  return json.loads(json.dumps(inputs))


def _pack_job(
  directory: str,
  tokenizer: Tokenizer,
  tree: ClusterTree | None,
  pack: PackConfig,
  per_leaf: dict[int, tuple[int, int]],
) -> PackJob:
  """The second pipeline's task, given (windows, tokens) of each leaf."""
  directories = {length: os.path.join(directory, str(length)) for length in pack.buckets} or {pack.length: directory}
  windows = [count for count, _ in per_leaf.values()]
  return PackJob(
    work=os.path.join(directory, "work"),
    directories=directories,
    config=pack,
    eot_id=tokenizer.eot_id,
    # A record holds tokens, and segment ids of up to the length.
    dtype=np.dtype(token_dtype(max(tokenizer.vocab_size, max(pack.lengths) + 1))).name,
    branching=1 if tree is None else tree.branching,
    pieces={leaf: -(-tokens // PIECE_TOKENS) for leaf, (_, tokens) in per_leaf.items() if tokens > PIECE_TOKENS},
    random_leaves=(np.array(list(per_leaf)), np.cumsum(windows)) if pack.shuffle_leaves else None,
  )


def _write_manifests(
  directory: str,
  job: PackJob,
  tokenizer: Tokenizer,
  retriever: Retriever | None,
  counts: Counts,
  inputs: dict[str, Any],
) -> None:
  """Writes the manifest of each length, and for several lengths the file that makes them one dataset.

  Raises:
    ValueError: tokens were lost.
  """
  dropped = files.read_json(job.dropped_path)
  held = {length: _held(job, length) for length in job.directories}
  tokens = sum(fields["num_tokens"] for fields in held.values())
  if counts.tokens != tokens + sum(dropped.values()):
    raise ValueError(f"{directory}: {counts.tokens} tokens in, {tokens} out, dropped {dropped}")
  common = {
    "dtype": job.dtype,
    "vocab_size": tokenizer.vocab_size,
    "eot_id": tokenizer.eot_id,
    "bos_id": tokenizer.bos_id,
    "num_leaves": 0 if retriever is None else retriever.tree.num_leaves,
    "tokenizer_fingerprint": tokenizer.fingerprint,
    "tree_fingerprint": inputs["tree"],
    "num_documents": counts.documents,
    "num_windows": counts.windows,
    "num_characters": counts.characters,
    "bad_records": counts.bad_records,
    "inputs": inputs,
  }
  for length, fields in held.items():
    if job.config.buckets:  # what was dropped cannot be ascribed to a length: decomposition.json has it
      balance = {"input_tokens": fields["num_tokens"], "dropped_tokens": {}}
    else:
      balance = {"input_tokens": counts.tokens, "dropped_tokens": dropped}
    write_manifest(job.directories[length], Manifest(length=length, **common, **fields, **balance))
  if job.config.buckets:
    write_decomposition(directory, job.config.buckets, counts.tokens, dropped)
  positions = sum(length * fields["num_sequences"] for length, fields in held.items())
  logging.info("%s: %.1f%% of the positions are padding", directory, 100 - 100 * tokens / positions)


def _finished(directory: str, inputs: dict[str, Any]) -> PackedDataset | DecomposedDataset | None:
  """The dataset that the directory holds, after a check of its inputs and checksums; None if it holds none."""
  if not is_decomposed(directory) and not (files.as_path(directory) / "manifest.json").exists():
    return None
  dataset = open_dataset(directory)
  require_same_inputs(directory, dataset.manifest.inputs, inputs, _DEFAULTS)
  dataset.verify()
  files.as_path(os.path.join(directory, "work")).rmtree(missing_ok=True)
  console.say("%s holds this packed dataset already (%d sequences): reusing it", directory, len(dataset))
  return dataset


def _check_unfinished(directory: str) -> None:
  """Raises InputError if the directory holds anything but an unfinished dataset."""
  folder = files.as_path(directory)
  if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "work").exists())):
    raise InputError(f"{directory} is not empty: give a new directory, or delete this one")


def _sum_leaves(summaries: Sequence[dict[str, Any]]) -> dict[int, tuple[int, int]]:
  """Leaf -> (windows, tokens) over all parts, in the order of the leaves."""
  totals: dict[int, np.ndarray] = collections.defaultdict(lambda: np.zeros(2, np.int64))
  for summary in summaries:
    for leaf, windows, tokens in summary["leaves"]:
      totals[leaf] += (windows, tokens)
  return {leaf: (int(windows), int(tokens)) for leaf, (windows, tokens) in sorted(totals.items())}


def _clean(job: PackJob) -> None:
  """Removes the work directory, and temporary files that killed processes have left beside the shards."""
  for folder in job.directories.values():
    for path in files.matching(folder, ".shard-*.tmp"):
      path.unlink()
  files.as_path(job.work).rmtree()


def _held(job: PackJob, length: int) -> dict[str, Any]:
  """Fields of the manifest that say what the shards of one length hold."""
  paths = [files.as_path(job.summary_path(length, shard)) for shard in range(job.config.num_shards)]
  summaries = [files.read_json(path) for path in paths if path.exists()]
  leaves: collections.Counter[int] = collections.Counter()
  for summary in summaries:
    leaves.update(dict(summary["leaves"]))
  return {
    "num_sequences": leaves.total(),
    "num_tokens": sum(summary["tokens"] for summary in summaries),
    "sequences_per_leaf": dict(sorted(leaves.items())),
    "shards": tuple(Shard(**summary["shard"]) for summary in summaries),
  }
