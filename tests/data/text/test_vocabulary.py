"""Tokenizers as SeqIO vocabularies, against the libraries behind them and SeqIO's own vocabulary."""

import pickle

import numpy as np
import pytest
import tokenizers

seqio = pytest.importorskip("seqio")

from hiermem_jax.data.text.tokenizer import load_tokenizer, train_sentencepiece  # noqa: E402
from hiermem_jax.data.text.vocabulary import TokenizerVocabulary  # noqa: E402

TEXTS = ["the otter swims", "naïve  rivers\nflow", "日本", "<|endoftext|> is text", " leading", ""]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
  """A SentencePiece model, and a byte-level BPE whose id 0 is <|endoftext|>, as GPT-NeoX's is."""
  folder = tmp_path_factory.mktemp("tokenizers")
  train_sentencepiece(TEXTS * 5, str(folder / "t.model"), vocab_size=295)
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
  bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  special = ["<|endoftext|>", "<|padding|>"]
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=280, special_tokens=special, initial_alphabet=alphabet)
  bpe.train_from_iterator(TEXTS * 5, trainer)
  bpe.save(str(folder / "tokenizer.json"))
  return {"sentencepiece": str(folder / "t.model"), "neox": str(folder / "tokenizer.json")}


@pytest.fixture(params=["sentencepiece", "neox"])
def path(paths, request):
  return paths[request.param]


def test_round_trip_and_special_ids(path):
  vocabulary, tokenizer = TokenizerVocabulary(path), load_tokenizer(path)
  assert (vocabulary.eos_id, vocabulary.bos_id, vocabulary.pad_id) == (tokenizer.eot_id, tokenizer.bos_id, 0)
  assert vocabulary.vocab_size == tokenizer.vocab_size and vocabulary.unk_id is None
  for text in TEXTS:
    assert vocabulary.encode(text) == tokenizer.encode(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text
  ids = tokenizer.encode(TEXTS[0])
  assert vocabulary.decode([*ids, tokenizer.eot_id, *ids]) == TEXTS[0]  # as SeqIO has it: up to the first end


def test_neox_ids_are_those_of_the_library(paths):
  library = tokenizers.Tokenizer.from_file(paths["neox"])
  vocabulary = TokenizerVocabulary(paths["neox"])
  assert vocabulary.eos_id == library.token_to_id("<|endoftext|>") == 0
  assert vocabulary.encode(TEXTS[1]) == library.encode(TEXTS[1], add_special_tokens=False).ids


def test_in_tensorflow(path):
  vocabulary = TokenizerVocabulary(path)
  for text in TEXTS[:5]:
    ids = vocabulary.encode_tf(text)
    assert ids.dtype == "int32" and ids.numpy().tolist() == vocabulary.encode(text)
    assert vocabulary.decode_tf(ids).numpy().decode() == text
  rows = [[*vocabulary.encode(text), vocabulary.eos_id] for text in TEXTS[:3]]
  width = max(map(len, rows)) + 2
  batch = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
  assert [text.decode() for text in vocabulary.decode_tf(batch).numpy()] == TEXTS[:3]


def test_equal_when_the_files_are(paths, tmp_path):
  one = TokenizerVocabulary(paths["neox"])
  assert one == TokenizerVocabulary(paths["neox"]) != TokenizerVocabulary(paths["sentencepiece"])
  assert pickle.loads(pickle.dumps(one)) == one and hash(one) == hash(TokenizerVocabulary(paths["neox"]))


def test_sentencepiece_agrees_with_seqio_s_own(paths):
  ours, seqios = TokenizerVocabulary(paths["sentencepiece"]), seqio.SentencePieceVocabulary(paths["sentencepiece"])
  assert [ours.encode(text) for text in TEXTS] == [seqios.encode(text) for text in TEXTS]
  assert (ours.eos_id, ours.vocab_size) == (seqios.eos_id, seqios.vocab_size)
