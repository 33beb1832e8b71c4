r"""Learns the cluster tree of a corpus, and the tokenizer when there is none yet.

  python -m hiermem_jax.cluster --gin_file=gin/runs/quickstart.gin --run_dir=runs/quickstart

Writes RUN_DIR/tokenizer.model and RUN_DIR/tree/ (encoder, embeddings, tree, and report.json with the sizes of all
clusters). The work is done by Beam pipelines: on all cores of this machine, or elsewhere with --runner and
--pipeline_option. Finished parts are kept, so the same command goes on after a crash.
"""

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refused flag answer at once
  from hiermem_jax import cli

  cli.main("cluster")

import os

from hiermem_jax import console, run_identity
from hiermem_jax.data.corpus.config import ReadConfig
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.sources import Source, resolve_data_dir
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.build import TreeConfig
from hiermem_jax.retrieval.encoders import EncoderConfig, LsaEncoder


def cluster(
  *,
  run_dir: str,
  corpus: Source,
  encoder: EncoderConfig = LsaEncoder(),  # noqa: B008 (frozen)
  tokenizer: str = "tokenizer.model",
  tokenizer_vocab_size: int | None = None,
  directory: str = "tree",
  tree: TreeConfig = TreeConfig(),  # noqa: B008 (frozen)
  read: ReadConfig = ReadConfig(),  # noqa: B008 (frozen)
  sample: float = 1.0,
  beam: BeamConfig = BeamConfig(),  # noqa: B008 (frozen)
) -> None:
  """Cuts the corpus into windows, embeds them and builds the tree (paper, Section 2.1 and Appendix C).

  Args:
    run_dir: directory that relative output paths start from.
    corpus: documents with the field `text`.
    encoder: the sentence encoder. `LsaEncoder` is fitted to the corpus, `SentenceTransformer` has pretrained weights.
    tokenizer: path of the tokenizer. If there is no such file, a tokenizer is trained on the corpus and written there.
    tokenizer_vocab_size: number of pieces of a tokenizer to be trained, which one that exists must have, too. None
      means that the tokenizer must exist.
    directory: where the encoder and the tree go.
    tree: shape of the tree and settings of k-means.
    read: how documents are read.
    sample: share of the documents that are embedded and clustered, above 0. `prepare` embeds the others.
    beam: where the pipelines run.

  Raises:
    InputError: the corpus is empty or malformed, has fewer windows than the tree has leaves, or there is no tokenizer
      or one of another size; or the directory holds the tree of other inputs.
  """
  from hiermem_jax.data.corpus.cluster import cluster_corpus
  from hiermem_jax.data.corpus.reading import good_texts, sample_texts
  from hiermem_jax.data.text.tokenizer import load_tokenizer, train_sentencepiece
  from hiermem_jax.retrieval.encoders import load_encoder

  if not 0 < sample <= 1:
    raise InputError(f"cluster.sample = {sample}: give a share of the documents, above 0 and at most 1")
  corpus = resolve_data_dir(corpus, run_dir)
  tokenizer = os.path.join(run_dir, tokenizer)
  directory = os.path.join(run_dir, directory)
  if not os.path.exists(tokenizer):
    if tokenizer_vocab_size is None:
      raise InputError(
        f"{tokenizer}: no such tokenizer; bind cluster.tokenizer, or cluster.tokenizer_vocab_size to train one"
      )
    console.say("training a tokenizer of %d pieces", tokenizer_vocab_size)
    train_sentencepiece(good_texts(corpus), tokenizer, vocab_size=tokenizer_vocab_size)
  loaded_tokenizer = load_tokenizer(tokenizer)
  if tokenizer_vocab_size not in (None, loaded_tokenizer.vocab_size):
    raise InputError(
      f"{tokenizer}: has {loaded_tokenizer.vocab_size} ids, cluster.tokenizer_vocab_size is {tokenizer_vocab_size};"
      " delete the file to train another, or bind None to keep it"
    )
  fitted_path = os.path.join(directory, "encoder")
  if os.path.exists(os.path.join(fitted_path, "encoder.json")):
    fitted = load_encoder(fitted_path)
    if not run_identity.same(fitted.config, encoder):
      raise InputError(
        f"{fitted_path} holds {fitted.config}, asked for is {encoder}: give another directory or delete this one"
      )
  else:
    texts = sample_texts(corpus, loaded_tokenizer, window_tokens=read.window_tokens, sample=sample)
    fitted = encoder.fit(texts)
    fitted.save(fitted_path)
  built = cluster_corpus(
    source=corpus,
    tokenizer=loaded_tokenizer,
    encoder=fitted,
    directory=directory,
    tree=tree,
    read=read,
    sample=sample,
    beam_config=beam,
  )
  console.say("%s: %d leaves, fingerprint %s", directory, built.num_leaves, built.fingerprint)
