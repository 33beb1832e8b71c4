"""Scripts of experiments/ as modules."""

import importlib.util
import pathlib
import sys

import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="session")
def script():
  """A function from a name to the module experiments/NAME.py."""

  def load(name):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # they import each other by these names
    spec.loader.exec_module(module)
    return module

  return load
