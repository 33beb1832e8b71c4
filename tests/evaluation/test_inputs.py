"""What an evaluation was made of: the same stays the same, and whatever is read or bound makes a difference."""

import json
import os
import pathlib
import shutil

import pytest

from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.evaluation import inputs
from hiermem_jax.evaluation.config import ModelFiles
from hiermem_jax.parallel import hosts


@pytest.fixture
def run_dir(tmp_path):
  """As far as digests look at it; 10 is the newest checkpoint, and not the last by name."""
  for step in (2, 10):
    (tmp_path / f"model/checkpoints/{step}/metadata").mkdir(parents=True)
    (tmp_path / f"model/checkpoints/{step}/metadata/metadata").write_text(f"step {step}")
  for name in ("tree", "data"):
    (tmp_path / name).mkdir()
  for name in ("tree/tree.json", "data/manifest.json", "tokenizer.model", "probes.jsonl"):
    (tmp_path / name).write_text(name)
  return tmp_path


def describe(run_dir, bank_dtype=None, **settings):
  probes = JsonlSource(pattern=str(run_dir / "probes.jsonl"))
  settings = {"modes": ("none",), "probes": probes} | settings
  model = ModelFiles(directory="model", bank_dtype=bank_dtype)
  found = inputs.describe(str(run_dir), model, {"data": "data", "baseline": None}, **settings)
  return json.loads(json.dumps(found))


@pytest.mark.parametrize(
  "name", ["model/checkpoints/10/metadata/metadata", "tree/tree.json", "data/manifest.json", "tokenizer.model"]
)
def test_another_content_is_another_input(run_dir, name):
  before = describe(run_dir)
  (run_dir / "model/checkpoints/2/metadata/metadata").write_text("an older checkpoint")
  os.utime(run_dir / name, (0, 0))
  assert describe(run_dir) == before
  (run_dir / name).write_text("other")
  assert describe(run_dir) != before


def test_another_setting_source_checkpoint_or_code_is_another_input(run_dir, monkeypatch):
  before = describe(run_dir)
  assert describe(run_dir, modes=("none", "fetched")) != before
  assert describe(run_dir, bank_dtype="bfloat16") != before
  (run_dir / "probes.jsonl").write_text("other questions")
  assert describe(run_dir) != before
  before = describe(run_dir)
  shutil.copytree(run_dir / "model/checkpoints/10", run_dir / "model/checkpoints/11")
  assert describe(run_dir) != before
  before = describe(run_dir)
  monkeypatch.setattr(hosts, "facts", lambda: {"hiermem_jax": "other"})
  assert describe(run_dir) != before


def test_a_report_that_is_being_replaced_is_of_nothing(run_dir):
  directory, made_of = str(run_dir / "evaluation"), describe(run_dir)
  assert not inputs.is_made_of(directory, made_of)
  inputs.remember(directory, made_of)
  for name in ("report.json", "report.png"):  # a report that was deleted is made again
    assert not inputs.is_made_of(directory, made_of)
    (pathlib.Path(directory) / name).write_text("{}")
  assert inputs.is_made_of(directory, made_of) and not inputs.is_made_of(directory, made_of | {"code": ""})
  inputs.forget(directory)
  assert not inputs.is_made_of(directory, made_of) and pathlib.Path(directory).exists()
