"""How a cluster tree is learned: balanced k-means splits the root, then its children, level by level (Appendix C).

`split_node` is one node's k-means. It is a function of the set of the node's examples, so the tree can be built in
memory (`build_tree`) or by a pipeline of many workers (data/corpus/cluster.py), with the same result.
"""

import dataclasses
import time

import numpy as np
from absl import logging

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.kmeans import balanced_kmeans
from hiermem_jax.retrieval.tree import ClusterTree, nearest_children

_LOG_EVERY_SECONDS = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeConfig:
  """Shape of the cluster tree and settings of its k-means. The defaults are the paper's (Appendix C).

  Attributes:
    branching: children per node.
    depth: levels below the root, K. The tree has branching**depth leaves.
    steps: EM steps per node.
    batch_size: examples per EM step, all of them new until the node's examples run out.
    balance: largest size of a cluster within a batch, in multiples of the mean size; None for no limit. The paper's
      limit is 0.094 of the batch, which is 1.5 times the mean at branching 16.
    seed: of all random choices.

  Raises:
    InputError: a value is out of range.
  """

  branching: int = 16
  depth: int = 4
  steps: int = 20
  batch_size: int = 6400
  balance: float | None = 1.5
  seed: int = 0

  def __post_init__(self):
    least = {"branching": 2, "depth": 1, "steps": 1, "batch_size": self.branching, "balance": 1, "seed": 0}
    for name, smallest in least.items():
      value = getattr(self, name)
      if value is not None and value < smallest:
        raise InputError(f"TreeConfig.{name} = {value}: give at least {smallest}")

  @property
  def num_leaves(self) -> int:
    """Clusters of the deepest level."""
    return self.branching**self.depth

  def check_examples(self, count: int, what: str) -> None:
    """Raises InputError when there are fewer examples than leaves; `what` names the examples in the message."""
    if count < self.num_leaves:
      raise InputError(
        f"{count} {what} cannot fill the {self.num_leaves} leaves of a tree with branching {self.branching} and depth"
        f" {self.depth}: lower TreeConfig.depth or TreeConfig.branching, or give more documents"
      )


def build_tree(
  embeddings: np.ndarray, keys: np.ndarray | None = None, *, config: TreeConfig, encoder_fingerprint: str
) -> ClusterTree:
  """Builds the tree from the root to the leaves, in memory.

  On each level, `split_node` splits every node of the level above; then each example goes to the nearest child of its
  node. The number of nodes with fewer examples than `branching`, some of whose children stay empty, is logged.

  Args:
    embeddings: float32 or float16 [n, E], each of unit norm.
    keys: uint64 [n], see `split_node`. The default is a random permutation drawn from the config's seed.
    config: see `TreeConfig`.
    encoder_fingerprint: of the encoder that made the embeddings.

  Returns:
    The tree. It depends on the pairs of example and key, not on their order.

  Raises:
    InputError: there are fewer examples than leaves.
    ValueError: the keys are not as `split_node` needs them.
  """
  config.check_examples(len(embeddings), "documents")
  if keys is None:
    keys = np.random.default_rng(config.seed).permutation(len(embeddings)).astype(np.uint64)
  width = embeddings.shape[1]
  node = np.zeros(len(embeddings), np.int32)  # each example's node on the level above
  parents = np.zeros((1, width), np.float32)  # the root has no centroid, and needs none because it is not empty
  levels = []
  for level in range(1, config.depth + 1):
    started = time.monotonic()
    children = np.empty((len(parents), config.branching, width), np.float32)
    examples_of = _examples_by_node(node)
    for i, parent in enumerate(parents):
      chosen = examples_of.get(i, np.zeros(0, np.int64))
      children[i] = split_node(embeddings[chosen], keys[chosen], parent=parent, level=level, node=i, config=config)
      logging.log_every_n_seconds(
        logging.INFO, "level %d/%d: %d of %d nodes split", _LOG_EVERY_SECONDS, level, config.depth, i + 1, len(parents)
      )
    parents = children.reshape(-1, width)
    levels.append(parents)
    node = nearest_children(embeddings, node, parents, config.branching)
    report = level_report(np.bincount(node, minlength=len(parents)), config.branching)
    logging.info("level %d/%d in %.0f s: %s", level, config.depth, time.monotonic() - started, report)
  return ClusterTree(centroids=tuple(levels), branching=config.branching, encoder_fingerprint=encoder_fingerprint)


def split_node(
  embeddings: np.ndarray, keys: np.ndarray, *, parent: np.ndarray, level: int, node: int, config: TreeConfig
) -> np.ndarray:
  """Splits one node of the tree. The result depends on the set of its examples, not on their order.

  `balanced_kmeans` gets the `steps * batch_size` examples of smallest key, in the order of their keys. Its randomness
  comes from (seed, level, node) alone. A pipeline may therefore collect a node's examples in any order, and may leave
  out examples of larger keys.

  Args:
    embeddings: float32 or float16 [n, E], the examples that fall in the node.
    keys: uint64 [n], all different. They should be random numbers, because they decide which examples are used.
    parent: float32 [E], the node's own centroid. It is read only when there are no examples.
    level: of the children, 1 for the root's.
    node: number of the node on its own level.
    config: see `TreeConfig`.

  Returns:
    float32 [branching, E], the centroids of the children. If there are fewer examples than children, the examples are
    the first children, and the other children repeat the first one (or the parent, if there are no examples); they stay
    empty, because a tie goes to the first child.

  Raises:
    ValueError: the keys are not one uint64 per example, or two are equal.
  """
  if keys.dtype != np.uint64 or keys.shape != (len(embeddings),):
    raise ValueError(f"keys are {keys.dtype} {keys.shape} for {len(embeddings)} examples: give one uint64 for each")
  order = np.argsort(keys)[: config.steps * config.batch_size]
  if np.any(np.diff(keys[order]) == 0):
    raise ValueError(f"two examples of node {node} have the same key, so their order is not defined: make keys unique")
  examples = embeddings[order].astype(np.float32, copy=False)
  if len(examples) < config.branching:
    return _few_children(examples, parent, config.branching)
  return balanced_kmeans(
    examples,
    config.branching,
    steps=config.steps,
    batch_size=config.batch_size,
    balance=config.balance,
    seed=int(np.random.default_rng((config.seed, level, node)).integers(2**31)),
  )


def level_report(sizes: np.ndarray, branching: int) -> dict[str, int | float]:
  """Statistics of the sizes of one level's clusters, ready for JSON.

  Args:
    sizes: int [clusters], number of examples in each cluster of the level.
    branching: children per node.

  Returns:
    `clusters`, `empty`, `min`, `median`, `max`, `mean`, `largest_over_mean`, and `small_nodes`: the number of nodes of
    the level above with fewer examples than `branching`. Some children of such a node stay empty.
  """
  return {
    "clusters": len(sizes),
    "empty": int(np.count_nonzero(sizes == 0)),
    "min": int(sizes.min()),
    "median": float(np.median(sizes)),
    "max": int(sizes.max()),
    "mean": float(sizes.mean()),
    "largest_over_mean": float(sizes.max() / sizes.mean()),
    "small_nodes": int(np.count_nonzero(sizes.reshape(-1, branching).sum(axis=1) < branching)),
  }


def _few_children(examples: np.ndarray, parent: np.ndarray, branching: int) -> np.ndarray:
  """Children of a node with fewer examples than children, see `split_node`: float32 [branching, E]."""
  children = np.tile(examples[:1] if len(examples) else parent[None], (branching, 1))
  children[: len(examples)] = examples
  return children


def _examples_by_node(node: np.ndarray) -> dict[int, np.ndarray]:
  """Node -> the numbers of its examples, int [m], ascending; nodes without examples are left out."""
  order = np.argsort(node, kind="stable")
  nodes, starts = np.unique(node[order], return_index=True)
  return dict(zip(nodes.tolist(), np.split(order, starts[1:])))
