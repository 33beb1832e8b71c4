"""The retriever: an encoder and a tree of its embeddings, which find the leaves of texts.

On disk it is a directory with `encoder/` (see encoders/), `tree.npz` and `tree.json`.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.encoders import Encoder, load_encoder
from hiermem_jax.retrieval.tree import ClusterTree


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Retriever:
  """An encoder and a tree of its embeddings.

  Attributes:
    encoder: texts -> embeddings.
    tree: embeddings -> leaves.

  Raises:
    InputError: the tree was built from the embeddings of another encoder.
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
    """The leaf of each text: int32 [len(texts)]."""
    return self.tree.assign(self.encoder.encode(texts))


def save_retriever(directory: str, encoder: Encoder, tree: ClusterTree) -> None:
  """Writes both under `directory`, the tree last.

  Raises:
    InputError: the tree was built from the embeddings of another encoder.
  """
  Retriever(encoder=encoder, tree=tree)
  encoder.save(os.path.join(directory, "encoder"))
  tree.save(directory)


def load_retriever(directory: str) -> Retriever:
  """Loads what `save_retriever` wrote.

  Raises:
    InputError: a file is missing or damaged, or encoder and tree do not belong together.
  """
  tree = ClusterTree.load(directory)
  return Retriever(encoder=load_encoder(os.path.join(directory, "encoder")), tree=tree)
