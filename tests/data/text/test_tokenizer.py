"""Round trips, special ids and errors of the two kinds of tokenizer."""

import hashlib

import pytest
import tokenizers

from hiermem_jax.data.text.tokenizer import load_tokenizer, train_sentencepiece
from hiermem_jax.errors import InputError

TEXTS = [f"The river {i} flows past town {i * 7}, and\n\nnaïve   otters swim there in spring." for i in range(60)]
STRANGE = [
  "",
  " ",
  " leading and trailing ",
  "two  spaces\tand\ttabs\n\n",
  "漢字 😀 e\u0301\u200b\u00a0\u3000",
  "a\x00b\r\n",
  "</s><eot><pad><unk><|endoftext|><0x41>",
  "1234567890",
  "x \ufffd",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "new" / "text.model"
  return train_sentencepiece(iter(TEXTS), str(path), vocab_size=340)


def save_bpe(path, special, extra=()):
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = tokenizers.decoders.ByteLevel()
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
  )
  model.train_from_iterator(TEXTS, trainer)
  model.add_special_tokens(list(extra))
  model.save(str(path))
  return load_tokenizer(str(path))


@pytest.mark.parametrize("text", STRANGE + TEXTS[:2])
def test_sentencepiece_round_trip(trained, text):
  ids = trained.encode(text)
  assert trained.decode(ids) == text
  assert all(2 < i < trained.vocab_size for i in ids)  # never padding, unknown or end of text


def test_pieces_of_ids_are_pieces_of_text(trained):
  ids = trained.encode(TEXTS[0])
  assert trained.decode(ids[:9]) + trained.decode(ids[9:]) == TEXTS[0]
  assert trained.encode("a b") == trained.encode("a") + trained.encode(" b")


def test_sentencepiece_ids(trained):
  assert (trained.vocab_size, trained.eot_id, trained.bos_id) == (340, 2, 0)
  assert trained.decode([0, *trained.encode("otters"), 2, 0]) == "otters"
  assert len(trained.encode("2024")) == 4
  assert len(trained.encode("\n\n")) == 2


def test_batch_is_one_by_one(trained, tmp_path):
  for tokenizer in (trained, save_bpe(tmp_path / "t.json", ["<|endoftext|>"])):
    assert tokenizer.encode_batch(STRANGE) == [tokenizer.encode(t) for t in STRANGE]
    assert tokenizer.encode_batch([]) == []


def test_training_is_deterministic_and_fingerprinted(trained, tmp_path):
  again = train_sentencepiece(TEXTS, str(tmp_path / "b.model"), vocab_size=340)
  content = (tmp_path / "b.model").read_bytes()
  assert again.fingerprint == trained.fingerprint == hashlib.sha256(content).hexdigest()[:16]
  assert load_tokenizer(trained.path).fingerprint == trained.fingerprint
  assert [p.name for p in tmp_path.iterdir()] == ["b.model"]


def test_training_reads_no_more_than_max_characters(tmp_path):
  def texts():
    yield "abcabcabc " * 10
    yield "abdabd " * 10
    raise AssertionError("read too far")

  train_sentencepiece(texts(), str(tmp_path / "c.model"), vocab_size=266, max_characters=150)


@pytest.mark.parametrize(
  "texts, vocab_size, message",
  [(TEXTS, 5000, r"5000 is too large .*at most \d+"), (TEXTS, 100, "too small"), ([""], 300, "no text")],
)
def test_training_errors(tmp_path, texts, vocab_size, message):
  with pytest.raises(InputError, match=message) as caught:
    train_sentencepiece(texts, str(tmp_path / "d.model"), vocab_size=vocab_size)
  assert "\n" not in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_largest_vocabulary_of_the_message_works(tmp_path):
  with pytest.raises(InputError) as caught:
    train_sentencepiece(TEXTS, str(tmp_path / "e.model"), vocab_size=5000)
  largest = int(str(caught.value).split("at most ")[1].split(")")[0])
  assert train_sentencepiece(TEXTS, str(tmp_path / "e.model"), vocab_size=largest).vocab_size == largest


@pytest.mark.parametrize(
  "special, eot, bos",
  [
    (["<|endoftext|>", "<|padding|>"], 0, 0),  # as GPT-NeoX
    (["<pad>", "<eos>", "<bos>"], 1, 2),  # as Gemma
    (["<unk>", "<s>", "</s>"], 2, 1),  # as Llama 2
  ],
)
def test_hugging_face_special_ids(tmp_path, special, eot, bos):
  tokenizer = save_bpe(tmp_path / "tokenizer.json", special)
  assert (tokenizer.eot_id, tokenizer.bos_id) == (eot, bos)
  for text in STRANGE:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(range(len(special)))
  assert tokenizer.decode([eot, *tokenizer.encode("otters"), eot]) == "otters"


def test_hugging_face_ordinary_id_0(tmp_path):
  """As Qwen: id 0 is "!", special tokens come last, there is no begin-of-sequence token."""
  tokenizer = save_bpe(tmp_path / "tokenizer.json", [], extra=["<|endoftext|>"])
  assert tokenizer.encode("!") == [0]
  assert tokenizer.eot_id == tokenizer.bos_id == tokenizer.vocab_size - 1


def test_no_end_of_text(tmp_path):
  with pytest.raises(InputError, match=r"tokenizer.json has no end-of-text token .*<\|endoftext\|>"):
    save_bpe(tmp_path / "tokenizer.json", ["<pad>"])


@pytest.mark.parametrize("name", ["missing.model", "missing.json", "broken.model", "broken.json", "vocab.txt"])
def test_bad_files(tmp_path, name):
  for broken in ("broken.model", "broken.json"):
    (tmp_path / broken).write_text("{}")
  with pytest.raises(InputError, match=name) as caught:
    load_tokenizer(str(tmp_path / name))
  assert "\n" not in str(caught.value)
