"""The configuration that a run directory keeps."""

import pathlib

import pytest

from hiermem_jax import run_config
from hiermem_jax.errors import InputError


def test_save_accepts_the_same_and_rejects_another(tmp_path):
  path = str(tmp_path / "run" / "config.gin")
  run_config.save(path, "a = 1\nb = 2\n")
  run_config.save(path, "a = 1\nb = 2\n")
  with pytest.raises(InputError, match=r"config\.gin: .*'b = 2'.*'b = 3'.*use another --run_dir or delete"):
    run_config.save(path, "a = 1\nb = 3\n")
  assert pathlib.Path(path).read_text() == "a = 1\nb = 2\n"


def test_the_first_difference_is_shown(tmp_path):
  path = str(tmp_path / "config.gin")
  run_config.save(path, "a = 1\nb = 2\nc = 3\n")
  for text, words in (
    ("a = 1\nb = 4\nc = 5\n", "there: 'b = 2', now: 'b = 4'"),
    ("a = 1\n", "there: 'b = 2', now: 'nothing'"),
    ("a = 1\nb = 2\nbb = 7\nc = 3\nd = 4\n", "there: 'nothing', now: 'bb = 7'"),
  ):
    with pytest.raises(InputError) as caught:
      run_config.save(path, text)
    assert words in str(caught.value)


def test_replace_keeps_the_newer(tmp_path):
  path = tmp_path / "evaluate.config.gin"
  run_config.save(str(path), "a = 1\n")
  run_config.save(str(path), "a = 2\n", replace=True)
  assert path.read_text() == "a = 2\n"


def test_discard_keeps_a_run_that_has_begun(tmp_path):
  path = tmp_path / "config.gin"
  path.write_text("a = 1\n")
  for name in ("config.short.gin", "runs.jsonl"):
    (tmp_path / name).write_text("")
  (tmp_path / "checkpoints").mkdir()
  run_config.discard(str(path))
  assert path.exists()
  (tmp_path / "checkpoints").rmdir()
  run_config.discard(str(path))
  assert not list(tmp_path.iterdir())
