"""gin files as text: where includes are found, what a configuration imports before anything runs."""

import pathlib
import sys

import pytest

from hiermem_jax import config_files, configuration
from hiermem_jax.errors import InputError

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def bound(*files, bindings=()):
  """What `merge.directory` is bound to by gin files."""
  configuration.load(list(map(str, files)), bindings)
  return configuration.bound_argument("merge", "directory")


def test_an_include_is_found_beside_its_file_then_here_then_in_the_checkout(tmp_path, monkeypatch):
  there, here = tmp_path / "there", tmp_path / "here"
  for folder in (there / "gin/runs", here / "gin/runs"):
    folder.mkdir(parents=True)
  (there / "run.gin").write_text("merge.directory = 'before'\ninclude 'gin/runs/a2.gin'  # a part\n")
  monkeypatch.chdir(here)
  assert bound(there / "run.gin") == "before"
  assert configuration.bound_argument("train", "init_from") == "../a1"  # the checkout's a2.gin
  (here / "gin/runs/a2.gin").write_text("merge.directory = 'here'\n")
  assert bound(there / "run.gin") == "here"
  (there / "gin/runs/a2.gin").write_text("include 'part.gin'\n")  # beside a2.gin itself
  (there / "gin/runs/part.gin").write_text("merge.directory = 'there'\n")
  assert bound(there / "run.gin") == "there"
  (there / "run.gin").write_text("include 'gin/runs/a2.gin'\nmerge.directory = 'after'\n")
  assert bound(there / "run.gin") == "after"


def test_a_missing_include_names_the_places(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "parts").mkdir()
  (tmp_path / "parts/run.gin").write_text("\ninclude 'nope.gin'\n")
  with pytest.raises(InputError) as caught:
    configuration.load(["parts/run.gin"], [])
  assert str(caught.value) == (
    f"parts/run.gin, line 2: include 'nope.gin': no such file; looked for {tmp_path}/parts/nope.gin,"
    f" {tmp_path}/nope.gin, {_ROOT}/nope.gin; correct the path"
  )


def test_a_file_that_includes_itself_is_refused(tmp_path):
  (tmp_path / "a.gin").write_text("include 'b.gin'\n")
  (tmp_path / "b.gin").write_text("include 'a.gin'\n")
  with pytest.raises(InputError, match=r"b.gin, line 1: include 'a.gin': this file includes itself"):
    configuration.load([str(tmp_path / "a.gin")], [])


def test_a_file_is_not_given_as_a_binding():
  with pytest.raises(InputError, match="give it with --gin_file"):
    configuration.load([], ["include 'gin/runs/a2.gin'"])


def test_imports_are_listed_and_not_made(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / "stranger.py").write_text("raise SystemError('imported')\n")
  (tmp_path / "part.gin").write_text("# a comment\nimport stranger\n")
  (tmp_path / "run.gin").write_text("include 'part.gin'\nimport os.path\ntrain.steps = 3\n")
  lines = config_files.imports([str(tmp_path / "run.gin")], ["from json import decoder"])
  assert lines == [
    f"{tmp_path}/part.gin, line 2: imports stranger",
    f"{tmp_path}/run.gin, line 2: imports os.path",
    "--gin_bindings=from json import decoder: imports json.decoder",
  ]
  assert "stranger" not in sys.modules
