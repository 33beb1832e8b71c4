"""Files appear whole or not at all; nothing else in the project writes a temporary file and renames it."""

import errno
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from hiermem_jax import files
from hiermem_jax.errors import InputError

_ROOT = pathlib.Path(__file__).parents[1]


def test_old_content_stays_until_the_new_one_is_complete(tmp_path):
  path = tmp_path / "a.txt"
  files.write_text(path, "old")
  with files.written(path) as file:
    file.write(b"new")
    file.flush()
    assert path.read_text() == "old"
  assert path.read_text() == "new"
  assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_no_temporary_one(tmp_path, error):
  path = tmp_path / "a.txt"
  files.write_text(path, "old")
  with pytest.raises(error), files.written(path) as file:
    file.write(b"half of the n")
    raise error
  with pytest.raises(error), files.replaced(path) as temporary:
    temporary.write_text("half of the n")
    raise error
  with pytest.raises(TypeError):
    files.write_json(path, {"a": object()})
  with pytest.raises(AttributeError):
    files.write_arrays(path, a=_Unwritable())
  assert path.read_text() == "old"
  assert os.listdir(tmp_path) == ["a.txt"]


class _Unwritable:
  """What no array can be made of."""

  def __array__(self, *unused, **unused_names):
    raise AttributeError("no array")


def test_failed_rename_leaves_no_temporary_file(tmp_path):
  (tmp_path / "a" / "b").mkdir(parents=True)  # a folder that is not empty cannot be replaced by a file
  with pytest.raises(OSError):
    files.write_text(tmp_path / "a", "text")
  assert os.listdir(tmp_path) == ["a"]


def test_killed_process_leaves_the_old_file(tmp_path):
  path = tmp_path / "a.txt"
  files.write_text(path, "old")
  script = f"""
import os
from hiermem_jax import files
with files.written({str(path)!r}) as file:
  file.write(b"half of the n")
  file.flush()
  os._exit(9)
"""
  assert subprocess.run([sys.executable, "-c", script], cwd=_ROOT, check=False).returncode == 9
  assert path.read_text() == "old"


def test_what_is_written_is_read(tmp_path):
  value = {"b": [1, 2.5, None], "a": "Ångström ▸"}
  files.write_json(tmp_path / "new" / "folder" / "a.json", value)
  assert files.read_json(tmp_path / "new" / "folder" / "a.json") == value
  arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.zeros(0, np.uint64)}
  files.write_arrays(tmp_path / "a.npz", **arrays)
  read = files.read_arrays(tmp_path / "a.npz")
  assert read.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(read[name], array)
    assert read[name].dtype == array.dtype
  files.write_text(tmp_path / "a.txt", "Ångström ▸\n")
  assert (tmp_path / "a.txt").read_bytes() == "Ångström ▸\n".encode()


def test_import_is_light():
  script = "import sys, hiermem_jax.files; print(*{'numpy', 'etils', 'jax', 'tensorflow'} & set(sys.modules))"
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=_ROOT)
  assert done.stdout.strip() == ""


def test_no_other_module_renames_a_temporary_file():
  allowed = {
    "hiermem_jax/files.py",
    "hiermem_jax/training/checkpoint.py",  # moves a damaged checkpoint, a folder, out of the way
  }
  found = {
    str(path.relative_to(_ROOT))
    for folder in ("hiermem_jax", "experiments", "tpu_setup")
    for path in (_ROOT / folder).rglob("*.py")
    if any(word in path.read_text() for word in ("os.replace(", "os.rename(", ".rename(", "temporary.replace("))
  }
  assert found <= allowed


@pytest.mark.parametrize("content", ['{"a": 1', "", "[1]", "\x00\x00"])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, content):
  path = tmp_path / "a.json"
  path.write_text(content)
  with pytest.raises(InputError) as caught:
    files.read_json(path)
  assert str(caught.value).startswith(f"{path}: damaged, not a JSON object (") and "\n" not in str(caught.value)
  path.write_text(f'{{"a": 1}}\n{content}\n')
  with pytest.raises(InputError, match=f"{path}, line 2: damaged"):
    files.read_jsonl(path, growing=True)


def test_lines_of_a_file_that_grows(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text('{"a": 1}\n{"a": 2}\n')
  assert files.read_jsonl(path) == files.read_jsonl(path, growing=True) == [{"a": 1}, {"a": 2}]
  path.write_text('{"a": 1}\n{"a": 2}')
  assert files.read_jsonl(path) == [{"a": 1}, {"a": 2}]
  path.write_text('{"a": 1}\n{"a"')
  assert files.read_jsonl(path, growing=True) == [{"a": 1}]


def test_what_may_pass_is_tried_three_times(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "_RETRY_PAUSES", (0.0, 0.0))
  for error, tries in (
    (OSError(errno.EIO, "Input/output error"), 3),
    (TimeoutError("no answer"), 3),
    (FileNotFoundError(errno.ENOENT, "No such file"), 1),
    (ValueError("not json"), 1),
  ):
    calls = []

    def read(error=error, calls=calls):
      calls.append(1)
      raise error

    with pytest.raises(type(error)):
      files.patiently(read)
    assert len(calls) == tries
  assert files.patiently(lambda: 3) == 3
  limits = str(files.unreadable("a/b", OSError(errno.EMFILE, "Too many open files")))
  assert "a/b could not be read in three tries (Too many open files)" in limits and "ulimit -n" in limits


def test_names_of_directories_are_no_patterns(tmp_path):
  folder = tmp_path / "a[b]*"
  folder.mkdir()
  for name in ("part-2.npz", "part-1.npz", "other"):
    (folder / name).touch()
  assert [path.name for path in files.matching(folder, "part-*.npz")] == ["part-1.npz", "part-2.npz"]
  assert files.matching(folder / "missing", "*") == []
  files.refuse_pattern(tmp_path)
  with pytest.raises(InputError, match=r"a\[b\]\*: has \* \[ \] in its path"):
    files.refuse_pattern(folder)
