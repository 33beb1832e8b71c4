"""Errors that say that something is not there name what is there."""

import json
import os

import pyarrow as pa
import pytest
from pyarrow import parquet

from hiermem_jax import files
from hiermem_jax.data.corpus.reading import good_texts
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.data.sources import JsonlSource, ParquetSource
from hiermem_jax.data.tasks.table import task_spec
from hiermem_jax.data.text.tokenizer import load_tokenizer
from hiermem_jax.errors import InputError, listed
from hiermem_jax.evaluation.config import TaskSet
from hiermem_jax.evaluation.tasks import task_files
from hiermem_jax.retrieval.storage import read_meta
from hiermem_jax.training.checkpoint import load_model


def said(function, *arguments, **named):
  with pytest.raises(InputError) as caught:
    function(*arguments, **named)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_lists_are_short_and_one_line():
  assert listed([]) == "nothing" and listed(["a", "b\n"]) == "'a', 'b\\n'"
  assert listed(range(12)) == ", ".join(f"'{i}'" for i in range(10)) + " and 2 more"


@pytest.fixture
def run(tmp_path):
  """A directory that stands alone: what lies beside it is named too."""
  tmp_path = tmp_path / "alone" / "run"
  for name in ("anchor/checkpoints", "baseline/checkpoints", "cotrain", "tree", "other_tree", "packed/train"):
    (tmp_path / name).mkdir(parents=True)
  (tmp_path / "other_tree/tree.json").write_text("{}")
  (tmp_path / "packed/train/manifest.json").write_text("{}")
  (tmp_path / "mine.model").write_text("")
  (tmp_path / "mine.jsonl").write_text(json.dumps({"title": "a", "body": "b"}) + "\n")
  return tmp_path


@pytest.mark.parametrize("name", ["cotrain", "nowhere", "."])
def test_models_that_are_there(run, name):
  message = said(load_model, str(run / name), None, setting="ModelFiles.directory")
  models = f"(there are '{run}/anchor', '{run}/baseline')"
  assert f"no checkpoint there {models}; train it first or bind ModelFiles.directory" in message


def test_other_things_that_are_there(run, monkeypatch):
  assert f"no tree.json in {run}/tree (there are '{run}/other_tree')" in said(read_meta, str(run / "tree"), "tree")
  message = said(PackedDataset, str(run / "packed/validation"))
  assert f"(there are '{run}/packed/train'); give the directory" in message
  assert f"({run} has 'mine.model'); give" in said(load_tokenizer, str(run / "tokenizer.model"))
  assert f"({run} has 'anchor', 'baseline'" in said(JsonlSource(pattern=f"{run}/*.json").parts)
  message = said(task_files, TaskSet(names=("boolq",), data=str(run / "packed")))
  assert "boolq.jsonl (its folder has 'train'); put the file there" in message
  monkeypatch.chdir(run)
  assert files.beside("cotrain", "checkpoints") == " (there are 'anchor', 'baseline')"
  assert files.beside("gs://bucket/x", "checkpoints") == ""


def test_fields_that_are_there(run):
  message = said(lambda: list(JsonlSource(pattern=f"{run}/mine.jsonl").records()))
  has = "the record has 'title', 'body'; JsonlSource.text_field says which one is the text"
  assert message.startswith(f"{run}/mine.jsonl:1: field 'text' missing ({has})")
  message = said(lambda: list(good_texts(JsonlSource(pattern=f"{run}/mine.jsonl"))))  # as `cluster` reads
  assert f"1 of 1 records are malformed (1 field 'text' missing), e.g. {run}/mine.jsonl:1 ({has})" in message
  assert "field 'query' is missing, the record has 'title', 'body'" in said(
    task_spec("boolq").reader, f"{run}/mine.jsonl"
  )


def test_columns_that_are_there(tmp_path):
  path = os.path.join(tmp_path, "a.parquet")
  parquet.write_table(pa.table({"url": ["u"], "body": ["b"]}), path)
  message = said(lambda: list(ParquetSource(pattern=path).records()))
  assert "the record has 'url', 'body'; ParquetSource.text_field says which one is the text" in message
  assert [r["text"] for r in ParquetSource(pattern=path, text_field="body").records()] == ["b"]
