r"""Learns the cluster tree of a corpus, and the tokenizer when there is none yet.

  python -m hiermem_jax.cluster --gin_file=gin/runs/quickstart.gin --run_dir=runs/quickstart

Writes RUN_DIR/tokenizer.model and RUN_DIR/tree/ (tree and encoder). What is there already is kept.
"""

import os

from absl import logging

from hiermem_jax.data.sources import Source, under
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.encoder import LsaEncoder


def cluster(
  *,
  run_dir: str,
  corpus: Source,
  encoder: LsaEncoder = LsaEncoder(),  # noqa: B008 (frozen)
  tokenizer: str = "tokenizer.model",
  tokenizer_vocab_size: int | None = None,
  directory: str = "tree",
  branching: int = 16,
  depth: int = 4,
  steps: int = 20,
  batch_size: int = 6400,
  balance: float | None = 1.5,
  window_tokens: int = 2048,
  max_windows: int = 1_000_000,
  seed: int = 0,
) -> None:
  """Cuts the corpus into windows, embeds a sample of them and grows the tree (paper, Section 2.1 and Appendix C).

  Args:
    run_dir: where relative output paths start.
    corpus: documents with the field `text`.
    encoder: settings of the encoder, which is fitted on the sample.
    tokenizer: path of the tokenizer; trained there on the corpus when it does not exist.
    tokenizer_vocab_size: pieces of a tokenizer to be trained; None means that the tokenizer must exist.
    directory: where the tree and the encoder go.
    branching: children of a node.
    depth: levels of the tree.
    steps: EM steps per node.
    batch_size: examples per EM step.
    balance: largest share of a cluster during EM, in multiples of the mean; None for no limit.
    window_tokens: greatest size of a window, the unit that is clustered.
    max_windows: windows in the sample.
    seed: of the sample and of k-means.

  Raises:
    InputError: the corpus is empty or malformed, has fewer windows than leaves, or there is no tokenizer to use.
  """
  from hiermem_jax.data.prepare import sample_windows
  from hiermem_jax.data.tokenizer import load_tokenizer, train_sentencepiece
  from hiermem_jax.retrieval.corpus import cluster_texts, load_retriever, save_retriever

  corpus = under(corpus, run_dir)
  tokenizer = os.path.join(run_dir, tokenizer)
  directory = os.path.join(run_dir, directory)
  if os.path.exists(os.path.join(directory, "tree.json")) and os.path.exists(tokenizer):
    leaves = load_retriever(directory).tree.num_leaves
    logging.info("%s holds a tree already (%d leaves): reusing it", directory, leaves)
    return
  if not os.path.exists(tokenizer):
    if tokenizer_vocab_size is None:
      raise InputError(
        f"{tokenizer}: no such tokenizer; bind cluster.tokenizer, or cluster.tokenizer_vocab_size to train one"
      )
    logging.info("training a tokenizer of %d pieces", tokenizer_vocab_size)
    train_sentencepiece((r["text"] for r in corpus.records()), tokenizer, vocab_size=tokenizer_vocab_size)
  texts = sample_windows(
    corpus, load_tokenizer(tokenizer), window_tokens=window_tokens, max_windows=max_windows, seed=seed
  )
  fitted, tree = cluster_texts(
    texts,
    encoder=encoder,
    branching=branching,
    depth=depth,
    steps=steps,
    batch_size=batch_size,
    balance=balance,
    seed=seed,
  )
  save_retriever(directory, fitted, tree)
  logging.info("%s: %d leaves, fingerprint %s", directory, tree.num_leaves, tree.fingerprint)


if __name__ == "__main__":
  from hiermem_jax import cli

  cli.main("cluster")
