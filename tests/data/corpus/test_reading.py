"""Batches of windows of one part, the sample of its documents, and the counts of what was read."""

import dataclasses

import numpy as np
import pytest

from hiermem_jax.data.corpus import reading
from hiermem_jax.data.corpus.reading import Counts, good_texts, read_part, sample_texts
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.data.text.windows import windows_of
from hiermem_jax.errors import InputError


def read(source, tokenizer, number=0, **changes):
  """All windows of a part as one batch, and the counts."""
  counts = Counts()
  part = source.parts()[number]
  batches = list(read_part(source, number, part, tokenizer, counts, **{"window_tokens": 16} | changes))
  joined = {
    field.name: np.concatenate([getattr(batch, field.name) for batch in batches])
    for field in dataclasses.fields(reading.WindowBatch)
  }
  return joined, counts


def test_windows_of_a_part(corpus, tokenizer, texts, windows, monkeypatch):
  monkeypatch.setattr(reading, "_BATCH", 7)
  found, counts = read(corpus, tokenizer, 0)
  expected = [w for document in windows_of(texts[:100], tokenizer, 16) for w in document]
  assert found["texts"].tolist() == [w.text for w in expected]
  assert found["tokens"].tolist() == [i for w in expected for i in w.ids]
  assert found["sizes"].tolist() == [len(w.ids) for w in expected]
  assert found["ends"].tolist() == [w.ends_document for w in expected]
  assert len(set(found["keys"].tolist())) == len(expected)
  assert (counts.documents, counts.windows, counts.empty_documents) == (100, len(expected), 0)
  assert counts.characters == sum(map(len, texts[:100]))
  assert counts.tokens == sum(len(w.ids) + w.ends_document for w in expected) and counts.bad_records == {}


def test_keys_depend_on_the_position_only(corpus, tokenizer, monkeypatch):
  parts = [read(corpus, tokenizer, number)[0]["keys"] for number in range(4)]
  assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
  monkeypatch.setattr(reading, "_BATCH", 3)
  np.testing.assert_array_equal(read(corpus, tokenizer, 2)[0]["keys"], parts[2])


def test_a_sample_is_whole_documents_and_grows_with_its_share(corpus, tokenizer):
  everything, _ = read(corpus, tokenizer, 1)
  half, counts = read(corpus, tokenizer, 1, sample=0.5)
  third, _ = read(corpus, tokenizer, 1, sample=0.3)
  assert 35 < counts.documents < 65 and counts.documents == half["ends"].sum()
  assert set(third["keys"].tolist()) < set(half["keys"].tolist()) < set(everything["keys"].tolist())
  starts = np.flatnonzero(np.append(True, everything["ends"][:-1]))
  documents = np.split(everything["keys"], starts[1:])
  taken = np.isin(everything["keys"], half["keys"])
  assert all(len(set(taken[np.isin(everything["keys"], document)])) == 1 for document in documents)


@pytest.fixture
def damaged(tmp_path):
  lines = ['{"text": "river"}', "nonsense", '{"text": ""}', '{"text": "poet"}', "nonsense", '{"body": "x"}']
  (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
  return JsonlSource(pattern=str(tmp_path / "a.jsonl"))


def test_malformed_records_are_counted(damaged, tokenizer, tmp_path):
  found, counts = read(damaged, tokenizer)
  assert found["texts"].tolist() == ["river", "poet"] and counts.documents == 2
  places = {kind: (entry["count"], entry["places"]) for kind, entry in counts.bad_records.items()}
  assert places == {
    "malformed JSON": (2, [f"{tmp_path}/a.jsonl:{line} (Expecting value, column 1)" for line in (2, 5)]),
    "field 'text' empty": (1, [f"{tmp_path}/a.jsonl:3"]),
    "field 'text' missing": (
      1,
      [f"{tmp_path}/a.jsonl:6 (the record has 'body'; JsonlSource.text_field says which one is the text)"],
    ),
  }
  assert list(good_texts(damaged)) == ["river", "poet"]
  counts.check(damaged, 4 / 6)
  with pytest.raises(InputError) as caught:
    counts.check(damaged, 0.66)
  message = str(caught.value)
  assert message.startswith("4 of 6 records are malformed (2 malformed JSON, ") and "a.jsonl:2" in message
  assert "raise ReadConfig.max_bad_share (0.66) or pass --skip_bad_records" in message


def test_totals_keep_the_first_places():
  one, other = Counts(documents=2, empty_documents=1, characters=9, windows=3, tokens=8), Counts(documents=5, tokens=1)
  one.add_bad("x", 4, list("abcd"))
  other.add_bad("x", 3, list("efg"))
  other.add_bad("y", 1, ["h"])
  total = Counts.total(map(dataclasses.asdict, (one, other)))
  assert dataclasses.asdict(total) == {
    "documents": 7,
    "empty_documents": 1,
    "characters": 9,
    "windows": 3,
    "tokens": 9,
    "bad_records": {"x": {"count": 7, "places": list("abcde")}, "y": {"count": 1, "places": ["h"]}},
  }


def test_no_text_at_all(tmp_path, tokenizer):
  (tmp_path / "a.jsonl").write_text("\n")
  source = JsonlSource(pattern=str(tmp_path / "a.jsonl"))
  with pytest.raises(InputError, match="empty corpus"):
    list(good_texts(source))
  with pytest.raises(InputError, match="empty corpus"):
    Counts().check(source, 1.0)
  assert list(good_texts(source, source.parts()[0])) == []  # one part may be empty


def test_texts_to_fit_an_encoder_to(corpus, tokenizer, windows):
  every = [w.text for w in windows]
  assert sorted(sample_texts(corpus, tokenizer, window_tokens=16)) == sorted(every)
  some = list(sample_texts(corpus, tokenizer, window_tokens=16, max_windows=50))
  assert len(some) == 50 and some != every[:50]
  # Taken from all over the corpus: that none is of the last quarter has a probability of 0.75^50.
  assert set(some) & set(every[-len(every) // 4 :])
