r"""Trains a SentencePiece tokenizer on a small corpus.

  python -m hiermem_jax.train_tokenizer --run_dir=runs/wiki --gin_bindings="train_tokenizer.vocab_size = 32768" \
    --gin_bindings="train_tokenizer.corpus = @JsonlSource()" \
    --gin_bindings="JsonlSource.pattern = '/data/wiki/*.jsonl.gz'"

Writes RUN_DIR/tokenizer.model; one that is there already is kept. `cluster` does the same on its way when it is given a
vocabulary size. For a large corpus take a tokenizer that exists, such as GPT-NeoX's tokenizer.json.
"""

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refused flag answer at once
  from hiermem_jax import cli

  cli.main("train_tokenizer")

import os

from hiermem_jax import console
from hiermem_jax.data.sources import Source, resolve_data_dir


def train_tokenizer(
  *,
  run_dir: str,
  corpus: Source,
  vocab_size: int,
  tokenizer: str = "tokenizer.model",
  max_characters: int = 50_000_000,
) -> None:
  """Trains on the beginning of the corpus (see `train_sentencepiece`); malformed records are passed over.

  Args:
    run_dir: where relative paths start.
    corpus: documents with the field `text`, in random order.
    vocab_size: number of ids.
    tokenizer: path of the file to write, ending in .model.
    max_characters: bound on the text that is read, which is held in memory.

  Raises:
    InputError: no text, or the vocabulary is too large or too small for it.
  """
  from hiermem_jax.data.corpus.reading import good_texts
  from hiermem_jax.data.text.tokenizer import load_tokenizer, train_sentencepiece

  path = os.path.join(run_dir, tokenizer)
  if os.path.exists(path):
    console.say("%s: is there already (%d ids): keeping it", path, load_tokenizer(path).vocab_size)
    return
  texts = good_texts(resolve_data_dir(corpus, run_dir))
  trained = train_sentencepiece(texts, path, vocab_size=vocab_size, max_characters=max_characters)
  console.say("%s: %d ids, fingerprint %s", path, trained.vocab_size, trained.fingerprint)
