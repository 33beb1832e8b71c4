"""The cluster tree of a corpus, as Beam pipelines: embed every window, then split one level after the other.

  DIRECTORY/encoder/               the encoder
  DIRECTORY/embeddings/            keys and embeddings of the windows, see embed.py
  DIRECTORY/levels/level_2.npz     centroids of a level
  DIRECTORY/tree.npz, tree.json    the tree
  DIRECTORY/report.json            sizes of the clusters, level by level; written last

A level is learned as in the paper (Appendix C): the k-means of a node sees examples of that node, at most
steps * batch_size of them. The windows' keys decide which ones and in which order. So the tree is a function of corpus,
settings and seed, whatever the number of workers.
"""

import dataclasses
import functools
import operator
import os
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from absl import logging

from hiermem_jax import console, files
from hiermem_jax.data.corpus.config import ReadConfig
from hiermem_jax.data.corpus.embed import EmbedPart, embedding_inputs, parts_fingerprint
from hiermem_jax.data.corpus.keys import in_sample, mix
from hiermem_jax.data.corpus.reading import Counts
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.corpus.steps import claim, require_same_inputs, run_over
from hiermem_jax.data.sources import Source
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.retrieval.build import TreeConfig, level_report, split_node
from hiermem_jax.retrieval.encoders import Encoder
from hiermem_jax.retrieval.tree import ClusterTree

_MARGIN = 6  # standard deviations by which more examples are passed on than a node will use


def cluster_corpus(
  *,
  source: Source,
  tokenizer: Tokenizer,
  encoder: Encoder,
  directory: str,
  tree: TreeConfig,
  read: ReadConfig = ReadConfig(),  # noqa: B008 (frozen)
  sample: float = 1.0,
  beam_config: BeamConfig = BeamConfig(),  # noqa: B008 (frozen)
) -> ClusterTree:
  """Embeds a corpus and builds its tree.

  What an earlier call in the same directory has finished is kept; a finished tree is loaded.

  Args:
    source: the documents.
    tokenizer: of the language model; windows are measured in its tokens.
    encoder: the encoder, already saved under `directory/encoder`.
    directory: where everything is kept (see the module's docstring).
    tree: shape of the tree and settings of k-means.
    read: how documents are read.
    sample: share of the documents to embed and cluster, chosen by a hash of their position.
    beam_config: where the pipelines run.

  Raises:
    InputError: too many malformed records, fewer windows than leaves, or a directory that belongs to other inputs.
  """
  inputs = embedding_inputs(source, tokenizer, encoder.fingerprint, read) | {"sample": sample}
  if (finished := _finished(directory, inputs, tree)) is not None:
    return finished
  task = EmbedPart(source, tokenizer.path, directory, read, sample)
  parts = list(enumerate(source.parts()))
  claimed = inputs | {"parts": parts_fingerprint([part for _, part in parts])}
  claim(os.path.join(directory, "embeddings"), claimed, ReadConfig().identity())
  missing = [part for part in parts if not task.done(part[0])]
  logging.info("embedding the windows of %d of %d parts of the corpus", len(missing), len(parts))
  if missing:
    run_over(missing, task, beam_config)
  summaries = [files.read_json(task.path(number, "json")) for number, _ in parts]
  counts = Counts.total(summaries)
  counts.check(source, read.max_bad_share)
  tree.check_examples(counts.windows, f"windows of {counts.documents} documents")
  embedded = [task.path(number, "npz") for (number, _), summary in zip(parts, summaries) if summary["windows"]]
  built = _build(embedded, tree, encoder, os.path.join(directory, "levels"), beam_config)
  built.save(directory)
  _write_report(directory, built, embedded, counts)
  return built


def _finished(directory: str, inputs: dict[str, Any], config: TreeConfig) -> ClusterTree | None:
  """The tree that the directory holds, if it is finished.

  Embeddings and levels may have been deleted since; those that are there must be of the same inputs.
  """
  if not (files.as_path(directory) / "report.json").exists():
    return None
  defaults = ReadConfig().identity() | _level_inputs(TreeConfig())
  for folder, wanted in (("embeddings", inputs), ("levels", _level_inputs(config))):
    path = files.as_path(directory) / folder / "inputs.json"
    if path.exists():
      held = files.read_json(path)
      require_same_inputs(directory, {name: held[name] for name in wanted if name in held}, wanted, defaults)
  tree = ClusterTree.load(directory)
  require_same_inputs(directory, {"depth": tree.depth}, {"depth": config.depth})
  console.say("%s holds this tree already (%d leaves): reusing it", directory, tree.num_leaves)
  return tree


def _level_inputs(config: TreeConfig) -> dict[str, Any]:
  """What decides the levels. The depth does not: a deeper tree starts with the same levels."""
  return {name: value for name, value in dataclasses.asdict(config).items() if name != "depth"}


def _build(
  embedded: Sequence[str], config: TreeConfig, encoder: Encoder, directory: str, beam_config: BeamConfig
) -> ClusterTree:
  """Learns the levels that are not in `directory` yet, with one pipeline each."""
  claim(directory, _level_inputs(config) | {"embeddings": len(embedded)}, _level_inputs(TreeConfig()))
  levels: list[np.ndarray] = []
  for level in range(1, config.depth + 1):
    path = os.path.join(directory, f"level_{level}.npz")
    if not files.as_path(path).exists():
      parents = _tree(levels, config, encoder) if levels else None
      split = _SplitLevel(path=path, embedded=embedded, parents=parents, level=level, config=config, dim=encoder.dim)
      beam_config.run(split.add_to, num_units=len(embedded))
    levels.append(files.read_arrays(path)["centroids"])
  return _tree(levels, config, encoder)


def _tree(levels: Sequence[np.ndarray], config: TreeConfig, encoder: Encoder) -> ClusterTree:
  return ClusterTree(centroids=tuple(levels), branching=config.branching, encoder_fingerprint=encoder.fingerprint)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SplitLevel:
  """The pipeline that learns one level.

  Attributes:
    path: where the centroids go.
    embedded: files of keys and embeddings.
    parents: the tree of the levels above; None for the first level.
    level: number of the level, 1 for the root's children.
    config: settings of the tree.
    dim: length of an embedding, E.
  """

  path: str
  embedded: Sequence[str]
  parents: ClusterTree | None
  level: int
  config: TreeConfig
  dim: int

  def add_to(self, pipeline: Any) -> None:
    """Adds the steps to a pipeline."""
    nodes = range(self.config.branching ** (self.level - 1))
    sizes = pipeline | "empty" >> beam.Create([(node, 0) for node in nodes])
    paths = pipeline | beam.Create(list(self.embedded)) | beam.Reshuffle()
    counted = paths | "count" >> beam.FlatMap(_count_nodes, self.parents)
    sizes = (sizes, counted) | beam.Flatten() | beam.CombinePerKey(sum)
    examples = paths | "examples" >> beam.FlatMap(_examples, self.parents, beam.pvalue.AsDict(sizes), self.config)
    nothing = sizes | "every node" >> beam.Map(lambda item: (item[0], None))
    split = functools.partial(_split, parents=self.parents, level=self.level, config=self.config, dim=self.dim)
    (
      (examples, nothing)
      | "with empty nodes" >> beam.Flatten()
      | beam.GroupByKey()
      | "split" >> beam.MapTuple(split)
      | "to one" >> beam.combiners.ToList()
      | "write" >> beam.Map(_write_level, self.path)
    )


def _nodes(embeddings: np.ndarray, parents: ClusterTree | None) -> np.ndarray:
  """The node above the level to be learned that each embedding falls in: int32 [n]."""
  if parents is None:
    return np.zeros(len(embeddings), np.int32)
  return parents.assign(embeddings)


def _count_nodes(path: str, parents: ClusterTree | None) -> Iterator[tuple[int, int]]:
  """Number of a file's examples in each node: (node, count)."""
  nodes = _nodes(files.read_arrays(path)["embeddings"], parents)
  yield from ((int(node), int(count)) for node, count in zip(*np.unique(nodes, return_counts=True)))


def _examples(path: str, parents: ClusterTree | None, sizes: dict[int, int], config: TreeConfig) -> Iterator[Any]:
  """The examples of a file that their nodes can use: (node, (keys [n], embeddings [n, E])).

  A node uses the steps * batch_size examples of smallest key. How many of them are in this file is not known, so
  examples are chosen by a threshold on the key that lets pass a few more than that of all files together.
  """
  arrays = files.read_arrays(path)
  nodes = _nodes(arrays["embeddings"], parents)
  keys = mix(arrays["keys"], config.seed)
  wanted = config.steps * config.batch_size
  for node in np.unique(nodes):
    chosen = np.flatnonzero(nodes == node)
    share = (wanted + _MARGIN * wanted**0.5) / sizes[int(node)]
    chosen = chosen[in_sample(keys[chosen], share)]
    if chosen.size:
      yield int(node), (keys[chosen], arrays["embeddings"][chosen])


def _split(
  node: int, groups: Any, *, parents: ClusterTree | None, level: int, config: TreeConfig, dim: int
) -> tuple[int, np.ndarray]:
  """Centroids of one node's children: (node, float32 [branching, E])."""
  groups = [group for group in groups if group is not None]
  keys = np.concatenate([np.zeros(0, np.uint64), *(keys for keys, _ in groups)])
  embeddings = np.concatenate([np.zeros((0, dim), np.float32), *(embeddings for _, embeddings in groups)])
  parent = np.zeros(dim, np.float32) if parents is None else parents.centroids[-1][node]
  return node, split_node(embeddings, keys, parent=parent, level=level, node=node, config=config)


def _write_level(children: list[tuple[int, np.ndarray]], path: str) -> None:
  children = sorted(children, key=operator.itemgetter(0))
  files.write_arrays(path, centroids=np.concatenate([centroids for _, centroids in children]))


def _write_report(directory: str, tree: ClusterTree, embedded: Sequence[str], counts: Counts) -> None:
  """Logs and writes the sizes of the clusters of each level, in windows that were embedded."""
  leaf_sizes = np.zeros(tree.num_leaves, np.int64)
  for path in embedded:
    leaf_sizes += np.bincount(_nodes(files.read_arrays(path)["embeddings"], tree), minlength=tree.num_leaves)
  levels = []
  for level in range(1, tree.depth + 1):
    sizes = leaf_sizes.reshape(tree.branching**level, -1).sum(axis=1)
    levels.append(level_report(sizes, tree.branching))
    console.say(
      "level %(level)d: %(clusters)d clusters of %(min)d to %(max)d windows, median %(median)d, %(empty)d empty",
      {"level": level} | levels[-1],
    )
    if levels[-1]["small_nodes"]:
      logging.warning(
        "level %d: %d nodes hold fewer windows than their %d children; some of these children stay empty",
        level, levels[-1]["small_nodes"], tree.branching,
      )  # fmt: skip
  files.write_json(os.path.join(directory, "report.json"), {"corpus": dataclasses.asdict(counts), "levels": levels})
