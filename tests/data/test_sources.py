"""JSON-lines sources: order, limits, and every mistake a file can hold."""

import gzip
import json
import logging
import subprocess
import sys

import pytest
from absl import logging as absl_logging

from hiermem_jax.data.sources import JsonlSource, TfdsSource, WorldSource
from hiermem_jax.data.world import TINY
from hiermem_jax.errors import InputError

BAD_LINES = {
  "malformed JSON": b'{"text": "a"',
  "not a JSON object": b'["text"]',
  "field 'text' missing": b'{"body": "a"}',
  "field 'text' not a string": b'{"text": 7}',
  "field 'text' empty": b'{"text": "  "}',
  "not UTF-8": b'{"text": "\xff"}',
  "field 'text' not UTF-8": b'{"text": "\\ud800"}',
}


@pytest.fixture
def warnings_seen():
  """Messages that absl logs."""
  messages = []

  class Keep(logging.Handler):
    def emit(self, record):
      messages.append(record.getMessage())

  handler = Keep(logging.WARNING)
  absl_logging.get_absl_logger().addHandler(handler)
  yield messages
  absl_logging.get_absl_logger().removeHandler(handler)


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
    list(JsonlSource(pattern=str(path)).records())
  message = str(caught.value)
  assert message.startswith(f"{path}:2: {kind}")
  assert message.endswith("; fix or pass --skip_bad_records")
  assert "\n" not in message


def test_bad_records_are_skipped_and_counted(tmp_path, warnings_seen):
  path = tmp_path / "a.jsonl"
  lines = [b'{"text": "first"}', *BAD_LINES.values(), b"nonsense", b'{"text": "last"}']
  path.write_bytes(b"\n".join(lines))
  assert texts_of(JsonlSource(pattern=str(path), skip_bad_records=True)) == ["first", "last"]
  (message,) = warnings_seen
  assert f"{len(BAD_LINES) + 1} bad records" in message
  assert "2 malformed JSON" in message
  assert "1 not a JSON object" in message
  assert f"{path}:2, {path}:3" in message
  assert "\n" not in message


def test_good_files_log_nothing(tmp_path, warnings_seen):
  assert texts_of(JsonlSource(pattern=write(tmp_path / "a.jsonl", ["a"]), skip_bad_records=True)) == ["a"]
  assert warnings_seen == []


def test_no_file_matches(tmp_path):
  pattern = str(tmp_path / "none-*.jsonl")
  with pytest.raises(InputError, match="no file matches .*none-"):
    list(JsonlSource(pattern=pattern).records())
  with pytest.raises(InputError, match="no file matches"):  # a folder is no file
    list(JsonlSource(pattern=str(tmp_path)).records())


@pytest.mark.parametrize("content", [b"", b"\n\n", b"nonsense\n"])
def test_empty_corpus(tmp_path, content):
  path = tmp_path / "a.jsonl"
  path.write_bytes(content)
  with pytest.raises(InputError, match="empty corpus"):
    list(JsonlSource(pattern=str(path), skip_bad_records=True).records())


@pytest.mark.parametrize("skip", [False, True])
def test_damaged_gzip_files(tmp_path, skip):
  whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % (i * i) for i in range(9999)))
  cases = {"cut": whole[: len(whole) // 2], "header": b"not gzip at all", "middle": whole[:500] + b"\0" * 500}
  for name, content in cases.items():
    path = tmp_path / f"{name}.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}\.jsonl\.gz: .*gzip"):
      list(JsonlSource(pattern=str(path), skip_bad_records=skip).records())


def test_world_source_wants_a_known_split():
  with pytest.raises(InputError, match="give train, validation or probes"):
    WorldSource(world=TINY, split="test")


def test_import_and_construction_do_not_load_tensorflow():
  code = (
    "import sys; from hiermem_jax.data import sources, world;"
    "sources.TfdsSource(name='c4', split='train'); sources.WorldSource(world=world.TINY, split='train');"
    "sys.exit(any(m.startswith('tensorflow') for m in sys.modules))"
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_tfds_limit():
  with pytest.raises(InputError, match=r"TfdsSource\.max_records"):
    TfdsSource(name="c4", split="train", max_records=0)
