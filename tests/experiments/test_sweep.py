"""The command line of sweeps, and the sweeps of this repository."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from hiermem_jax import sweep

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path):
  """The file of a sweep of one run and its setup."""
  (tmp_path / "setup.gin").write_text("")
  spec = {"seeds": [0], "setup": str(tmp_path / "setup.gin"), "result": "report.json", "runs": [{"name": "one"}]}
  (tmp_path / "sweep.json").write_text(json.dumps(spec))
  return tmp_path / "sweep.json"


def test_dry_run_prints_the_commands(script, file, capsys):
  assert script("sweep").main([str(file), "--runs_root=runs", "--dry_run"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2 and "setup.gin" in lines[0] and lines[1].endswith("runs/one_0")


def test_bad_sweep_is_one_line(script, file, capsys):
  file.write_text("{")
  assert script("sweep").main([str(file), "--runs_root=runs"]) == 2
  assert capsys.readouterr().err.startswith(f"error: {file}: ")


@pytest.mark.parametrize(
  "folder_name", sorted(path.parent.name + "/" + path.name for path in ROOT.glob("experiments/*/sweep*.json"))
)
def test_sweeps_here_are_sweeps(folder_name, monkeypatch):
  monkeypatch.chdir(ROOT)
  spec = sweep.load(ROOT / "experiments" / folder_name)
  assert spec["seeds"] == [0, 1, 2]
  assert len(list(sweep.jobs(spec, pathlib.Path("runs")))) == 3 * (1 + len(spec["runs"]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_children(file, tmp_path, number):
  """In a process of its own that inherits the signal as ignored, as nohup and a script's `&` leave it."""
  child = """
    import pathlib, signal, sys, time
    def end(number, frame):
      pathlib.Path("ended").touch()
      sys.exit(75)
    signal.signal(signal.SIGTERM, end)
    pathlib.Path("started").touch()
    time.sleep(60)
  """
  program = f"""
    import sys
    sys.path.insert(0, {str(ROOT / "experiments")!r})
    from hiermem_jax import sweep as runs
    import sweep
    runs.Job.command = property(lambda job: [sys.executable, "-c", {textwrap.dedent(child)!r}])
    sys.exit(sweep.main([{str(file)!r}, "--runs_root=runs"]))
  """
  process = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(program)],
    start_new_session=True,
    cwd=tmp_path,
    preexec_fn=lambda: signal.signal(number, signal.SIG_IGN),
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  deadline = time.monotonic() + 60
  while not (tmp_path / "started").exists() and time.monotonic() < deadline:
    time.sleep(0.02)
  process.send_signal(number)
  assert process.wait(timeout=60) == 130
  assert (tmp_path / "ended").exists()
