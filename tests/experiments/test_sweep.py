"""The sweep runner on commands that take no time: order, resuming, failures, preemption."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from hiermem_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sweep(script):
  return script("sweep")


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "a.gin").write_text("")
  (tmp_path / "setup.gin").write_text("")
  spec = {
    "gin_files": [str(tmp_path / "a.gin")],
    "bindings": ["SEED = {seed}", "ANCHOR = '{setup}/anchor'"],
    "seeds": [0, 1],
    "setup": str(tmp_path / "setup.gin"),
    "result": "report.json",
    "runs": [{"name": "one", "settings": {"x": 1}, "bindings": ["X = 1"]}, {"name": "two", "settings": {"x": 2}}],
  }
  (tmp_path / "sweep.json").write_text(json.dumps(spec))
  return tmp_path


class Launcher:
  """Writes what a run would leave; statuses by name, the first of each list first."""

  def __init__(self, statuses=()):
    self.started, self.statuses = [], {name: list(values) for name, values in dict(statuses).items()}

  def __call__(self, command, log, cpu, started):
    directory = pathlib.Path(command[-1].removeprefix("--run_dir="))
    self.started.append(directory.name)
    log.write_text("line before\nerror: no such thing\n")
    status = self.statuses.get(directory.name, [0]).pop(0) if self.statuses.get(directory.name) else 0
    if status == 0:
      directory.mkdir(parents=True, exist_ok=True)
      (directory / "report.json").write_text(json.dumps({"of": directory.name}))
    return status


def run(sweep, folder, launcher, jobs=2, only=""):
  spec = sweep.load(folder / "sweep.json")
  todo = list(sweep.jobs(spec, folder / "runs", only))
  return sweep.Runner(spec, folder / "results.jsonl", jobs, launcher).run(todo)


def results(folder):
  return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("jobs", [1, 3])
def test_setups_come_first_and_results_are_kept(sweep, folder, jobs):
  launcher = Launcher()
  assert run(sweep, folder, launcher, jobs) == []
  assert sorted(launcher.started) == ["one_0", "one_1", "setup_0", "setup_1", "two_0", "two_1"]
  for seed in "01":
    assert launcher.started.index(f"setup_{seed}") < min(
      launcher.started.index(f"{name}_{seed}") for name in ("one", "two")
    )
  lines = {(line["name"], line["seed"]): line for line in results(folder)}
  assert lines.keys() == {("one", 0), ("one", 1), ("two", 0), ("two", 1)}
  assert lines["two", 1]["settings"] == {"x": 2} and lines["two", 1]["result"] == {"of": "two_1"}
  again = Launcher()
  assert run(sweep, folder, again, jobs) == []
  assert again.started == []


def test_what_is_not_done_is_run_with_its_setup(sweep, folder):
  run(sweep, folder, Launcher(), only="one")
  launcher = Launcher()
  run(sweep, folder, launcher)
  assert sorted(launcher.started) == ["setup_0", "setup_1", "two_0", "two_1"]
  assert len(results(folder)) == 4


def test_commands(sweep, folder):
  jobs = list(sweep.jobs(sweep.load(folder / "sweep.json"), folder / "runs"))
  setup, one = (next(job for job in jobs if (job.name, job.seed) == key) for key in (("setup", 1), ("one", 1)))
  assert setup.command[1:] == [
    "-m", "hiermem_jax.quickstart", f"--gin_file={folder}/setup.gin", "--gin_bindings=SEED = 1", f"--run_dir={folder}/runs/setup_1",
  ]  # fmt: skip
  assert one.command[3:] == [
    f"--gin_file={folder}/a.gin", "--gin_bindings=SEED = 1", f"--gin_bindings=ANCHOR = '{folder}/runs/setup_1/anchor'",
    "--gin_bindings=X = 1", f"--run_dir={folder}/runs/one_1",
  ]  # fmt: skip


def test_failures_are_shown_and_the_rest_goes_on(sweep, folder, capsys):
  launcher = Launcher({"one_0": [2], "setup_1": [1]})
  assert sorted(run(sweep, folder, launcher)) == ["one_0", "setup_1"]
  assert "one_0 FAILED with status 2" in (said := capsys.readouterr().out) and "error: no such thing" in said
  assert [(line["name"], line["seed"]) for line in results(folder)] == [("two", 0)]  # seed 1 has no setup
  assert run(sweep, folder, Launcher()) == []
  assert len(results(folder)) == 4


def test_a_preempted_run_is_started_again(sweep, folder):
  launcher = Launcher({"one_0": [75, 75, 0]})
  assert run(sweep, folder, launcher) == []
  assert launcher.started.count("one_0") == 3


def test_local_runs_are_processes_with_a_log(sweep, tmp_path):
  children = []
  log = tmp_path / "log"
  status = sweep.run_local([sys.executable, "-c", "print('hello'); raise SystemExit(7)"], log, 0, children.append)
  assert status == 7 and log.read_text() == "hello\n" and len(children) == 1


def test_dry_run_and_bad_sweeps(sweep, folder, capsys):
  assert sweep.main([str(folder / "sweep.json"), "--runs_root=runs", "--dry_run"]) == 0
  assert len(capsys.readouterr().out.splitlines()) == 6
  spec = json.loads((folder / "sweep.json").read_text())
  for change, message in (
    ({"seed": 1}, "unknown seed"),
    ({"runs": [{"name": "a"}, {"name": "a"}]}, "runs of the same name, a"),
    ({"gin_files": ["nowhere.gin"]}, "nowhere.gin: no such file"),
    ({"runs": [{"name": "a", "binding": []}]}, "a run: unknown binding"),
  ):
    (folder / "sweep.json").write_text(json.dumps(spec | change))
    with pytest.raises(InputError, match=message):
      sweep.load(folder / "sweep.json")
    assert sweep.main([str(folder / "sweep.json"), "--runs_root=runs"]) == 2
  (folder / "sweep.json").write_text("{")
  assert sweep.main([str(folder / "sweep.json"), "--runs_root=runs"]) == 2
  del spec["seeds"]
  (folder / "sweep.json").write_text(json.dumps(spec))
  with pytest.raises(InputError, match="seeds missing"):
    sweep.load(folder / "sweep.json")


@pytest.mark.parametrize(
  "folder_name", sorted(path.parent.name + "/" + path.name for path in ROOT.glob("experiments/*/sweep*.json"))
)
def test_sweeps_here_are_sweeps(sweep, folder_name, monkeypatch):
  monkeypatch.chdir(ROOT)
  spec = sweep.load(ROOT / "experiments" / folder_name)
  assert spec["seeds"] == [0, 1, 2]
  assert len(list(sweep.jobs(spec, pathlib.Path("runs")))) == 3 * (1 + len(spec["runs"]))


def test_an_interrupt_ends_the_children(folder, tmp_path):
  """In a process of its own, with a child that says when it is told to end."""
  child = "import signal,sys,time; signal.signal(15, lambda *a: (open(sys.argv[1], 'w').close(), sys.exit(75))); time.sleep(60)"
  program = textwrap.dedent(f"""
    import sys; sys.path.insert(0, {str(ROOT / "experiments")!r})
    import sweep
    sweep.command = lambda files, bindings, directory: [sys.executable, "-c", {child!r}, {str(tmp_path / "ended")!r}]
    sys.exit(sweep.main([{str(folder / "sweep.json")!r}, "--runs_root={tmp_path}/runs"]))
  """)
  process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
  deadline = time.monotonic() + 30
  while not (tmp_path / "runs/setup_0.log").exists() and time.monotonic() < deadline:
    time.sleep(0.1)
  time.sleep(1)
  os.kill(process.pid, signal.SIGINT)
  assert process.wait(timeout=30) == 130
  assert (tmp_path / "ended").exists()
