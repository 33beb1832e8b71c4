"""A package of a user's, outside the repository, as CONTRIBUTING.md has it: its encoder, source, task and memory kind run."""

import json
import os
import pathlib
import re
import sqlite3
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What is loaded by who has read no gin file; then the saved configuration, as any other.
LOAD = """
import sys
import hiermem_jax as hm
from hiermem_jax import configuration

model = hm.load("run")
assert "mypkg" not in vars(hm) and "mypkg.ext" not in sys.modules
print(model.config.memory.kind, len(model.generate("The capital of", max_new_tokens=2)))
configuration.load(["run/config.gin"], [])
text = configuration.dry_run("run", run_dir="run")
assert "@SqliteSource()" in text and "NgramEncoder.length = 3" in text and "import mypkg.ext" in text
"""


def code(path):
  """The block of code that follows a file's name in CONTRIBUTING.md."""
  text = (ROOT / "CONTRIBUTING.md").read_text()
  return re.search(rf"^(?:New file )?`{path}`[^\n]*:\n\n```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A working directory with mine.gin and its data, and beside it the folder of the package."""
  folder = tmp_path_factory.mktemp("work")
  package = folder.parent / "packages/mypkg"
  package.mkdir(parents=True)
  (package / "__init__.py").write_text("")
  (package / "ext.py").write_text(code("mypkg/ext.py"))
  recipes = ("models/memory/gelu.py", "retrieval/encoders/ngram.py", "data/sources/sqlite.py")
  for path in recipes:
    (package / pathlib.Path(path).name).write_text(code(f"hiermem_jax/{path}"))
  (folder / "mine.gin").write_text(code("mine.gin"))
  countries = {f"Land{i}": f"City{i}" for i in range(40)}
  with sqlite3.connect(folder / "texts.sqlite") as database:
    database.execute("create table documents (text)")
    texts = [(f"The capital of {country} is {city}. " * 8,) for country, city in countries.items()]
    database.executemany("insert into documents values (?)", texts)
  lines = [json.dumps({"country": country, "capital": city}) for country, city in countries.items()]
  (folder / "capitals.jsonl").write_text("\n".join(lines[:8]))
  return folder


def python(folder, *arguments):
  packages = os.pathsep.join([str(ROOT), str(folder.parent / "packages")])
  environment = os.environ | {"PYTHONPATH": packages}
  done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-4000:]
  return done.stdout


@pytest.mark.slow
def test_the_chain_runs_with_its_parts(folder):
  python(folder, "-m", "hiermem_jax.run", "--gin_file=mine.gin", "--run_dir=run")
  encoder = json.loads((folder / "run/tree/encoder/encoder.json").read_text())
  assert encoder["kind"] == "mypkg.ngram:FittedNgramEncoder" and encoder["config"] == {"dim": 64, "length": 3}
  assert "SqliteSource(" in (folder / "run/packed/train/manifest.json").read_text()
  report = json.loads((folder / "run/evaluation_tasks/report.json").read_text())
  assert report["tasks"]["capitals"]["modes"]["fetched"]["count"] == 8
  assert python(folder, "-c", LOAD).split()[0] == "mypkg.gelu:GELU"
