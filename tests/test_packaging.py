"""The distribution: what a wheel holds and runs without a checkout, and that imports and requirements agree."""

import ast
import functools
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("hiermem_jax", "gin", "tpu_setup")
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What the code of each folder may import.
DECLARED = {
  "hiermem_jax": ["requirements.txt"],
  "tpu_setup": ["requirements.txt"],
  "experiments": ["requirements.txt", "tests/requirements.txt"],
  "tests": ["requirements.txt", "tests/requirements.txt", "tests/mutation/requirements.txt"],
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """What a wheel installs; it is built from the unpacked sdist, as pip builds it."""
  folder = tmp_path_factory.mktemp("distribution")
  source = folder / "source"
  for name in FOLDERS:
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  build(source, "build_sdist", folder)
  with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
    archive.extractall(folder / "sdist", filter="data")
  build(next((folder / "sdist").iterdir()), "build_wheel", folder)
  with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
    archive.extractall(folder / "installed")
  return folder / "installed"


def build(source, what, target):
  done = subprocess.run([sys.executable, "-c", BUILD, what, str(target)], cwd=source, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_wheel_holds_all_that_a_checkout_has(installed):
  wanted = {path.relative_to(ROOT) for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()}
  wanted = {str(path) for path in wanted if "__pycache__" not in path.parts and path.suffix != ".md"}
  found = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
  assert {f"hiermem_jax/{path}" if path.startswith("gin/") else path for path in wanted} == {
    path for path in found if ".dist-info/" not in path
  }


@pytest.mark.slow
@pytest.mark.parametrize(
  ("arguments", "printed"),
  [
    (["-m", "hiermem_jax.describe", "--gin_file=gin/runs/a2.gin"], "18,063,360"),
    (["-c", "import gin, hiermem_jax; print(gin.__file__, hiermem_jax.__file__)"], "gin/__init__.py"),
    (["-m", "tpu_setup", "--help"], "usage"),
  ],
)
def test_it_runs_anywhere(installed, tmp_path, arguments, printed):
  environment = os.environ | {"PYTHONPATH": str(installed)}
  done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.returncode == 0 and printed in done.stdout, done.stdout + done.stderr
  assert str(ROOT / "hiermem_jax") not in done.stdout


def requirements(path):
  """Line by name of package."""
  lines = [line for line in (ROOT / path).read_text().splitlines() if line and not line.startswith("#")]
  return {canonicalize_name(Requirement(line.split("#")[0]).name): line for line in lines}


@functools.cache
def packages_of_modules():
  return {
    module: {canonicalize_name(package) for package in packages}
    for module, packages in importlib.metadata.packages_distributions().items()
  }


def imports(folder):
  """(file, top module) of every import of what is neither in Python nor here; peers are drivers of other code bases."""
  here = {path.stem for name in DECLARED for path in (ROOT / name).rglob("*.py")} - packages_of_modules().keys()
  for path in sorted(path for path in (ROOT / folder).rglob("*.py") if path.parent.name != "peers"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      else:
        names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
      known = {"_typeshed"} | sys.stdlib_module_names | DECLARED.keys() | here
      yield from ((path.relative_to(ROOT), name) for name in {name.split(".")[0] for name in names} - known)


@pytest.mark.parametrize("folder", DECLARED)
def test_what_is_imported_is_declared(folder):
  declared = {name for path in DECLARED[folder] for name in requirements(path)}
  extras = PROJECT["optional-dependencies"].values()
  declared |= {canonicalize_name(Requirement(line).name) for extra in extras for line in extra}
  undeclared = {
    f"{path}: {module}"
    for path, module in imports(folder)
    if not packages_of_modules().get(module, {canonicalize_name(module)}) & declared
  }
  assert undeclared == set()


def test_what_is_declared_is_imported():
  """Or its line says why it is there."""
  modules = {module for folder in ("hiermem_jax", "tpu_setup") for _, module in imports(folder)}
  imported = {package for module in modules for package in packages_of_modules().get(module, ())}
  lines = requirements("requirements.txt")
  assert {name for name, line in lines.items() if name not in imported and " # " not in f" {line}"} == set()


def test_every_requirement_has_a_lower_bound():
  lines = [line for path in ("requirements.txt", "tests/requirements.txt") for line in requirements(path).values()]
  lines += [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
  lines = [line for line in lines if not re.match(r"jax\[tpu\]|types-", line)]  # bound with jax; only for mypy
  assert [line for line in lines if not re.search(r"[>=]=", line)] == []
