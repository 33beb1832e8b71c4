"""The recipes of CONTRIBUTING.md, applied as they stand there to a copy of the repository, do what they say.

A recipe is a section with "New file `path`" and "In `path`, below `line`" (or above) in front of code blocks, and shell
blocks with `make test`. All recipes are applied to one copy, and one process runs all of their tests.
"""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
COPIED = ("hiermem_jax", "gin", "experiments", "tests", "tpu_setup", "docs", "pyproject.toml")
COPIED += ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")
RECIPES = ("memory kind", "experiment")
BLOCK = re.compile(
  r"^(?:New file `(?P<new>[^`]+)`|In `(?P<old>[^`]+)`, (?P<where>below|above) (?P<ticks>`+) ?(?P<line>.+?) ?(?P=ticks))"
  r"[^\n]*:\n\n```\w+\n(?P<code>.*?)^```",
  re.MULTILINE | re.DOTALL,
)
TESTS = re.compile(r"^make test ARGS=(.*)$", re.MULTILINE)
# One process for all: what it costs is to start it.
DRIVER = """
import json, pytest, sys
print(json.dumps({name: int(pytest.main(arguments)) for name, arguments in json.loads(sys.argv[1]).items()}))
"""


def section(recipe):
  text = (ROOT / "CONTRIBUTING.md").read_text()
  return re.search(rf"^## A new {recipe}\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]


def apply(tree, text):
  for block in BLOCK.finditer(text):
    if block["new"]:
      path = tree / block["new"]
      assert not path.exists(), f"{path} is there already"
      path.parent.mkdir(exist_ok=True)
      path.write_text(block["code"])
      continue
    path = tree / block["old"]
    lines = path.read_text().splitlines(keepends=True)
    found = [number for number, line in enumerate(lines) if line.strip() == block["line"].strip()]
    assert len(found) == 1, f"{block['old']}: {len(found)} lines {block['line']!r}"
    at = found[0] + (block["where"] == "below")
    path.write_text("".join([*lines[:at], block["code"], *lines[at:]]))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
  """A copy of the repository with all recipes applied."""
  tree = tmp_path_factory.mktemp("repository")
  ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
  for name in COPIED:
    (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(
      ROOT / name, tree / name, **({"ignore": ignored} if (ROOT / name).is_dir() else {})
    )
  for recipe in RECIPES:
    apply(tree, section(recipe))
  return tree


@pytest.fixture(scope="module")
def results(tree):
  """Exit status of the tests of each recipe, and what they printed."""
  arguments = {recipe: shlex.split(shlex.split(TESTS.search(section(recipe))[1])[0]) for recipe in RECIPES}
  command = [sys.executable, "-c", DRIVER, json.dumps(arguments)]
  done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_tests_that_a_recipe_names_pass(recipe, results):
  status, output = results
  assert status[recipe] == 0, output
