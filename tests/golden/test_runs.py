"""Every named run resolves to the configuration that is written down for it.

A change of a default, of a shared gin file or of a run shows up here as a difference of text. To accept it:

  UPDATE_GOLDEN=1 python -m pytest tests/golden/test_runs.py
"""

import difflib
import os
import pathlib

import gin
import pytest

from hiermem_jax import configuration

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_GOLDEN = pathlib.Path(__file__).parent / "runs"
_RUNS = sorted(path.stem for path in (_ROOT / "gin/runs").glob("*.gin"))

# What these runs leave to the command line.
_BINDINGS = dict.fromkeys(
  ("a1", "a2", "a2_18b", "a3", "a4", "b1", "b2", "b3", "c1", "c2"), ("train.dataset = '/data/train'",)
)
_BINDINGS["real_text_small"] = ("CORPUS = '/data/train.jsonl'", "VALIDATION = '/data/validation.jsonl'")


def resolve(name: str) -> str:
  configuration.load([str(_ROOT / f"gin/runs/{name}.gin")], _BINDINGS.get(name, ()))
  verb = "run" if "stages" in gin.get_bindings("run", resolve_references=False) else "train"
  return configuration.dry_run(verb, run_dir="")


@pytest.mark.parametrize("name", _RUNS)
def test_run_resolves_to_its_golden_text(name):
  path = _GOLDEN / f"{name}.txt"
  text = resolve(name)
  if os.environ.get("UPDATE_GOLDEN"):
    path.write_text(text)
  stored = path.read_text() if path.exists() else ""
  changes = difflib.unified_diff(
    stored.splitlines(), text.splitlines(), "written down", "resolved now", n=0, lineterm=""
  )
  assert text == stored, (
    f"gin/runs/{name}.gin resolves to something else than {path.name}; if that is meant, run"
    " UPDATE_GOLDEN=1 python -m pytest tests/golden/test_runs.py\n" + "\n".join(changes)
  )


def test_no_golden_text_without_a_run():
  assert {path.stem for path in _GOLDEN.glob("*.txt")} <= set(_RUNS)


@pytest.mark.parametrize(
  "name, tokens, sequence_length",
  [
    ("a1", 2**40, 8192),
    ("a2", 2**40, 2048),
    ("a2_18b", 2**41, 2048),
    ("a4", 2**41, 2048),
    ("b1", 2**40, 8192),
    ("b2", 2**40, 2048),
    ("b3", 2**41, 8192),
    ("c1", 2**40, 8192),
    ("c2", 2**40, 2048),
  ],
)
def test_token_budget_is_the_papers(name, tokens, sequence_length):
  resolve(name)
  steps, batch_size = (gin.query_parameter(f"train.{argument}") for argument in ("steps", "batch_size"))
  assert steps * batch_size * sequence_length == tokens
