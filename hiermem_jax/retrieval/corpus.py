"""Clusters one corpus, and routes texts to leaves afterwards.

On disk a retriever is a directory: `encoder/` (see encoder.py), `tree.npz` and `tree.json`.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from absl import logging

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.encoder import Encoder, EncoderConfig, LsaEncoder, load_encoder
from hiermem_jax.retrieval.tree import ClusterTree, build_tree


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Retriever:
  """An encoder and the tree over its embeddings.

  Raises:
    InputError: the tree was built on another encoder's embeddings.
  """

  encoder: Encoder
  tree: ClusterTree

  def __post_init__(self):
    if self.tree.encoder_fingerprint != self.encoder.fingerprint:
      raise InputError(
        f"the tree was built with encoder {self.tree.encoder_fingerprint} but the encoder given is"
        f" {self.encoder.fingerprint}: use the pair that one run of the cluster verb wrote"
      )

  def route(self, texts: Sequence[str]) -> np.ndarray:
    """Finds the leaf of each text by greedy descent: int32 [len(texts)]."""
    return self.tree.assign(self.encoder.encode(texts))


def cluster_texts(
  texts: Sequence[str],
  *,
  encoder: EncoderConfig = LsaEncoder(),  # noqa: B008 (frozen)
  branching: int = 16,
  depth: int = 4,
  steps: int = 20,
  batch_size: int = 6400,
  balance: float | None = 1.5,
  max_examples: int | None = None,
  seed: int = 0,
) -> tuple[Encoder, ClusterTree]:
  """Fits the encoder on texts, embeds them and builds their tree.

  Args:
    texts: one string per document window.
    encoder: settings of the encoder to fit.
    branching: see `build_tree`, as are the next four.
    depth: levels of the tree.
    steps: EM steps per node.
    batch_size: examples per EM step.
    balance: size limit of a cluster during EM, in multiples of the mean; None for none.
    max_examples: fit on so many texts drawn at random; None for all. The paper's tree
      uses steps * batch_size = 128,000 per node.
    seed: of the draw and the tree; the encoder has its own.

  Returns:
    The fitted encoder and the tree.

  Raises:
    InputError: see `build_tree` and the encoder's `fit`.
  """
  num_examples = len(texts) if max_examples is None else min(len(texts), max_examples)
  if num_examples < branching**depth:  # before the slow part; build_tree has the same rule
    raise InputError(
      f"{num_examples} documents (of {len(texts)}, max_examples={max_examples}) cannot fill the"
      f" {branching**depth} leaves of branching {branching}, depth {depth}: lower depth or branching,"
      " or give more documents"
    )
  if num_examples < len(texts):
    chosen = np.random.default_rng(seed).choice(len(texts), num_examples, replace=False)
    texts = [texts[i] for i in np.sort(chosen)]
  logging.info("fitting the encoder on %d texts", len(texts))
  fitted = encoder.fit(texts)
  logging.info("embedding %d texts", len(texts))
  embeddings = fitted.encode(texts)
  tree = build_tree(
    embeddings,
    branching=branching,
    depth=depth,
    steps=steps,
    batch_size=batch_size,
    balance=balance,
    encoder_fingerprint=fitted.fingerprint,
    seed=seed,
  )
  return fitted, tree


def save_retriever(directory: str, encoder: Encoder, tree: ClusterTree) -> None:
  """Writes both under `directory`, the tree last.

  Raises:
    InputError: the tree was built on another encoder's embeddings.
  """
  Retriever(encoder=encoder, tree=tree)
  encoder.save(os.path.join(directory, "encoder"))
  tree.save(directory)


def load_retriever(directory: str) -> Retriever:
  """Loads what `save_retriever` wrote.

  Raises:
    InputError: something is missing or damaged, or encoder and tree do not belong together.
  """
  tree = ClusterTree.load(directory)
  return Retriever(encoder=load_encoder(os.path.join(directory, "encoder")), tree=tree)
