"""Source to packed dataset: window, route, tokenize, group by leaf, pack, shuffle, write (paper, A.2).

Two Beam pipelines (route_corpus.py, pack_corpus.py) that leave finished work under `DIRECTORY/work/`. A directory
without a manifest is unfinished; the same call again does what is missing, and the result is the same, byte for byte,
whatever the number of workers and however often it was interrupted.
"""

import collections
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from hiermem_jax import files
from hiermem_jax.data.corpus.cluster import embedding_inputs
from hiermem_jax.data.corpus.pack import PIECE_TOKENS, PackJob, pack_corpus
from hiermem_jax.data.corpus.reading import Counts
from hiermem_jax.data.corpus.route import RoutePart, Router, token_dtype
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.corpus.steps import claim, describe, require_same_inputs, run_over
from hiermem_jax.data.packed.decomposition import DecomposedDataset, is_decomposed, open_dataset, write_decomposition
from hiermem_jax.data.packed.format import Manifest, PackedDataset, Shard, write_manifest
from hiermem_jax.data.sources import Source
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.retriever import load_retriever

TAILS = ("pad", "drop", "mix")


def prepare(
  *,
  source: Source,
  tokenizer: Tokenizer,
  tree: str | None,
  directory: str,
  length: int = 2048,
  buckets: tuple[int, ...] = (),
  window_tokens: int = 2048,
  tails: str = "pad",
  num_shards: int = 8,
  seed: int = 0,
  shuffle_leaves: bool = False,
  max_bad_share: float = 0.001,
  runner: BeamConfig = BeamConfig(),  # noqa: B008 (frozen)
) -> PackedDataset | DecomposedDataset:
  """Writes the packed dataset of a source, or opens it if `directory` already holds it.

  Args:
    source: documents.
    tokenizer: of the language model.
    tree: directory of the cluster tree and its encoder, which give each window its leaf; None packs all documents
      together, for training an anchor alone.
    directory: where to write; new, empty, or holding the result of the same inputs, finished or not.
    length: positions of a sequence.
    buckets: for dataset decomposition (see decomposition.py): lengths of the sequences, instead of `length`. Documents
      are not cut into windows, and there is no tree.
    window_tokens: greatest size of a window.
    tails: what becomes of a leaf's last, incomplete sequence: "pad", "drop", or "mix" with its siblings' tails. With
      `buckets`, what becomes of the rest of a document below the shortest: "pad" packs the rests, "drop" leaves them
      out.
    num_shards: files to write, of each bucket; fewer where there are few sequences.
    seed: of the order of a leaf's windows and of the sequences.
    shuffle_leaves: for the trap control only. Windows are dealt leaves at random, as often as leaves have windows:
      a leaf no longer says anything about its text. What fetched memories still gain on such a dataset does not come
      from retrieval.
    max_bad_share: share of malformed records above which the run fails.
    runner: where the pipelines run.

  Raises:
    InputError: a setting out of range, too many bad records, no documents, or a directory that holds something else.
  """
  _check_settings(length, buckets, num_shards, tails, tree)
  retriever = None if tree is None else load_retriever(tree)
  inputs = {
    "source": describe(source),
    "tokenizer": tokenizer.fingerprint,
    "tree": "" if retriever is None else retriever.tree.fingerprint,
    "length": length,
    "buckets": list(buckets),
    "window_tokens": window_tokens,
    "tails": tails,
    "num_shards": num_shards,
    "seed": seed,
    "shuffle_leaves": shuffle_leaves,
  }
  if (dataset := _finished(directory, inputs)) is not None:
    return dataset
  work = os.path.join(directory, "work")
  _check_unfinished(directory)
  parts = list(enumerate(source.parts()))
  router = None
  if retriever is not None:
    router = Router(tree, embedding_inputs(source, tokenizer, retriever.encoder.fingerprint, window_tokens))
  claim(work, inputs | {"parts": [part for _, part in parts]})
  task = RoutePart(source, tokenizer.path, router, work, 2**30 if buckets else window_tokens)
  missing = [part for part in parts if not files.as_path(task.summary(part[0])).exists()]
  logging.info("%s: reading %d of %d parts of the corpus", directory, len(missing), len(parts))
  if missing:
    run_over(missing, task, runner)
  read = [files.read_json(task.summary(number)) for number, _ in parts]
  counts = Counts.total(part["counts"] for part in read)
  counts.check(source, max_bad_share)
  logging.info("%s: %d documents, %d windows, %d tokens", directory, counts.documents, counts.windows, counts.tokens)

  per_leaf = _sum_leaves(read)
  job = PackJob(
    work=work,
    directories={n: os.path.join(directory, str(n)) for n in buckets} or {length: directory},
    eot_id=tokenizer.eot_id,
    dtype=np.dtype(token_dtype(max(tokenizer.vocab_size, max(buckets, default=length) + 1))).name,
    tails=tails,
    branching=1 if retriever is None else retriever.tree.branching,
    num_shards=num_shards,
    pieces={leaf: -(-tokens // PIECE_TOKENS) for leaf, (_, tokens) in per_leaf.items() if tokens > PIECE_TOKENS},
    dealt=_deal(per_leaf) if shuffle_leaves else None,
    seed=seed,
  )
  pack_corpus(job, [chunk for part in read for chunk in part["chunks"]], runner)
  described = {
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
  dropped = files.read_json(job.dropped_path)
  held = {length: _held(job, length) for length in job.directories}
  tokens = sum(fields["num_tokens"] for fields in held.values())
  if counts.tokens != tokens + sum(dropped.values()):
    raise ValueError(f"{directory}: {counts.tokens} tokens in, {tokens} out, dropped {dropped}")
  for n, fields in held.items():
    # Of several lengths each has its own tokens, and what was dropped is in the file that makes them one.
    alone = {"input_tokens": fields["num_tokens"], "dropped_tokens": {}}
    balance = alone if buckets else {"input_tokens": counts.tokens, "dropped_tokens": dropped}
    write_manifest(job.directories[n], Manifest(length=n, **described, **fields, **balance))
  if buckets:
    write_decomposition(directory, buckets, counts.tokens, dropped)
  _clean(job)
  dataset = open_dataset(directory)
  logging.info(
    "%s: %d sequences, %d tokens of %d, %.1f%% padding",
    directory, len(dataset), tokens, counts.tokens,
    100 - 100 * tokens / sum(n * fields["num_sequences"] for n, fields in held.items()),
  )  # fmt: skip
  return dataset


def _check_settings(length: int, buckets: tuple[int, ...], num_shards: int, tails: str, tree: str | None) -> None:
  if length < 1 or num_shards < 1:
    raise InputError(f"length {length} and num_shards {num_shards} must be at least 1: correct the binding")
  if tails not in TAILS:
    raise InputError(f"tails = {tails!r}: give one of {', '.join(TAILS)}")
  if buckets and (tree is not None or list(buckets) != [buckets[0] << i for i in range(len(buckets))]):
    raise InputError(
      f"buckets = {buckets}: give lengths that double, e.g. (256, 512, 1024), and tree = None, or () for one length"
    )
  if tails == "mix" and tree is None:
    raise InputError("tails = 'mix': without a tree no leaf has siblings; give 'pad' or 'drop'")


def _finished(directory: str, inputs: dict[str, Any]) -> PackedDataset | DecomposedDataset | None:
  """The dataset that the directory holds, checked by checksum; None where it holds none."""
  if not is_decomposed(directory) and not (files.as_path(directory) / "manifest.json").exists():
    return None
  dataset = open_dataset(directory)
  require_same_inputs(directory, dataset.manifest.inputs, inputs)
  dataset.verify()
  files.as_path(os.path.join(directory, "work")).rmtree(missing_ok=True)
  logging.info("%s holds this packed dataset already (%d sequences): reusing it", directory, len(dataset))
  return dataset


def _check_unfinished(directory: str) -> None:
  """Raises InputError where the directory holds anything but the beginnings of a dataset."""
  folder = files.as_path(directory)
  if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "work").exists())):
    raise InputError(f"{directory} is not empty: give a new directory, or delete this one")


def _sum_leaves(read: Sequence[dict[str, Any]]) -> dict[int, tuple[int, int]]:
  """Windows and tokens of each leaf over all parts, in the order of the leaves."""
  totals: dict[int, np.ndarray] = collections.defaultdict(lambda: np.zeros(2, np.int64))
  for part in read:
    for leaf, windows, tokens in part["leaves"]:
      totals[leaf] += (windows, tokens)
  return {leaf: (int(windows), int(tokens)) for leaf, (windows, tokens) in sorted(totals.items())}


def _deal(per_leaf: dict[int, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
  return np.array(list(per_leaf)), np.cumsum([windows for windows, _ in per_leaf.values()])


def _clean(job: PackJob) -> None:
  """Removes the work directory, and what writers that were killed have left beside the shards."""
  for folder in job.directories.values():
    for path in files.as_path(folder).glob(".shard-*.tmp"):
      path.unlink()
  files.as_path(job.work).rmtree()


def _held(job: PackJob, length: int) -> dict[str, Any]:
  """What the shards of one length hold, as fields of a manifest."""
  summaries = [
    files.read_json(path)
    for shard in range(job.num_shards)
    if files.as_path(path := job.summary_path(length, shard)).exists()
  ]
  leaves = collections.Counter()
  for summary in summaries:
    leaves.update(dict(summary["leaves"]))
  return {
    "num_sequences": leaves.total(),
    "num_tokens": sum(summary["tokens"] for summary in summaries),
    "sequences_per_leaf": dict(sorted(leaves.items())),
    "shards": tuple(Shard(**summary["shard"]) for summary in summaries),
  }
