"""The recipes of CONTRIBUTING.md, applied as they stand there to a copy of the repository, do what they say.

A recipe is a section with blocks of code: "New file `path`:" is followed by the file, "In `path`:" by changes of a file
that is there (lines with + are new, lines with - go, the others say where), and a shell block names the tests to run.
All recipes are applied to one copy, and one process runs all of their tests.
"""

import importlib.util
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from hiermem_jax import sweep

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("hiermem_jax", "gin", "experiments", "tests", "tpu_setup", "docs", "notebooks")
RECIPES = ("memory kind", "encoder", "source", "task", "experiment")
BLOCK = re.compile(
  r"^(?:(?P<verb>New file|In) `(?P<path>[^`]+)`[^\n]*:\n\n)?```(?P<kind>\w+)\n(?P<code>.*?)^```", re.M | re.S
)
# One process for all recipes, because most of the time is spent on starting it.
DRIVER = """
import json, pytest, sys
print(json.dumps({name: int(pytest.main(arguments)) for name, arguments in json.loads(sys.argv[1]).items()}))
"""
PLAN = ["tests/test_layering.py", "-k", "plan or cycle or every_module"]


def section(recipe):
  text = (ROOT / "CONTRIBUTING.md").read_text()
  return re.search(rf"^## A new {recipe}\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]


def changed(text, change):
  """A text with a change made in the one place that its context names."""
  lines = [(line[:1], line[1:]) for line in change.splitlines()]
  before, after = ("".join(f"{line}\n" for mark, line in lines if mark != other) for other in "+-")
  assert f"\n{text}".count(f"\n{before}") == 1, f"not in one place:\n{before}"
  return f"\n{text}".replace(f"\n{before}", f"\n{after}")[1:]


def apply(tree, recipe):
  """Makes the changes of a recipe; returns the arguments of `make test` that it names."""
  path, arguments = None, None
  for block in BLOCK.finditer(section(recipe)):
    if block["verb"] == "New file":
      path = tree / block["path"]
      assert not path.exists(), f"{path} is there already"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(block["code"])
    elif block["kind"] == "diff":
      path = tree / block["path"] if block["path"] else path
      path.write_text(changed(path.read_text(), block["code"]))
    else:
      assert block["kind"] == "bash" and arguments is None, block[0]
      command = shlex.split(block["code"])
      assert command[:2] == ["make", "test"] and len(command) == 3
      arguments = shlex.split(command[2].removeprefix("ARGS="))
  return arguments


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
  """A copy of the repository with all recipes applied, and the arguments of each recipe's tests."""
  tree = tmp_path_factory.mktemp("repository")
  for folder in filter(pathlib.Path.is_dir, map(ROOT.joinpath, FOLDERS)):
    shutil.copytree(folder, tree / folder.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
  for file in filter(pathlib.Path.is_file, ROOT.iterdir()):
    shutil.copy(file, tree)
  return tree, {recipe: apply(tree, recipe) for recipe in RECIPES}


@pytest.fixture(scope="module")
def results(repository):
  """Exit status of the tests of each recipe and of the library's plan, and what they printed."""
  tree, arguments = repository
  command = [sys.executable, "-c", DRIVER, json.dumps(arguments | {"plan": PLAN})]
  done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.parametrize("what", [*RECIPES, "plan"])
def test_the_tests_that_a_recipe_names_pass(what, results):
  status, output = results
  assert status[what] == 0, output


def test_the_code_of_recipes_is_in_our_style(repository):
  tree, _ = repository
  paths = {block["path"] for recipe in RECIPES for block in BLOCK.finditer(section(recipe)) if block["path"]}
  paths = sorted(path for path in paths if path.endswith(".py"))
  assert len(paths) >= 10
  for command in (["check"], ["format", "--check"]):
    ruff = [sys.executable, "-m", "ruff", *command, *paths]
    done = subprocess.run(ruff, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_new_experiment_fills_its_readme(repository, monkeypatch):
  """The recipe's two commands, with runs that take no time in place of training."""
  tree, _ = repository
  folder = tree / "experiments/learning_rate"
  monkeypatch.chdir(tree)
  spec = sweep.load(folder / "sweep.json")

  def launch(job, log, worker, started):
    log.write_text("")
    (job.directory / "evaluation").mkdir(parents=True)
    fetched = {"loss": 1 - 10 * job.settings.get("rate", 0), "probes": [{"count": 10, "accuracy": 0.5}] * 4}
    (job.directory / "evaluation/report.json").write_text(json.dumps({"series": {"fetched": fetched}}))
    return 0

  jobs = list(sweep.jobs(spec, tree / "runs"))
  assert sweep.Runner(spec, folder / "results.jsonl", 1, launch).run(jobs) == []
  module = importlib.util.spec_from_file_location("report_of_recipe", tree / "experiments/report.py")
  report = importlib.util.module_from_spec(module)
  monkeypatch.setitem(sys.modules, "report_of_recipe", report)
  module.loader.exec_module(report)
  assert report.main([str(folder)]) == 0
  readme = (folder / "README.md").read_text()
  assert "| 0.003 | 0.970 ± 0.000 | 50.0 ± 0.0 |" in readme and "| 3e-3 better than 1e-3 | 3 of 3 |" in readme
  assert (folder / "rate.png").exists()
