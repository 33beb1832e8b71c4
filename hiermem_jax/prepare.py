r"""Writes the packed dataset: windows routed to leaves, tokenised, grouped by leaf, packed, shuffled.

  python -m hiermem_jax.prepare --gin_file=gin/runs/quickstart.gin --run_dir=runs/quickstart

Needs what `cluster` wrote. Writes RUN_DIR/packed/train and RUN_DIR/packed/validation; a directory that holds the result
of the same inputs is kept.
"""

import os

from hiermem_jax.data.sources import Source, under


def prepare(
  *,
  run_dir: str,
  train: Source,
  validation: Source | None = None,
  tokenizer: str = "tokenizer.model",
  tree: str = "tree",
  directory: str = "packed",
  length: int = 2048,
  window_tokens: int = 2048,
  num_shards: int = 8,
  seed: int = 0,
  shuffle_leaves: bool = False,
) -> None:
  """Prepares the splits of a corpus (paper, Appendix A.2).

  Args:
    run_dir: where relative paths start.
    train: documents to train on.
    validation: held-out documents.
    tokenizer: path of the tokenizer.
    tree: directory of the tree and its encoder.
    directory: where the splits go.
    length: positions of a sequence.
    window_tokens: greatest size of a window.
    num_shards: files per split.
    seed: of all shuffles.
    shuffle_leaves: control experiment: deal the leaves out to the windows at random.

  Raises:
    InputError: an artefact is missing, a corpus is empty or malformed, or the directory holds something else.
  """
  from hiermem_jax.data.prepare import prepare as prepare_split
  from hiermem_jax.data.tokenizer import load_tokenizer
  from hiermem_jax.retrieval.corpus import load_retriever

  loaded_tokenizer = load_tokenizer(os.path.join(run_dir, tokenizer))
  retriever = load_retriever(os.path.join(run_dir, tree))
  for split, source in (("train", train), ("validation", validation)):
    if source is not None:
      prepare_split(
        source=under(source, run_dir),
        tokenizer=loaded_tokenizer,
        retriever=retriever,
        directory=os.path.join(run_dir, directory, split),
        length=length,
        window_tokens=window_tokens,
        seed=seed,
        num_shards=num_shards,
        shuffle_leaves=shuffle_leaves,
      )


if __name__ == "__main__":
  from hiermem_jax import cli

  cli.main("prepare")
