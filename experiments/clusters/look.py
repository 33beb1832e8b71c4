r"""Draws a cluster tree of a corpus: leaves drawn at random, sizes by level, a map of the first level.

  python experiments/clusters/look.py --tree runs/clusters/tree --corpus "DIRECTORY/train-*.jsonl.gz" --out
  experiments/clusters

--tree is what the cluster verb wrote for the files of --corpus (JSON lines with `text`, and titles where there are
any). Writes leaves.md, sizes.png and map.png below --out. The verb `inspect` says the same of any one cluster.
"""

import argparse
import os

import matplotlib
import numpy as np

from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.evaluation.inspection import clustered_documents
from hiermem_jax.evaluation.topics import top_terms
from hiermem_jax.retrieval.tree import ClusterTree

matplotlib.use("agg")
import matplotlib.pyplot as plt

_TITLES, _MAP = 6, 6000


def write_leaves(path: str, tree: ClusterTree, titles: list[str], texts: list[str], leaves: np.ndarray, seed: int):
  """A table of ten random leaves that hold documents, and one of the first level."""
  rng = np.random.default_rng(seed)
  chosen = sorted(rng.choice(np.unique(leaves), 10, replace=False).tolist())
  first = tree.ancestors(leaves)[:, 0]
  with open(path, "w", encoding="utf-8") as file:
    for name, groups, wanted in (("leaf", leaves, chosen), ("level 1", first, sorted(set(first.tolist())))):
      file.write(f"| {name} | documents | top terms | titles |\n|---|---|---|---|\n")
      for group, terms in zip(wanted, top_terms(texts, groups, wanted)):
        members = np.flatnonzero(groups == group)
        shown = rng.choice(members, min(_TITLES, len(members)), replace=False)
        listed = "; ".join(titles[i] for i in shown)
        path_text = " ▸ ".join(map(str, tree.ancestors(group).tolist())) if groups is leaves else str(group)
        file.write(f"| {path_text} | {len(members)} | {', '.join(terms)} | {listed} |\n")
      file.write("\n")


def plot_sizes(path: str, tree: ClusterTree, leaves: np.ndarray):
  """Sizes of the clusters of each level, largest first, over their mean."""
  figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
  for level in range(1, tree.depth + 1):
    sizes = np.bincount(tree.ancestors(leaves)[:, level - 1], minlength=tree.branching**level)
    rank = (np.arange(len(sizes)) + 0.5) / len(sizes)
    axis.plot(rank, np.sort(sizes)[::-1] / sizes.mean(), label=f"level {level}: {len(sizes)} clusters")
  axis.axhline(1, color="grey", linewidth=0.8)
  axis.set(xlabel="rank of the cluster / number of clusters", ylabel="size / mean size", title="Sizes of the clusters")
  axis.legend()
  figure.savefig(path, dpi=120)


def plot_map(path: str, tree: ClusterTree, embeddings: np.ndarray, texts: list[str], leaves: np.ndarray, seed: int):
  """A t-SNE map of a sample of the documents, coloured by their cluster on the first level."""
  from sklearn.manifold import TSNE

  first = tree.ancestors(leaves)[:, 0]
  names = top_terms(texts, first, list(range(tree.branching)))
  sample = np.random.default_rng(seed).choice(len(leaves), min(_MAP, len(leaves)), replace=False)
  points = TSNE(init="pca", random_state=seed, metric="cosine").fit_transform(embeddings[sample])
  figure, axis = plt.subplots(figsize=(9, 7), layout="constrained")
  colours = plt.get_cmap("tab20")
  for cluster in range(tree.branching):
    inside = first[sample] == cluster
    label = f"{cluster}: {', '.join(names[cluster][:4])}"
    axis.scatter(*points[inside].T, s=3, color=colours(cluster % 20), label=label)
  axis.set(xticks=[], yticks=[], title="Documents by cluster of level 1 (t-SNE of the embeddings)")
  axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=4, fontsize=8)
  figure.savefig(path, dpi=120)


def main() -> None:
  """Reads, writes, draws."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tree", required=True)
  parser.add_argument("--corpus", required=True)
  parser.add_argument("--out", default="runs/clusters/look")
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  tree = ClusterTree.load(flags.tree)
  titles, texts, embeddings, leaves = clustered_documents(flags.tree, JsonlSource(pattern=flags.corpus), tree)
  os.makedirs(flags.out, exist_ok=True)
  write_leaves(os.path.join(flags.out, "leaves.md"), tree, titles, texts, leaves, flags.seed)
  plot_sizes(os.path.join(flags.out, "sizes.png"), tree, leaves)
  plot_map(os.path.join(flags.out, "map.png"), tree, embeddings, texts, leaves, flags.seed)


if __name__ == "__main__":
  main()
