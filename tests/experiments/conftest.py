"""Scripts of experiments/ as modules, and as commands in this process."""

import importlib.util
import pathlib
import sys
import types

import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="session")
def script():
  """A function from a path below experiments/, without its ending, to the script as a module."""

  def load(path):
    name = pathlib.Path(path).name
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{path}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # they import each other by these names
    spec.loader.exec_module(module)
    return module

  return load


@pytest.fixture
def run(script, monkeypatch, capsys):
  """Runs a script that needs no TensorFlow, with flags, in this process; its exit status, output and errors.

  Further arguments replace constants of the script.
  """

  def run_script(path, *flags, **constants):
    monkeypatch.syspath_prepend((EXPERIMENTS / path).parent)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    module = script(path)
    vars(module).update(constants)
    capsys.readouterr()
    try:
      status = module.main([str(flag) for flag in flags])
    except SystemExit as stop:  # of argparse
      status = stop.code
    output = capsys.readouterr()
    return types.SimpleNamespace(returncode=status, out=output.out, err=output.err)

  return run_script
