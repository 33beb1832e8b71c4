"""What is in a cluster of the tree: the words that stand out in its documents, and titles of some of them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.retrieval.tree import ClusterTree

_CONTINUED = "… "
_TITLE = 60  # characters of a document's beginning that serve as its title


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topic:
  """A cluster.

  Attributes:
    level: from 1, the root's children.
    cluster: number on its level.
    documents: how many of the documents that were looked at are in it.
    terms: words that stand out in these, the most telling first.
    titles: of some of them.
  """

  level: int
  cluster: int
  documents: int
  terms: tuple[str, ...]
  titles: tuple[str, ...]


def top_terms(texts: Sequence[str], groups: np.ndarray, wanted: Sequence[int], number: int = 8) -> list[list[str]]:
  """Words whose share of the documents in a group stands out most against all documents, by count * log ratio.

  Args:
    texts: n documents.
    groups: int [n], the group of each.
    wanted: groups to describe.
    number: of words.

  Returns:
    Per wanted group at most `number` words, the most telling first; none for a group without documents. A word must be
    in five documents, of a small collection in one in two hundred.
  """
  from sklearn.feature_extraction.text import CountVectorizer

  counter = CountVectorizer(
    binary=True,
    stop_words="english",
    min_df=min(5, 1 + len(texts) // 200),
    token_pattern=r"(?u)\b[^\W\d]{3,}\b",
  )
  present = counter.fit_transform(texts)
  words = counter.get_feature_names_out()
  everywhere = np.asarray(present.mean(axis=0)).ravel()
  result = []
  for group in wanted:
    inside = present[groups == group]
    count = np.asarray(inside.sum(axis=0)).ravel()
    score = count * np.log((count + 0.5) / (inside.shape[0] + 1) / everywhere)
    result.append([str(words[i]) for i in np.argsort(-score)[:number] if score[i] > 0])
  return result


def path_topics(
  tree: ClusterTree, path: Sequence[int], texts: Sequence[str], titles: Sequence[str], leaf: np.ndarray, number: int = 6
) -> list[Topic]:
  """The topic of each cluster on a path.

  Args:
    tree: the tree.
    path: cluster numbers, level 1 first.
    texts: n documents.
    titles: of the documents.
    leaf: int32 [n], their leaves.
    number: of titles per cluster; those of texts that begin in the middle of a sentence are shown last.
  """
  ancestors, topics = tree.ancestors(leaf), []
  for level, cluster in enumerate(path, start=1):
    groups = ancestors[:, level - 1]
    (terms,) = top_terms(texts, groups, [cluster])
    members = np.flatnonzero(groups == cluster).tolist()
    inside = sorted((titles[i] for i in members), key=lambda shown: shown.startswith(_CONTINUED))
    shown = tuple(inside[:number])
    topics.append(Topic(level=level, cluster=cluster, documents=len(members), terms=tuple(terms), titles=shown))
  return topics


def title(text: str) -> str:
  """The beginning of a text's first line; behind an ellipsis where it is in the middle of a sentence."""
  line = next(iter(text.strip().splitlines()), "").strip()
  if line and not (line[0].isupper() or line[0].isdigit()):
    line = _CONTINUED + line
  return line if len(line) <= _TITLE else line[:_TITLE].rsplit(" ", 1)[0] + " …"


def packed_documents(
  dataset: PackedDataset,
  tokenizer: Tokenizer,
  tree: ClusterTree,
  path: Sequence[int],
  number: int = 1000,
  seed: int = 0,
) -> tuple[list[str], np.ndarray]:
  """Documents of a packed dataset: a sample of all, and a sample of each cluster on a path.

  Args:
    dataset: of the tree's leaves.
    tokenizer: of the dataset.
    tree: the tree.
    path: cluster numbers, level 1 first.
    number: how many sequences are read at most, of all and of each cluster.
    seed: of the samples.

  Returns:
    n texts and their leaves, int32 [n].
  """
  rng = np.random.default_rng(seed)
  ancestors = tree.ancestors(dataset.leaves())
  groups = [np.arange(len(dataset)), *(np.flatnonzero(ancestors[:, k] == c) for k, c in enumerate(path))]
  chosen = [rng.choice(group, min(number, len(group)), replace=False) for group in groups]
  leaves, targets, segments = dataset.read(np.unique(np.concatenate(chosen)))
  texts: list[str] = []
  leaf: list[int] = []
  for sequence, ids, parts in zip(leaves.tolist(), targets, segments):
    found = [tokenizer.decode(ids[parts == part]) for part in range(1, int(parts.max()) + 1)]
    texts += [text for text in found if text.strip()]
    leaf += [sequence] * (len(texts) - len(leaf))
  return texts, np.array(leaf, np.int32)
