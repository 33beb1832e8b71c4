r"""Writes the packed dataset: windows routed to leaves, tokenised, grouped by leaf, packed, shuffled.

  python -m hiermem_jax.prepare --gin_file=gin/runs/quickstart.gin --run_dir=runs/quickstart

Needs what `cluster` wrote. Writes RUN_DIR/packed/train and RUN_DIR/packed/validation. The work is a series of Beam
pipelines, here on all cores, elsewhere with --runner and --pipeline_option; what is finished is kept, so the same
command goes on after a crash, and a directory that holds the result of the same inputs is left as it is.
"""

import os

from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.sources import Source, under


def prepare(
  *,
  run_dir: str,
  train: Source,
  validation: Source | None = None,
  tokenizer: str = "tokenizer.model",
  tree: str | None = "tree",
  directory: str = "packed",
  length: int = 2048,
  buckets: tuple[int, ...] = (),
  window_tokens: int = 2048,
  tails: str = "pad",
  num_shards: int = 8,
  max_bad_share: float = 0.001,
  beam: BeamConfig = BeamConfig(),  # noqa: B008 (frozen)
  seed: int = 0,
  shuffle_leaves: bool = False,
) -> None:
  """Prepares the splits of a corpus (paper, Appendix A.2).

  Args:
    run_dir: where relative paths start.
    train: documents to train on.
    validation: held-out documents.
    tokenizer: path of the tokenizer.
    tree: directory of the tree and its encoder; None packs all documents together, for an anchor alone.
    directory: where the splits go.
    length: positions of a sequence.
    buckets: lengths of the sequences for dataset decomposition (paper, Appendix A.1), instead of `length`; needs tree =
      None.
    window_tokens: greatest size of a window.
    tails: what becomes of a leaf's last, incomplete sequence: 'pad', 'drop', or 'mix' with its siblings' tails. With
      `buckets`, what becomes of the rest of a document below the shortest: 'pad' packs the rests, 'drop' leaves them
      out.
    num_shards: files per split.
    max_bad_share: share of malformed records above which the run fails.
    beam: where the pipelines run.
    seed: of all shuffles.
    shuffle_leaves: control experiment: deal the leaves out to the windows at random.

  Raises:
    InputError: an artefact is missing, a corpus is empty or malformed, or the directory holds something else.
  """
  from hiermem_jax.data.corpus.prepare import prepare as prepare_split
  from hiermem_jax.data.text.tokenizer import load_tokenizer

  loaded_tokenizer = load_tokenizer(os.path.join(run_dir, tokenizer))
  for split, source in (("train", train), ("validation", validation)):
    if source is not None:
      prepare_split(
        source=under(source, run_dir),
        tokenizer=loaded_tokenizer,
        tree=None if tree is None else os.path.join(run_dir, tree),
        directory=os.path.join(run_dir, directory, split),
        length=length,
        buckets=buckets,
        window_tokens=window_tokens,
        tails=tails,
        seed=seed,
        num_shards=num_shards,
        max_bad_share=max_bad_share,
        runner=beam,
        shuffle_leaves=shuffle_leaves,
      )


if __name__ == "__main__":
  from hiermem_jax import cli

  cli.main("prepare")
