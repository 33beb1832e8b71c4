"""Sources: order, parts, limits, kinds of files and places, and every mistake a file can hold."""

import gzip
import json
import pickle
import sys

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from hiermem_jax.data.sources import BadRecord, JsonlSource, ParquetSource, TextSource
from hiermem_jax.errors import InputError

BAD_LINES = {
  "malformed JSON": b'{"text": "a"',
  "not a JSON object": b'["text"]',
  "field 'text' missing": b'{"body": "a"}',
  "field 'text' not a string": b'{"text": 7}',
  "field 'text' empty": b'{"text": "  "}',
  "not UTF-8": b'{"text": "\xff"}',
  "field 'text' not UTF-8": b'{"text": "\\ud800"}',
  "field 'text' over 50 characters": b'{"text": "' + b"x" * 51 + b'"}',
}


def write(path, texts, compress=False):
  content = "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()
  path.write_bytes(gzip.compress(content) if compress else content)
  return str(path)


def texts_of(source):
  return [r["text"] for r in source.records()]


def test_reads_plain_and_gzip_shards_in_sorted_order_again_and_again(tmp_path):
  write(tmp_path / "b.jsonl.gz", ["3", "4"], compress=True)
  write(tmp_path / "a.jsonl", ["1", "2"])
  write(tmp_path / "c.jsonl", ["5"])
  source = JsonlSource(pattern=str(tmp_path / "*"))
  assert texts_of(source) == texts_of(source) == ["1", "2", "3", "4", "5"]


def test_limits(tmp_path):
  for name in "abc":
    write(tmp_path / f"{name}.jsonl", [name + "1", name + "2"])
  pattern = str(tmp_path / "*.jsonl")
  assert texts_of(JsonlSource(pattern=pattern, max_shards=2)) == ["a1", "a2", "b1", "b2"]
  assert texts_of(JsonlSource(pattern=pattern, max_records=3)) == ["a1", "a2", "b1"]
  for limit in ({"max_shards": 0}, {"max_records": -1}):
    with pytest.raises(InputError, match="give 1 or more"):
      JsonlSource(pattern=pattern, **limit)


def test_max_records_never_looks_at_later_lines(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'{"text": "a"}\nnonsense\n')
  assert texts_of(JsonlSource(pattern=str(path), max_records=1)) == ["a"]


def test_keeps_other_fields_and_passes_over_blank_lines_and_byte_order_mark(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes('\ufeff{"text": "é", "count": 3}\r\n\n  \n{"text": "b", "x": [1]}'.encode())
  expected = [{"text": "é", "count": 3}, {"text": "b", "x": [1]}]
  assert list(JsonlSource(pattern=str(path)).records()) == expected


def test_a_path_with_brackets_is_a_path(tmp_path):
  assert texts_of(JsonlSource(pattern=write(tmp_path / "part[1].jsonl", ["a"]))) == ["a"]


def test_required_fields_are_a_choice(tmp_path):
  path = tmp_path / "probes.jsonl"
  path.write_text('{"prompt": "p", "answer": "a", "count": 3}\n{"prompt": "p", "answer": ""}\n')
  source = JsonlSource(pattern=str(path), required=("prompt", "answer"))
  with pytest.raises(InputError, match=r"probes\.jsonl:2: field 'answer' empty"):
    list(source.records())


@pytest.mark.parametrize("kind", BAD_LINES)
def test_bad_record_names_path_line_and_remedy(tmp_path, kind):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'{"text": "a"}\n' + BAD_LINES[kind] + b"\n")
  with pytest.raises(InputError) as caught:
    list(JsonlSource(pattern=str(path), max_characters=50).records())
  message = str(caught.value)
  assert message.startswith(f"{path}:2: {kind}")
  assert message.endswith("; mend or remove it")
  assert "\n" not in message


def test_reading_goes_on_after_bad_records(tmp_path):
  path = tmp_path / "a.jsonl"
  lines = [b'{"text": "first"}', *BAD_LINES.values(), b"nonsense", b'{"text": "last"}']
  path.write_bytes(b"\n".join(lines))
  source = JsonlSource(pattern=str(path), max_characters=50)
  (part,) = source.parts()
  first, *bad, last = source.read(part)
  assert (first["text"], last["text"]) == ("first", "last")
  assert [b.kind for b in bad] == [*BAD_LINES, "malformed JSON"]
  assert [b.place for b in bad] == [f"{path}:{line}" for line in range(2, 11)]


def test_no_file_matches(tmp_path):
  pattern = str(tmp_path / "none-*.jsonl")
  with pytest.raises(InputError, match="no file matches .*none-"):
    list(JsonlSource(pattern=pattern).records())
  with pytest.raises(InputError, match="no file matches"):  # a folder is no file
    list(JsonlSource(pattern=str(tmp_path)).records())


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_empty_corpus(tmp_path, content):
  path = tmp_path / "a.jsonl"
  path.write_bytes(content)
  with pytest.raises(InputError, match="empty corpus"):
    list(JsonlSource(pattern=str(path)).records())


def test_damaged_compressed_files(tmp_path):
  whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % (i * i) for i in range(9999)))
  cases = {"cut": whole[: len(whole) // 2], "header": b"not gzip at all", "middle": whole[:500] + b"\0" * 500}
  for name, content in cases.items():
    (tmp_path / f"{name}.jsonl.gz").write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}\.jsonl\.gz: .*compressed.*; copy or download it again"):
      list(JsonlSource(pattern=str(tmp_path / f"{name}.jsonl.gz")).records())
  for content in (b"not zstd", pyarrow.compress(gzip.decompress(whole), codec="zstd", asbytes=True)[:-9]):
    (tmp_path / "a.jsonl.zst").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.jsonl\.zst: not a compressed file, or damaged"):
      list(JsonlSource(pattern=str(tmp_path / "a.jsonl.zst")).records())


def test_zstd(tmp_path):
  content = b'{"text": "a"}\n{"text": "b"}\n'
  (tmp_path / "a.jsonl.zst").write_bytes(pyarrow.compress(content, codec="zstd", asbytes=True) * 2)
  source = JsonlSource(pattern=str(tmp_path / "a.jsonl.zst"))
  assert texts_of(source) == ["a", "b"] * 2  # a file may hold several frames


def test_remote_places_are_read_as_local_ones_are(tmp_path):
  system = fsspec.filesystem("memory")
  system.pipe("/bucket/deep/a.jsonl.gz", gzip.compress(b'{"text": "a"}\nnonsense\n'))
  system.pipe("/bucket/b.jsonl", b'{"text": "b"}\n')
  source = JsonlSource(pattern="memory://bucket/**/*.jsonl*")
  assert source.parts() == ["memory:///bucket/b.jsonl", "memory:///bucket/deep/a.jsonl.gz"]
  read = [list(source.read(part)) for part in source.parts()]
  assert read[0] == [{"text": "b"}]
  assert read[1][0] == {"text": "a"} and read[1][1].place == "memory:///bucket/deep/a.jsonl.gz:2"


@pytest.mark.parametrize(
  "url, message", [("gs://bucket/x.jsonl", "pip install gcsfs"), ("nonsense://x", "URL that fsspec knows")]
)
def test_places_that_cannot_be_reached(url, message, monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(InputError, match=message) as caught:
    JsonlSource(pattern=url).parts()
  assert str(caught.value).startswith(url) and "\n" not in str(caught.value)


def test_parts_are_files_and_a_limit_on_records_makes_one_part(tmp_path):
  paths = [write(tmp_path / f"{name}.jsonl", [name, name]) for name in "abc"]
  source = JsonlSource(pattern=str(tmp_path / "*.jsonl"))
  assert source.parts() == paths
  limited = JsonlSource(pattern=str(tmp_path / "*.jsonl"), max_records=3)
  (part,) = limited.parts()
  assert [r["text"] for r in limited.read(part)] == ["a", "a", "b"]
  assert pickle.loads(pickle.dumps(limited)) == limited


def test_another_field_can_be_the_text(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"content": "a"}\n{"content": ""}\n{"text": "b"}\n')
  source = JsonlSource(pattern=str(tmp_path / "a.jsonl"), text_field="content")
  good, empty, other = source.read(source.parts()[0])
  assert good == {"content": "a", "text": "a"} and isinstance(empty, BadRecord) and other == {"text": "b"}


def test_parquet(tmp_path):
  table = pyarrow.table({"text": ["a", None, "  ", "d"], "url": ["1", "2", "3", "4"]})
  parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
  source = ParquetSource(pattern=str(tmp_path / "*.parquet"))
  first, none, empty, last = source.read(source.parts()[0])
  assert first == {"text": "a"} and last == {"text": "d"}  # no other column is read
  assert (none.kind, none.place) == ("field 'text' not a string", f"{tmp_path}/a.parquet: row 1")
  assert empty.kind == "field 'text' empty"
  (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
  with pytest.raises(InputError, match=r"b\.parquet: not a Parquet file, or damaged"):
    list(source.read(source.parts()[1]))
  (missing,) = {b.kind for b in ParquetSource(pattern=source.pattern, text_field="url", required=("body",)).read(
    source.parts()[0])}  # fmt: skip
  assert missing == "field 'body' missing"


def test_text_files(tmp_path):
  (tmp_path / "a.txt").write_text("one\n\ntwo\n")
  (tmp_path / "b.txt").write_bytes(b"\xff")
  pattern = str(tmp_path / "*.txt")
  whole = TextSource(pattern=pattern)
  assert list(whole.read(whole.parts()[0])) == [{"text": "one\n\ntwo\n"}]
  assert next(iter(whole.read(whole.parts()[1]))).kind == "not UTF-8"
  lines = TextSource(pattern=pattern, one_per_line=True)
  assert list(lines.read(lines.parts()[0])) == [{"text": "one"}, {"text": "two"}]
