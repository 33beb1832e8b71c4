"""The verb that trains a tokenizer, and nothing else."""

import json

import pytest

from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.data.text.tokenizer import load_tokenizer
from hiermem_jax.errors import InputError
from hiermem_jax.train_tokenizer import train_tokenizer


@pytest.fixture
def corpus(tmp_path):
  lines = [json.dumps({"text": f"the otter swims to the river {i}"}) for i in range(50)]
  (tmp_path / "a.jsonl").write_text("\n".join(["nonsense", *lines]) + "\n")
  return JsonlSource(pattern=str(tmp_path / "a.jsonl"))


def test_trains_once_and_keeps_the_result(corpus, tmp_path, monkeypatch):
  run = str(tmp_path / "run")
  train_tokenizer(run_dir=run, corpus=corpus, vocab_size=300)
  trained = load_tokenizer(f"{run}/tokenizer.model")
  assert trained.vocab_size == 300 and len(trained.encode("the otter")) < len("the otter")
  monkeypatch.setattr(JsonlSource, "read", None)
  train_tokenizer(run_dir=run, corpus=corpus, vocab_size=290)  # there is one already
  assert load_tokenizer(f"{run}/tokenizer.model").fingerprint == trained.fingerprint


def test_reads_no_more_than_it_is_told(corpus, tmp_path):
  fingerprints = set()
  for characters in (400, 800):
    path = tmp_path / f"{characters}.model"
    train_tokenizer(run_dir="", corpus=corpus, vocab_size=290, tokenizer=str(path), max_characters=characters)
    fingerprints.add(load_tokenizer(str(path)).fingerprint)
  assert len(fingerprints) == 2


def test_no_text(tmp_path):
  (tmp_path / "a.jsonl").write_text("\n")
  with pytest.raises(InputError, match="empty corpus"):
    train_tokenizer(run_dir=str(tmp_path), corpus=JsonlSource(pattern=str(tmp_path / "a.jsonl")), vocab_size=300)
  assert not (tmp_path / "tokenizer.model").exists()
