"""Tokenizers: SentencePiece `.model` files and Hugging Face `tokenizers` `.json` files behind one interface.

Special ids:

  padding   Padded positions hold id 0. Whether a position is padding is decided by its segment id
            (0 for padding), never by its token, because id 0 is an ordinary token of some
            vocabularies.
  eot_id    The token that ends a document. The model predicts it.
  bos_id    The input at the first position of a document, whose target is the first token. The
            model never predicts it. It is the tokenizer's own begin-of-sequence token if there is
            one. Otherwise it is 0 if no text encodes to id 0: in SentencePiece models trained here
            0 is padding, in GPT-NeoX's tokenizer it is the end-of-text token. Otherwise it is
            `eot_id`.

`encode` gives ordinary tokens only: a text that contains the name of a special token, such as
"<|endoftext|>", is encoded like any other text.
"""

import abc
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hiermem_jax import files
from hiermem_jax.errors import InputError, listed

_EOT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")
_BOS_NAMES = ("<|begin_of_text|>", "<bos>", "<s>")


class Tokenizer(abc.ABC):
  """Text to ids and back.

  Attributes:
    path: the file that it was loaded from.
    fingerprint: first 16 hex digits of the sha256 of that file.
    vocab_size: one more than the largest id.
    eot_id: the token that ends a document.
    bos_id: the input at the first position of a document (see the module's docstring).
  """

  path: str
  fingerprint: str
  vocab_size: int
  eot_id: int
  bos_id: int

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without begin- or end-of-document tokens."""
    return self.encode_batch([text])[0]

  @abc.abstractmethod
  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` for many texts, on all cores."""

  @abc.abstractmethod
  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of ids. Special tokens (padding, end of text) have no text."""


class SentencePieceTokenizer(Tokenizer):
  """A SentencePiece model."""

  def __init__(self, path: str, content: bytes):
    import sentencepiece

    try:
      self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
      raise InputError(f"{path} is not a SentencePiece model: give a trained .model file") from error
    self.path = path
    self.fingerprint = _fingerprint(content)
    self.vocab_size = self._model.vocab_size()
    self.eot_id = self._model.eos_id()
    if self.eot_id < 0:
      raise InputError(f"{path} has no end-of-sentence piece: train the tokenizer with an eos_id")
    text_yields_0 = not self._model.is_control(0)
    self.bos_id = _bos_id(self._model.bos_id(), self.eot_id, text_yields_0)

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without begin- or end-of-document tokens."""
    return self._model.encode(text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` for many texts, on all cores."""
    return self._model.encode(list(texts), num_threads=os.cpu_count() or 1)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of ids. Special tokens (padding, end of text) have no text."""
    return self._model.decode([int(i) for i in ids])


class HuggingFaceTokenizer(Tokenizer):
  """A `tokenizer.json` of the Hugging Face `tokenizers` library."""

  def __init__(self, path: str, content: bytes):
    import tokenizers

    try:
      self._model = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises plain Exception
      raise InputError(f"{path} is not a tokenizers file: give a Hugging Face tokenizer.json") from error
    self._model.no_padding()
    self._model.no_truncation()
    self._model.encode_special_tokens = True  # text that spells a special token is text
    self.path = path
    self.fingerprint = _fingerprint(content)
    vocabulary = self._model.get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocabulary.values()) + 1
    eot_names = [name for name in _EOT_NAMES if name in vocabulary]
    if not eot_names:
      known = ", ".join(_EOT_NAMES)
      raise InputError(f"{path} has no end-of-text token (one of {known}): add one to its added_tokens")
    self.eot_id = vocabulary[eot_names[0]]
    own_bos = next((vocabulary[name] for name in _BOS_NAMES if name in vocabulary), -1)
    added = self._model.get_added_tokens_decoder()
    text_yields_0 = not (0 in added and added[0].special)
    self.bos_id = _bos_id(own_bos, self.eot_id, text_yields_0)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` for many texts, on all cores."""
    return [e.ids for e in self._model.encode_batch_fast(list(texts), add_special_tokens=False)]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of ids. Special tokens (padding, end of text) have no text."""
    return self._model.decode([int(i) for i in ids], skip_special_tokens=True)


def load_tokenizer(path: str) -> Tokenizer:
  """Loads a tokenizer: a SentencePiece model if the path ends in `.model`, a Hugging Face tokenizer if in `.json`.

  Raises:
    InputError: there is no such file, it has another suffix, is damaged, or has no end-of-text token.
  """
  kinds = {".model": SentencePieceTokenizer, ".json": HuggingFaceTokenizer}
  kind = kinds.get(pathlib.Path(path).suffix)
  if kind is None:
    raise InputError(f"tokenizer {path}: give a SentencePiece .model or a Hugging Face tokenizer .json file")
  try:
    content = pathlib.Path(path).read_bytes()
  except OSError as error:
    reason = error.strerror or "not readable"
    folder = pathlib.Path(path).parent
    here = sorted(p for suffix in kinds for p in folder.glob(f"*{suffix}"))
    there = f" ({folder} has {listed(p.name for p in here)})"
    raise InputError(f"tokenizer {path}: {reason}{there}; give an existing file or train one") from error
  return kind(path, content)


def train_sentencepiece(
  texts: Iterable[str], path: str, *, vocab_size: int, max_characters: int = 50_000_000
) -> Tokenizer:
  """Trains a SentencePiece BPE model, writes it to `path` and loads it.

  Id 0 is padding, 1 is unknown (which never occurs, because rare characters are encoded as bytes), 2 is end of text.
  Text is not normalised and gets no space in front. So decode(encode(text)) == text for every text without the
  character U+2581, and a part of a document's ids decodes to a part of the document. Every digit is a token of its own,
  and so is a line break. The result depends on the texts only: nothing is sampled.

  Args:
    texts: documents in random order, of which only the beginning is read.
    path: where to write, ending in `.model`. An existing file is replaced.
    vocab_size: number of ids.
    max_characters: number of characters to train on. They are held in memory.

  Raises:
    InputError: there is no text, or the vocabulary is too large or too small for it.
  """
  import sentencepiece

  if pathlib.Path(path).suffix != ".model":
    raise InputError(f"tokenizer {path}: name the file to write with the suffix .model")
  content = io.BytesIO()
  errors: list[Exception] = []
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=_noting_errors(_lines(texts, max_characters), errors),
      model_writer=content,
      model_type="bpe",
      vocab_size=vocab_size,
      pad_id=0,
      unk_id=1,
      eos_id=2,
      bos_id=-1,
      pad_piece="<pad>",
      unk_piece="<unk>",
      eos_piece="<eot>",
      byte_fallback=True,
      split_digits=True,
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      allow_whitespace_only_pieces=True,
      max_sentence_length=2**30,  # bytes; longer ones would be dropped
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    if errors:
      raise errors[0] from None
    raise InputError(_training_problem(str(error), vocab_size)) from error
  files.write_bytes(path, content.getvalue())
  return load_tokenizer(path)


def _lines(texts: Iterable[str], max_characters: int) -> Iterator[str]:
  """The lines of the texts. Because the model never sees a line break, it has no piece with one, only its byte."""
  left = max_characters
  for text in texts:
    yield from (line for line in text[:left].split("\n") if line)
    left -= len(text)
    if left <= 0:
      return


def _noting_errors(lines: Iterator[str], errors: list[Exception]) -> Iterator[str]:
  """The lines. An exception of the iterator is added to `errors`, because SentencePiece only passes on its text."""
  try:
    yield from lines
  except Exception as error:
    errors.append(error)
    raise


def _training_problem(message: str, vocab_size: int) -> str:
  """Our message for an error message of SentencePiece."""
  if found := re.search(r"value <= (\d+)", message):
    return f"vocab_size {vocab_size} is too large for this text (at most {found[1]}): lower it or add text"
  if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
    return f"vocab_size {vocab_size} is too small: bytes and characters alone need {found[1]}; raise it"
  if "sentences_.empty()" in message:
    return "no text to train a tokenizer on: check that the source has documents"
  return f"SentencePiece training failed: {message}; check the text and vocab_size {vocab_size}"


def _bos_id(own: int, eot_id: int, text_yields_0: bool) -> int:
  """The input at the first position of a document (see the module's docstring); `own` is -1 if there is none."""
  if own >= 0:
    return own
  return eot_id if text_yields_0 else 0


def _fingerprint(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()[:16]
