"""What differs between two gin files or run directories."""

import json
import pathlib

import pytest

from hiermem_jax import config_diff, configuration, run_record
from hiermem_jax.errors import InputError

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_QUICKSTART = str(_ROOT / "gin/runs/quickstart.gin")


def differences(a, b):
  sides = [config_diff.Side.of(str(path)) for path in (a, b)]
  found = config_diff.differences(*sides, lambda files: configuration.load(files, []))
  return found, config_diff.text(*sides, found), json.loads(config_diff.as_json(*sides, found))


def run_directory(path, verb, *bindings):
  """A directory as `verb` leaves it when it starts on the quickstart."""
  configuration.load([_QUICKSTART], bindings)
  text = configuration.dry_run(verb, run_dir="")
  path.mkdir(exist_ok=True)
  file = path / {"run": "config.gin"}.get(verb, f"{verb}.config.gin")
  file.write_text(text)
  run_record.start(str(file), text, verb, [_QUICKSTART], bindings)
  return path


def test_a_run_directory_is_as_its_gin_file(tmp_path):
  directory = run_directory(tmp_path / "run", "run")
  assert differences(_QUICKSTART, directory)[1] == differences(directory, _QUICKSTART)[1] == "no difference"
  (tmp_path / "own.gin").write_text(f"include '{directory}/config.short.gin'\nMemoryConfig.kind = 'kv'\n")
  assert differences(directory, tmp_path / "own.gin")[0]["configuration"] == [
    ("cotrain/MemoryConfig.kind", "'ffn'", "'kv'")
  ]


def test_two_gin_files(tmp_path):
  a, b = _ROOT / "gin/runs/a2.gin", _ROOT / "gin/runs/a1.gin"
  found, text, as_json = differences(a, b)
  assert ("train.steps", "524288", "1048576") in found["configuration"]
  assert ("prepare.tree", "'tree'", "None") in found["configuration"]  # whatever verb reads it
  assert ("MemoryConfig", "present", "") in found["configuration"]  # one line for all that it holds
  assert not [name for name, _, _ in found["configuration"] if name.startswith("MemoryConfig.")]
  lines = text.splitlines()
  assert lines[0] == f"configuration: {a} -> {b}"
  assert "  train.steps: 524288 -> 1048576" in lines and f"  MemoryConfig: only in {a}" in lines
  assert len(lines) == len(as_json["configuration"]) + 1
  assert {"name": "MemoryConfig", "a": "present", "b": None} in as_json["configuration"]


def test_macros_are_what_they_stand_for(tmp_path):
  (tmp_path / "a.gin").write_text("train.steps = %STEPS\nSTEPS = 3\nTaskSet.names = (%STEPS,)\n")
  (tmp_path / "b.gin").write_text("train.steps = 3\nTaskSet.names = (3,)\n")
  assert differences(tmp_path / "a.gin", tmp_path / "b.gin")[1] == "no difference"


def test_two_run_directories_with_code_and_data(tmp_path):
  a = run_directory(tmp_path / "a", "run")
  b = run_directory(tmp_path / "b", "run", "train.steps = 50")
  run_directory(b, "evaluate")
  lines = (b / "runs.jsonl").read_text().splitlines()
  newest = json.loads(lines[-1]) | {"version": "9.9.9"}
  newest["packages"]["jax"] = "1.2.3"
  (b / "runs.jsonl").write_text("\n".join([*lines[:-1], json.dumps(newest)]) + "\n")
  for directory, tree in ((a, "aaaa"), (b, "bbbb")):
    (directory / "packed/train").mkdir(parents=True)
    manifest = {"tree_fingerprint": tree, "tokenizer_fingerprint": "same"}
    (directory / "packed/train/manifest.json").write_text(json.dumps(manifest))
    for step, fingerprint in ((10, tree), (9, "old")):
      metadata = directory / f"cotrain/checkpoints/{step}/metadata/metadata"
      metadata.parent.mkdir(parents=True)
      metadata.write_text(json.dumps({"tree_fingerprint": fingerprint}))
  found, text, _ = differences(a, b)
  steps = [(f"{scope}/train.steps", "1000", "50") for scope in ("anchor", "baseline", "cotrain")]
  assert found["configuration"] == [("evaluate", "", "present"), *steps]
  assert [(name, after) for name, _, after in found["code"]] == [("jax", "1.2.3"), ("version", "9.9.9")]
  names = [name for name, _, _ in found["data"]]
  assert names == ["cotrain/checkpoints tree", "packed/train dataset", "packed/train tree"]
  assert "  packed/train tree: aaaa -> bbbb" in text.splitlines()


def test_where_there_is_nothing_to_compare(tmp_path):
  with pytest.raises(InputError, match=r"no config.gin and no VERB.config.gin there; name a run directory"):
    differences(tmp_path, _QUICKSTART)
  with pytest.raises(InputError, match=r"--diff nope: no such file; looked for"):
    differences("nope", _QUICKSTART)
