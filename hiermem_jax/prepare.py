r"""Writes the packed dataset: windows routed to leaves, tokenised, grouped by leaf, packed and shuffled.

  python -m hiermem_jax.prepare --gin_file=gin/runs/quickstart.gin --run_dir=runs/quickstart

Needs what `cluster` wrote. Writes RUN_DIR/packed/train and RUN_DIR/packed/validation. The work is done by Beam
pipelines: on all cores of this machine, or elsewhere with --runner and --pipeline_option. Finished parts are kept, so
the same command goes on after a crash; a directory that holds the result of the same inputs is left as it is.
"""

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refused flag answer at once
  from hiermem_jax import cli

  cli.main("prepare")

import os

from hiermem_jax.data.corpus.config import PackConfig, ReadConfig
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.sources import Source, resolve_data_dir


def prepare(
  *,
  run_dir: str,
  train: Source,
  validation: Source | None = None,
  tokenizer: str = "tokenizer.model",
  tree: str | None = "tree",
  directory: str = "packed",
  pack: PackConfig = PackConfig(),  # noqa: B008 (frozen)
  read: ReadConfig = ReadConfig(),  # noqa: B008 (frozen)
  beam: BeamConfig = BeamConfig(),  # noqa: B008 (frozen)
) -> None:
  """Prepares the splits of a corpus (paper, Appendix A.2).

  Args:
    run_dir: directory that relative paths start from.
    train: documents to train on.
    validation: held-out documents.
    tokenizer: path of the tokenizer.
    tree: directory of the tree and its encoder. None packs all documents together, for an anchor alone.
    directory: where the splits go.
    pack: how windows become sequences.
    read: how documents are read.
    beam: where the pipelines run.

  Raises:
    InputError: tokenizer or tree is missing, a corpus is empty or malformed, or the directory holds something else.
  """
  from hiermem_jax.data.corpus.prepare import prepare as prepare_split
  from hiermem_jax.data.text.tokenizer import load_tokenizer

  loaded_tokenizer = load_tokenizer(os.path.join(run_dir, tokenizer))
  for split, source in (("train", train), ("validation", validation)):
    if source is not None:
      prepare_split(
        source=resolve_data_dir(source, run_dir),
        tokenizer=loaded_tokenizer,
        tree=None if tree is None else os.path.join(run_dir, tree),
        directory=os.path.join(run_dir, directory, split),
        pack=pack,
        read=read,
        beam_config=beam,
      )
