"""What a run's tree, blocks and training text look like: the numbers behind the verb `inspect`.

Clusters are named by their path: '7.57' is cluster 57 of level 2, which lies below cluster 7 of level 1. Clusters are
numbered level by level, so a path of one number is a cluster of level 1. Everything here only reads.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from hiermem_jax import files
from hiermem_jax.data.corpus.keys import window_keys
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.data.packed.selection import below_cluster
from hiermem_jax.data.sources import BadRecord, Source
from hiermem_jax.data.text.tokenizer import load_tokenizer
from hiermem_jax.errors import InputError
from hiermem_jax.evaluation import topics
from hiermem_jax.evaluation.loading import require_same
from hiermem_jax.models.bank import table_name
from hiermem_jax.parallel import make_mesh
from hiermem_jax.retrieval.build import level_report
from hiermem_jax.retrieval.retriever import Retriever
from hiermem_jax.retrieval.tree import ClusterTree
from hiermem_jax.training.checkpoint import load_model
from hiermem_jax.training.config import TrainingRun

_RUNNERS_UP = 3
_STARVED = 0.1  # of the mean: a block with fewer tokens is called starved
_MOST_READ = 200_000  # sequences whose tokens are counted one by one; of more, the mean is used
_CHUNK = 4096  # sequences that are read at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedRun:
  """What the configuration that a run directory keeps says about it. Paths are complete.

  Attributes:
    directory: of the run.
    tree: directory of the cluster tree.
    tokenizer: path of the tokenizer; None where the configuration names none that is there.
    packed: packed dataset that the bank is trained on; None where there is none yet.
    corpus: documents that were clustered or prepared; None where the configuration names none.
    model: directory of the training with a bank whose checkpoints are looked at; None where there are none yet.
    training: that training; None where the configuration has none.
  """

  directory: str
  tree: str
  tokenizer: str | None = None
  packed: str | None = None
  corpus: Source | None = None
  model: str | None = None
  training: TrainingRun | None = None


def parse_path(text: str, tree: ClusterTree) -> tuple[int, ...]:
  """The clusters of a path such as '7.57', level 1 first.

  Raises:
    InputError: the tree has no such path.
  """
  parts = text.split(".")
  if not all(part.isdecimal() for part in parts) or len(parts) > tree.depth:
    raise InputError(f"--leaf={text}: give the numbers of 1 to {tree.depth} clusters with points, level 1 first")
  path = tuple(map(int, parts))
  for level, cluster in enumerate(path, start=1):
    if cluster >= tree.branching**level:
      raise InputError(f"--leaf={text}: level {level} has the clusters 0 to {tree.branching**level - 1}; choose one")
    if level > 1 and cluster // tree.branching != path[level - 2]:
      right = [cluster // tree.branching**up for up in range(level - 1, -1, -1)]
      raise InputError(
        f"--leaf={text}: cluster {cluster} of level {level} is not below {path[level - 2]}; write {name_of(right)}"
      )
  return path


def name_of(path: Sequence[int]) -> str:
  """The name of a path: (7, 57) is '7.57'."""
  return ".".join(map(str, path))


def open_packed(run: SavedRun, tree: ClusterTree) -> PackedDataset | None:
  """The packed training text of a run; None where there is none.

  Raises:
    InputError: it is damaged, or was made with another tree.
  """
  if run.packed is None:
    return None
  dataset = PackedDataset(run.packed)
  require_same(f"the tree {run.tree}", tree.fingerprint, run.packed, dataset.manifest.tree_fingerprint)
  return dataset


def leaf_sizes(run: SavedRun, tree: ClusterTree) -> tuple[str, np.ndarray]:
  """How much text each leaf has.

  Returns:
    The unit and int [leaves]: sequences of the packed training text, or where there is none the windows that were
    clustered.

  Raises:
    InputError: there is neither.
  """
  if (dataset := open_packed(run, tree)) is not None:
    sizes = np.zeros(tree.num_leaves, np.int64)
    for leaf, count in dataset.manifest.sequences_per_leaf.items():
      sizes[leaf] = count
    return "sequences", sizes
  parts = _embedding_parts(run.tree)
  leaves = [tree.assign(files.read_arrays(part)["embeddings"]) for part in parts]
  return "windows", np.bincount(np.concatenate(leaves), minlength=tree.num_leaves)


def describe_tree(run: SavedRun, tree: ClusterTree) -> dict[str, Any]:
  """Levels, sizes and balance.

  Returns:
    `depth`, `branching`, `leaves`, `fingerprint`, `unit` (what is counted), and as `levels` what `level_report` gives
    for each level, with `balance`: the clusters that would hold as much at equal sizes (the exponential of the entropy
    of the shares), over all clusters of the level; 1 is perfect balance.
  """
  unit, sizes = leaf_sizes(run, tree)
  levels = []
  for level in range(1, tree.depth + 1):
    of_level = sizes.reshape(tree.branching**level, -1).sum(axis=1)
    shares = of_level[of_level > 0] / of_level.sum()
    balance = float(np.exp(-(shares * np.log(shares)).sum()) / len(of_level))
    levels.append({"level": level, **level_report(of_level, tree.branching), "balance": balance})
  about = {"depth": tree.depth, "branching": tree.branching, "leaves": tree.num_leaves, "fingerprint": tree.fingerprint}
  return {**about, "unit": unit, "levels": levels}


def describe_cluster(run: SavedRun, tree: ClusterTree, path: Sequence[int]) -> dict[str, Any]:
  """What is in a cluster and in those above it, and how large their blocks are.

  Returns:
    `path`, `unit`, and as `levels` per cluster of the path `level`, `cluster`, `size` (in units), `terms`, `titles`
    and, where there is a checkpoint, `norm` (L2, of the cluster's block), `mean_norm` (over all clusters of the level)
    and `generic_norm` (of the generic memory's block).
  """
  unit, sizes = leaf_sizes(run, tree)
  texts, titles, leaf = _documents(run, tree, path)
  norms = _norms(run, path)
  levels = []
  for topic in topics.path_topics(tree, path, texts, titles, leaf):
    width = tree.branching ** (tree.depth - topic.level)
    size = int(sizes[topic.cluster * width : (topic.cluster + 1) * width].sum())
    about = {"level": topic.level, "cluster": topic.cluster, "size": size}
    levels.append(about | {"terms": topic.terms, "titles": topic.titles} | norms.get(topic.level, {}))
  return {"path": name_of(path), "unit": unit, "levels": levels}


def describe_route(retriever: Retriever, text: str) -> dict[str, Any]:
  """Where a text goes, and how sure that is.

  Returns:
    `path`; as `levels` per level `level`, `cluster`, `distance` (L2, between the text's embedding and the centroid),
    `runners_up` (`cluster` and `distance` of the nearest siblings) and `margin`; `other_leaf`, the nearest leaf but the
    chosen one, wherever it is in the tree, with `path` and `distance`; and `margin`, of the leaf. A margin is
    1 - distance / distance of the nearest other: 0 is a tie, 1 is certain. That of the leaf is below 0 where the
    descent has missed a nearer leaf.
  """
  tree, embedding = retriever.tree, retriever.encoder.encode([text])
  leaf = int(tree.assign(embedding)[0])
  path = tree.ancestors(leaf).tolist()
  levels: list[dict[str, Any]] = []
  for level, cluster in enumerate(path, start=1):
    first = cluster // tree.branching * tree.branching
    siblings = [number for number in range(first, first + tree.branching) if number != cluster]
    distances = _distances(embedding[0], tree.centroids[level - 1])
    nearest = sorted(siblings, key=lambda number: distances[number])[:_RUNNERS_UP]
    levels.append(
      {
        "level": level,
        "cluster": cluster,
        "distance": float(distances[cluster]),
        "runners_up": [{"cluster": number, "distance": float(distances[number])} for number in nearest],
        "margin": _margin(distances[cluster], distances[nearest[0]]),
      }
    )
  distances = _distances(embedding[0], tree.centroids[-1])
  other = int(np.where(np.arange(tree.num_leaves) == leaf, np.inf, distances).argmin())
  found = {"path": name_of(tree.ancestors(other).tolist()), "distance": float(distances[other])}
  margin = _margin(distances[leaf], distances[other])
  return {"text": text, "path": name_of(path), "levels": levels, "other_leaf": found, "margin": margin}


def token_budget(run: SavedRun, tree: ClusterTree) -> dict[str, Any]:
  """How the tokens of the packed training text are spread over the leaves, and what each block is trained on.

  Returns:
    `dataset`, `sequences`, `tokens` (without padding), `counted` (whether tokens were counted one by one; otherwise
    every sequence is taken to have the mean number), `leaf_tokens` (a number per leaf), and as `levels` per level
    `clusters`, `min`, `median`, `mean` and `max` of the tokens below its clusters, `empty` and `starved`: how many have
    none, and fewer than a tenth of the mean. Where the configuration has a training with a bank also `passes` over the
    text and `own_share` (of sequences that train their own path, not the generic memory), and per level `block_params`
    and `trained_tokens_median`, the tokens that the median block sees in the whole training.

  Raises:
    InputError: there is no packed training text.
  """
  dataset = open_packed(run, tree)
  if dataset is None:
    raise InputError(f"--token_budget: {run.directory} has no packed training text; run prepare, or train on one")
  memory = None if run.training is None else run.training.model.memory
  part = None if memory is None else memory.part
  numbers = np.arange(len(dataset))
  if isinstance(part, int):
    numbers = below_cluster(dataset, part, tree.branching)
  leaves, counted = dataset.leaves()[numbers], len(numbers) <= _MOST_READ
  tokens = np.full(len(numbers), dataset.manifest.num_tokens / max(len(dataset), 1))
  if counted:
    chunks = [numbers[start : start + _CHUNK] for start in range(0, len(numbers), _CHUNK)]
    tokens = np.concatenate([np.zeros(0), *(np.count_nonzero(dataset.read(c)[2], axis=1) for c in chunks)])
  per_leaf = np.bincount(leaves, weights=tokens, minlength=tree.num_leaves)
  found: dict[str, Any] = {"dataset": dataset.directory, "sequences": len(numbers), "tokens": round(tokens.sum())}
  found["counted"] = counted
  passes = own_share = 0.0
  if run.training is not None and memory is not None:
    passes = run.training.steps * run.training.batch_size / max(len(numbers), 1)
    own_share = 0.0 if part == "generic" else 1 - run.training.objective.generic_probability
    found |= {"passes": passes, "own_share": own_share}
  found["levels"] = []
  for level in range(1, tree.depth + 1):
    spread = per_leaf.reshape(tree.branching**level, -1).sum(axis=1)
    if isinstance(part, int):
      width = tree.branching ** (level - 1)
      spread = spread[part * width : (part + 1) * width]
    about: dict[str, Any] = {"level": level, "clusters": len(spread)}
    about |= {name: float(getattr(np, name)(spread)) for name in ("min", "median", "mean", "max")}
    about |= {"empty": int((spread == 0).sum()), "starved": int((spread < _STARVED * spread.mean()).sum())}
    if run.training is not None and memory is not None and level in memory.levels:
      about["block_params"] = run.training.model.block_params(level)
      about["trained_tokens_median"] = about["median"] * passes * own_share
    found["levels"].append(about)
  return found | {"leaf_tokens": per_leaf.round().astype(int).tolist()}


def clustered_documents(
  tree_directory: str, source: Source, tree: ClusterTree
) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
  """The documents of a corpus, where `cluster` has kept the embeddings of their first windows.

  Returns:
    n titles (the field `title`, or else the first words), n texts (their first 2,000 characters), embeddings float32
    [n, E] and leaves int32 [n].

  Raises:
    InputError: there are no such embeddings.
  """
  titles: list[str] = []
  texts: list[str] = []
  embeddings = []
  parts = dict(enumerate(source.parts()))
  for path in _embedding_parts(tree_directory):
    number = int(os.path.splitext(path)[0].rpartition("-")[2])
    arrays = files.read_arrays(path)
    row = {int(key): i for i, key in enumerate(arrays["keys"])}
    records = list(source.read(parts[number]))  # malformed ones have numbers, too
    keys = window_keys(number, np.arange(len(records))).tolist()
    found = [(r, row[key]) for r, key in zip(records, keys) if key in row and not isinstance(r, BadRecord)]
    titles += [record.get("title") or topics.title(record["text"]) for record, _ in found]
    texts += [record["text"][:2000] for record, _ in found]
    embeddings.append(arrays["embeddings"][[i for _, i in found]])
  together = np.concatenate(embeddings)
  return titles, texts, together, tree.assign(together)


def _documents(run: SavedRun, tree: ClusterTree, path: Sequence[int]) -> tuple[list[str], list[str], np.ndarray]:
  """Texts, titles and leaves: a sample of the packed training text, or where there is none the clustered corpus."""
  if (dataset := open_packed(run, tree)) is not None and run.tokenizer is not None:
    tokenizer = load_tokenizer(run.tokenizer)
    fingerprint = dataset.manifest.tokenizer_fingerprint
    require_same(f"the tokenizer {run.tokenizer}", tokenizer.fingerprint, dataset.directory, fingerprint)
    texts, leaf = topics.packed_documents(dataset, tokenizer, tree, path)
    return texts, list(map(topics.title, texts)), leaf
  if run.corpus is None:
    raise InputError(f"--leaf: {run.directory} has neither packed text with its tokenizer nor a corpus; run prepare")
  titles, texts, _, leaf = clustered_documents(run.tree, run.corpus, tree)
  return texts, titles, leaf


def _norms(run: SavedRun, path: Sequence[int]) -> dict[int, dict[str, float]]:
  """By level, the norms of the blocks on a path; nothing where there is no checkpoint, or the level has no table."""
  if run.model is None:
    return {}
  model = load_model(run.model, make_mesh())
  if model.memory is None:
    return {}
  found = {}
  for level in model.memory.levels:
    table = model.params["bank"][table_name(level)]
    norms = np.sqrt(np.asarray(jnp.einsum("rp,rp->r", table, table, preferred_element_type=jnp.float32)))
    *clusters, generic = norms.tolist()
    place = path[level - 1] - model.memory.first_cluster(level) if level <= len(path) else -1
    if 0 <= place < len(clusters):
      found[level] = {"norm": clusters[place], "mean_norm": float(np.mean(clusters)), "generic_norm": generic}
  return found


def _embedding_parts(tree_directory: str) -> list[str]:
  directory = files.as_path(tree_directory) / "embeddings"
  found = list(map(str, files.matching(directory, "part-*.npz")))
  if not found:
    raise InputError(f"{directory}: no packed text in the run and no embeddings there; run cluster or prepare first")
  return found


def _distances(embedding: np.ndarray, centroids: np.ndarray) -> np.ndarray:
  """L2 distances of one embedding [E] to centroids [n, E]: float64 [n]."""
  return np.linalg.norm(centroids.astype(np.float64) - embedding.astype(np.float64), axis=1)


def _margin(distance: float, other: float) -> float:
  return float(1 - distance / other) if other else 0.0
