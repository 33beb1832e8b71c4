"""The cluster tree of a corpus, as Beam pipelines: embed every window, then split one level after the other.

  DIRECTORY/encoder/                     the encoder, fitted or copied
  DIRECTORY/embeddings/part-00012.npz    keys uint64 [n] and embeddings float32 [n, E] of a part's windows
  DIRECTORY/embeddings/part-00012.json   what the part held; written last
  DIRECTORY/levels/level_2.npy           centroids of a level
  DIRECTORY/tree.{npz,json}              the tree
  DIRECTORY/report.json                  sizes of the clusters, level by level; written last

A level is learned as the paper says (Appendix C): each node's k-means sees examples that fall in that node, at most
steps * batch_size of them. Which ones, and in which order, follows from the windows' keys, so the tree is a function of
corpus, settings and seed, whatever the number of workers.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from absl import logging

from hiermem_jax import files
from hiermem_jax.data.corpus.keys import below, mix
from hiermem_jax.data.corpus.reading import Counts, read_part
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.corpus.steps import cached_encoder, cached_tokenizer, claim, describe, part_name, run_over
from hiermem_jax.data.sources import Source
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.encoders import Encoder
from hiermem_jax.retrieval.tree import ClusterTree, level_report, split_node

_SAFETY = 6  # standard deviations by which more examples are passed on than a node will use


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeConfig:
  """How the tree is grown; defaults are the paper's (Appendix C).

  Attributes:
    branching: children of a node.
    depth: levels.
    steps: EM steps per node.
    batch_size: fresh examples per EM step.
    balance: largest share of a cluster during EM, in multiples of the mean (paper: 0.094 = 1.5/16); None for no limit.
    seed: of everything random.
  """

  branching: int = 16
  depth: int = 4
  steps: int = 20
  batch_size: int = 6400
  balance: float | None = 1.5
  seed: int = 0

  def __post_init__(self):
    if self.branching < 2 or self.depth < 1:
      raise InputError(f"cluster tree with branching {self.branching}, depth {self.depth}: set at least 2 and 1")


def cluster_corpus(
  *,
  source: Source,
  tokenizer: Tokenizer,
  encoder: Encoder,
  tree: TreeConfig,
  directory: str,
  window_tokens: int = 2048,
  sample: float = 1.0,
  max_bad_share: float = 0.001,
  runner: BeamConfig = BeamConfig(),  # noqa: B008 (frozen)
) -> ClusterTree:
  """Embeds a corpus and grows its tree; what an earlier call in the same directory has finished is kept.

  Args:
    source: documents.
    tokenizer: of the language model, which windows are measured in.
    encoder: saved under `directory/encoder` already.
    tree: how to grow it.
    directory: where everything is kept (see the module's docstring).
    window_tokens: greatest size of a window.
    sample: share of the documents to cluster, chosen by a hash of their place.
    max_bad_share: share of malformed records above which the run fails.
    runner: where the pipelines run.

  Raises:
    InputError: too many bad records, fewer windows than leaves, or a directory that belongs to other inputs.
  """
  inputs = embedding_inputs(source, tokenizer, encoder.fingerprint, window_tokens)
  task = _EmbedPart(source, tokenizer.path, directory, window_tokens, sample)
  parts = list(enumerate(source.parts()))
  claim(os.path.join(directory, "embeddings"), inputs | {"sample": sample})
  missing = [part for part in parts if not task.done(part[0])]
  logging.info("embedding the windows of %d of %d parts of the corpus", len(missing), len(parts))
  if missing:
    run_over(missing, task, runner)
  read = [files.read_json(task.path(number, "json")) for number, _ in parts]
  counts = Counts.total(read)
  counts.check(source, max_bad_share)
  if counts.windows < tree.branching**tree.depth:
    raise InputError(
      f"{counts.windows} windows of {counts.documents} documents cannot fill the {tree.branching**tree.depth} leaves of"
      f" branching {tree.branching}, depth {tree.depth}: lower depth or branching, or give more documents"
    )
  embedded = [task.path(number, "npz") for (number, _), part in zip(parts, read) if part["windows"]]
  grown = _grow(embedded, tree, encoder, os.path.join(directory, "levels"), runner)
  grown.save(directory)
  _write_report(directory, grown, embedded, counts)
  return grown


def embedding_inputs(
  source: Source, tokenizer: Tokenizer, encoder_fingerprint: str, window_tokens: int
) -> dict[str, Any]:
  """What decides the windows of a corpus, their keys and their embeddings."""
  return {
    "source": describe(source),
    "parts": hashlib.sha256("\n".join(source.parts()).encode()).hexdigest()[:16],
    "tokenizer": tokenizer.fingerprint,
    "encoder": encoder_fingerprint,
    "window_tokens": window_tokens,
  }


class KnownEmbeddings:
  """Embeddings that `cluster` has left behind for the windows of one part, so that `prepare` need not repeat them."""

  def __init__(self, directory: str, number: int, inputs: dict[str, Any]):
    """Opens those of part `number` below the tree's directory; none where `inputs` are not those they were made of."""
    self._keys, self._embeddings = np.zeros(0, np.uint64), None
    folder = files.as_path(directory) / "embeddings"
    held = files.read_json(folder / "inputs.json") if (folder / "inputs.json").exists() else {}
    if all(held.get(name) == value for name, value in inputs.items()):
      path = folder / part_name(number, "npz")
      if path.exists() and (folder / part_name(number, "json")).exists():
        arrays = files.read_arrays(path)
        order = np.argsort(arrays["keys"])
        self._keys, self._embeddings = arrays["keys"][order], arrays["embeddings"][order]

  def embed(self, keys: np.ndarray, texts: Sequence[str], encoder: Encoder) -> np.ndarray:
    """Embeddings of windows, looked up or encoded: float32 [n, E]."""
    known = np.isin(keys, self._keys)
    result = np.empty((len(keys), encoder.dim), np.float32)
    if known.any():
      result[known] = self._embeddings[np.searchsorted(self._keys, keys[known])]
    if not known.all():
      result[~known] = encoder.encode([text for text, there in zip(texts, known) if not there])
    return result


class _EmbedPart(beam.DoFn):
  """Writes keys and embeddings of the windows of one part, and yields nothing."""

  def __init__(self, source: Source, tokenizer: str, directory: str, window_tokens: int, sample: float):
    self._source, self._tokenizer, self._directory = source, tokenizer, directory
    self._window_tokens, self._sample = window_tokens, sample

  def path(self, number: int, kind: str) -> str:
    return os.path.join(self._directory, "embeddings", part_name(number, kind))

  def done(self, number: int) -> bool:
    return files.as_path(self.path(number, "json")).exists()

  def process(self, element: tuple[int, str]) -> Iterator[None]:
    number, part = element
    encoder = cached_encoder(os.path.join(self._directory, "encoder"))
    tokenizer = cached_tokenizer(self._tokenizer)
    counts = Counts()
    keys, embeddings = [np.zeros(0, np.uint64)], [np.zeros((0, encoder.dim), np.float32)]
    batches = read_part(
      self._source, number, part, tokenizer, counts, window_tokens=self._window_tokens, sample=self._sample
    )
    for batch in batches:
      keys.append(batch.keys)
      embeddings.append(encoder.encode(batch.texts))
      logging.log_every_n_seconds(logging.INFO, "%s: %d windows embedded", 10, part, counts.windows)
    files.write_arrays(self.path(number, "npz"), keys=np.concatenate(keys), embeddings=np.concatenate(embeddings))
    files.write_json(self.path(number, "json"), dataclasses.asdict(counts))
    yield from ()


def _grow(
  embedded: Sequence[str], config: TreeConfig, encoder: Encoder, directory: str, runner: BeamConfig
) -> ClusterTree:
  """Learns the levels that are not there yet, one pipeline each."""
  settings = dataclasses.asdict(config)
  depth = settings.pop("depth")  # a deeper tree starts with the same levels
  claim(directory, settings | {"embeddings": len(embedded)})
  levels: list[np.ndarray] = []
  for level in range(1, depth + 1):
    path = os.path.join(directory, f"level_{level}.npz")
    if not files.as_path(path).exists():
      parents = _tree(levels, config, encoder) if levels else None
      steps = {"embedded": embedded, "parents": parents, "level": level, "config": config, "dim": encoder.dim}
      runner.run(functools.partial(_split_level, path=path, **steps), num_units=len(embedded))
    levels.append(files.read_arrays(path)["centroids"])
  return _tree(levels, config, encoder)


def _tree(levels: Sequence[np.ndarray], config: TreeConfig, encoder: Encoder) -> ClusterTree:
  return ClusterTree(centroids=tuple(levels), branching=config.branching, encoder_fingerprint=encoder.fingerprint)


def _split_level(
  pipeline: Any,
  *,
  embedded: Sequence[str],
  parents: ClusterTree | None,
  level: int,
  config: TreeConfig,
  dim: int,
  path: str,
) -> None:
  """Adds the steps that learn one level and write its centroids to `path`."""
  num_parents = config.branching ** (level - 1)
  sizes = pipeline | "empty" >> beam.Create([(node, 0) for node in range(num_parents)])
  paths = pipeline | beam.Create(list(embedded)) | beam.Reshuffle()
  sizes = (sizes, paths | "count" >> beam.FlatMap(_count_nodes, parents)) | beam.Flatten() | beam.CombinePerKey(sum)
  examples = paths | "examples" >> beam.FlatMap(_examples, parents, beam.pvalue.AsDict(sizes), config)
  nothing = sizes | "every node" >> beam.Map(lambda item: (item[0], None))
  (
    (examples, nothing)
    | "with empty nodes" >> beam.Flatten()
    | beam.GroupByKey()
    | "split" >> beam.MapTuple(functools.partial(_split, parents=parents, level=level, config=config, dim=dim))
    | "to one" >> beam.combiners.ToList()
    | "write" >> beam.Map(_write_level, path)
  )


def _nodes(embeddings: np.ndarray, parents: ClusterTree | None) -> np.ndarray:
  if parents is None:
    return np.zeros(len(embeddings), np.int32)
  return parents.assign(embeddings)


def _count_nodes(path: str, parents: ClusterTree | None) -> Iterator[tuple[int, int]]:
  nodes = _nodes(files.read_arrays(path)["embeddings"], parents)
  yield from ((int(node), int(count)) for node, count in zip(*np.unique(nodes, return_counts=True)))


def _examples(path: str, parents: ClusterTree | None, sizes: dict[int, int], config: TreeConfig):
  """Those examples of a part that their nodes can use, grouped by node: (node, (keys [n], embeddings [n, E]))."""
  arrays = files.read_arrays(path)
  nodes = _nodes(arrays["embeddings"], parents)
  keys = mix(arrays["keys"], config.seed)
  wanted = config.steps * config.batch_size
  for node in np.unique(nodes):
    rows = np.flatnonzero(nodes == node)
    share = (wanted + _SAFETY * wanted**0.5) / sizes[int(node)]
    rows = rows[below(share, keys[rows])]
    if rows.size:
      yield int(node), (keys[rows], arrays["embeddings"][rows])


def _split(node: int, groups, *, parents: ClusterTree | None, level: int, config: TreeConfig, dim: int):
  groups = [group for group in groups if group is not None]
  keys = np.concatenate([np.zeros(0, np.uint64), *(keys for keys, _ in groups)])
  embeddings = np.concatenate([np.zeros((0, dim), np.float32), *(embeddings for _, embeddings in groups)])
  parent = np.zeros(dim, np.float32) if parents is None else parents.centroids[-1][node]
  children = split_node(
    embeddings,
    keys,
    parent=parent,
    level=level,
    node=node,
    branching=config.branching,
    steps=config.steps,
    batch_size=config.batch_size,
    balance=config.balance,
    seed=config.seed,
  )
  return node, children


def _write_level(children: list[tuple[int, np.ndarray]], path: str) -> None:
  files.write_arrays(path, centroids=np.concatenate([centroids for _, centroids in sorted(children, key=_first)]))


def _first(item: tuple) -> Any:
  return item[0]


def _write_report(directory: str, tree: ClusterTree, embedded: Sequence[str], counts: Counts) -> None:
  """Sizes of all clusters, in windows that were embedded: the one look at a tree before it is used."""
  leaf_sizes = np.zeros(tree.num_leaves, np.int64)
  for path in embedded:
    leaf_sizes += np.bincount(_nodes(files.read_arrays(path)["embeddings"], tree), minlength=tree.num_leaves)
  levels = []
  for level in range(1, tree.depth + 1):
    sizes = leaf_sizes.reshape(tree.branching**level, -1).sum(axis=1)
    levels.append(level_report(sizes, tree.branching))
    logging.info(
      "level %(level)d: %(clusters)d clusters of %(min)d to %(max)d windows, median %(median)d, %(empty)d empty",
      {"level": level} | levels[-1],
    )
    if levels[-1]["small_nodes"]:
      logging.warning(
        "level %d: %d nodes hold fewer windows than %d children need; the missing ones repeat the first and stay empty",
        level, levels[-1]["small_nodes"], tree.branching,
      )  # fmt: skip
  files.write_json(os.path.join(directory, "report.json"), {"corpus": dataclasses.asdict(counts), "levels": levels})
