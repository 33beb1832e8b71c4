r"""Learns the cluster tree of a corpus, and the tokenizer when there is none yet.

  python -m hiermem_jax.cluster --gin_file=gin/runs/quickstart.gin --run_dir=runs/quickstart

Writes RUN_DIR/tokenizer.model and RUN_DIR/tree/ (encoder, embeddings, tree, report.json with the sizes of all
clusters). The work is a series of Beam pipelines, here on all cores, elsewhere with --runner and --pipeline_option;
what is finished is kept, so the same command goes on after a crash.
"""

import os

from absl import logging

from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.sources import Source, under
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.encoders import LsaEncoder, SentenceTransformer


def cluster(
  *,
  run_dir: str,
  corpus: Source,
  encoder: LsaEncoder | SentenceTransformer = LsaEncoder(),  # noqa: B008 (frozen)
  tokenizer: str = "tokenizer.model",
  tokenizer_vocab_size: int | None = None,
  directory: str = "tree",
  branching: int = 16,
  depth: int = 4,
  steps: int = 20,
  batch_size: int = 6400,
  balance: float | None = 1.5,
  window_tokens: int = 2048,
  sample: float = 1.0,
  max_bad_share: float = 0.001,
  beam: BeamConfig = BeamConfig(),  # noqa: B008 (frozen)
  seed: int = 0,
) -> None:
  """Cuts the corpus into windows, embeds them and grows the tree (paper, Section 2.1 and Appendix C).

  Args:
    run_dir: where relative output paths start.
    corpus: documents with the field `text`.
    encoder: the sentence encoder; `LsaEncoder` is fitted on the corpus, `SentenceTransformer` has weights.
    tokenizer: path of the tokenizer; trained there on the corpus when it does not exist.
    tokenizer_vocab_size: pieces of a tokenizer to be trained; None means that the tokenizer must exist.
    directory: where the tree and the encoder go.
    branching: children of a node.
    depth: levels of the tree.
    steps: EM steps per node.
    batch_size: examples per EM step.
    balance: largest share of a cluster during EM, in multiples of the mean; None for no limit.
    window_tokens: greatest size of a window, the unit that is clustered.
    sample: share of the documents that are embedded and clustered. `prepare` embeds the rest.
    max_bad_share: share of malformed records above which the run fails.
    beam: where the pipelines run.
    seed: of k-means.

  Raises:
    InputError: the corpus is empty or malformed, has fewer windows than leaves, or there is no tokenizer to use; or the
      directory holds the tree of other inputs.
  """
  from hiermem_jax.data.corpus.cluster import TreeConfig, cluster_corpus
  from hiermem_jax.data.corpus.reading import good_texts, sample_texts
  from hiermem_jax.data.text.tokenizer import load_tokenizer, train_sentencepiece
  from hiermem_jax.retrieval.encoders import load_encoder
  from hiermem_jax.retrieval.retriever import load_retriever

  if not 0 < sample <= 1:
    raise InputError(f"cluster.sample = {sample}: a share of the documents, above 0 and at most 1; bind another")
  tree = TreeConfig(branching=branching, depth=depth, steps=steps, batch_size=batch_size, balance=balance, seed=seed)
  corpus = under(corpus, run_dir)
  tokenizer = os.path.join(run_dir, tokenizer)
  directory = os.path.join(run_dir, directory)
  if os.path.exists(os.path.join(directory, "report.json")) and os.path.exists(tokenizer):
    leaves = load_retriever(directory).tree.num_leaves
    logging.info("%s holds a tree already (%d leaves): reusing it", directory, leaves)
    return
  if not os.path.exists(tokenizer):
    if tokenizer_vocab_size is None:
      raise InputError(
        f"{tokenizer}: no such tokenizer; bind cluster.tokenizer, or cluster.tokenizer_vocab_size to train one"
      )
    logging.info("training a tokenizer of %d pieces", tokenizer_vocab_size)
    train_sentencepiece(good_texts(corpus), tokenizer, vocab_size=tokenizer_vocab_size)
  loaded_tokenizer = load_tokenizer(tokenizer)
  fitted_path = os.path.join(directory, "encoder")
  if os.path.exists(os.path.join(fitted_path, "encoder.json")):
    fitted = load_encoder(fitted_path)
  else:
    fitted = encoder.fit(sample_texts(corpus, loaded_tokenizer, window_tokens=window_tokens, sample=sample))
    fitted.save(fitted_path)
  grown = cluster_corpus(
    source=corpus,
    tokenizer=loaded_tokenizer,
    encoder=fitted,
    tree=tree,
    directory=directory,
    window_tokens=window_tokens,
    sample=sample,
    max_bad_share=max_bad_share,
    runner=beam,
  )
  logging.info("%s: %d leaves, fingerprint %s", directory, grown.num_leaves, grown.fingerprint)


if __name__ == "__main__":
  from hiermem_jax import cli

  cli.main("cluster")
