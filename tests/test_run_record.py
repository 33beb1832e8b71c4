"""What a run directory keeps of how its runs were started: both configurations resolve to the same, anywhere."""

import importlib.metadata
import json
import pathlib
import socket
import subprocess

import pytest

import hiermem_jax
from hiermem_jax import configuration, run_record
from hiermem_jax.errors import InputError
from hiermem_jax.verbs import VERBS

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_RUNS = sorted(path.stem for path in (_ROOT / "gin/runs").glob("*.gin"))
_CHAINS = {"quickstart": (), "real_text_small": ("CORPUS = '/d/train.jsonl'", "VALIDATION = '/d/validation.jsonl'")}
_FILLING = [verb for verb in VERBS.values() if verb.has_run_dir]


def resolved(verb, files, bindings):
  configuration.load([str(file) for file in files], bindings)
  return configuration.dry_run(verb, run_dir="")


def verbs_of(run):
  """The verbs that a named run says all of, and what it leaves to the command line."""
  if run in _CHAINS:
    # The question sets are bound elsewhere; a tokenizer of its own needs no more than a corpus.
    return [(verb.name, _CHAINS[run]) for verb in _FILLING if verb.name not in ("evaluate_tasks", "train_tokenizer")]
  return [("train", ("train.dataset = '/data/train'",)), ("merge", ()), ("evaluate", ())]


@pytest.mark.parametrize("run", _RUNS)
def test_both_saved_configurations_resolve_to_the_same_with_their_verb(tmp_path, monkeypatch, run):
  monkeypatch.chdir(tmp_path)
  for verb, bindings in verbs_of(run):
    name = VERBS[verb].saved_as
    text = resolved(verb, [f"gin/runs/{run}.gin"], bindings)
    (tmp_path / verb).mkdir()
    path = tmp_path / verb / name
    path.write_text(text)
    run_record.start(str(path), text, verb, [f"gin/runs/{run}.gin"], bindings)
    assert resolved(verb, [path], ()) == text, verb
    assert resolved(verb, [path.with_name(run_record.short_name(name))], ()) == text, verb
  assert len(list(tmp_path.iterdir())) >= 3


def test_the_short_configuration_can_be_edited(tmp_path):
  (tmp_path / "own.gin").write_text("evaluate.title = 'own'\n")
  files, bindings = ["gin/runs/quickstart.gin", str(tmp_path / "own.gin")], ["SEED = 3", "STEPS=7"]
  short = run_record.short_text(files, bindings)
  assert short.splitlines()[1:] == [
    "include 'gin/runs/quickstart.gin'",
    f"include '{tmp_path}/own.gin'",
    "SEED = 3",
    "STEPS=7",
  ]
  (tmp_path / "config.short.gin").write_text(f"{short}MemoryConfig.kind = 'kv'\n")
  text = resolved("run", [tmp_path / "config.short.gin"], ())
  assert "cotrain/MemoryConfig.kind = 'kv'\n" in text and "SEED = 3\n" in text and "own" in text


def test_a_run_of_its_own_short_configuration_keeps_it(tmp_path):
  path, short = tmp_path / "evaluate.config.gin", tmp_path / "evaluate.config.short.gin"
  for files, bindings in (
    (["gin/runs/quickstart.gin"], ["evaluate.title = 'a'"]),
    ([short], []),
    ([path], []),
    ([short], ["evaluate.title = 'b'"]),  # `evaluate` may be given another configuration
    ([path], ["evaluate.title = 'c'"]),
  ):
    before = short.read_text() if short.exists() else None
    text = resolved("evaluate", files, bindings)
    path.write_text(text)
    run_record.start(str(path), text, "evaluate", [str(file) for file in files], bindings)
    assert resolved("evaluate", [short], ()) == text
    assert bindings or short.read_text() == before
  assert len(run_record.read(str(tmp_path))) == 5


def test_a_record_says_what_ran_where(tmp_path, monkeypatch):
  path = tmp_path / "config.gin"
  monkeypatch.setattr("sys.argv", ["hiermem", "run", "--gin_bindings=SEED = 1"])
  for _ in range(2):
    run_record.start(str(path), "a = 1\n", "run", [], [])
  first, second = map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())
  assert first["verb"] == second["verb"] == "run" and first["config"] == "config.gin"
  assert first["command"] == "hiermem run '--gin_bindings=SEED = 1'"
  assert first["host"] == socket.gethostname() and first["version"] == hiermem_jax.__version__
  assert first["packages"]["jax"] == importlib.metadata.version("jax")
  if (_ROOT / ".git").exists():
    head = subprocess.run(["git", "-C", _ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert first["commit"] == head.stdout.strip() and isinstance(first["dirty"], bool)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(InputError, match="--gin_file=nope.gin: no such file"):
    run_record.short_text(["nope.gin"], [])
