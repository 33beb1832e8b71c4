"""The sweep runner on commands that take no time: order, resuming, failures, preemption."""

import json
import os
import sys
import threading
import types

import pytest

from hiermem_jax import sweep
from hiermem_jax.errors import InputError


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

  def __call__(self, job, log, worker, started):
    directory = job.directory
    self.started.append(directory.name)
    log.write_text("line before\nerror: no such thing\n")
    status = self.statuses.get(directory.name, [0]).pop(0) if self.statuses.get(directory.name) else 0
    if status == 0:
      directory.mkdir(parents=True, exist_ok=True)
      (directory / "report.json").write_text(json.dumps({"of": directory.name}))
    return status


def run(folder, launcher, jobs=2, only=""):
  spec = sweep.load(folder / "sweep.json")
  todo = list(sweep.jobs(spec, folder / "runs", only))
  return sweep.Runner(spec, folder / "results.jsonl", jobs, launcher).run(todo)


def results(folder):
  return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("jobs", [1, 3])
def test_setups_come_first_and_results_are_kept(folder, jobs):
  launcher = Launcher()
  assert run(folder, launcher, jobs) == []
  assert sorted(launcher.started) == ["one_0", "one_1", "setup_0", "setup_1", "two_0", "two_1"]
  for seed in "01":
    assert launcher.started.index(f"setup_{seed}") < min(
      launcher.started.index(f"{name}_{seed}") for name in ("one", "two")
    )
  lines = {(line["name"], line["seed"]): line for line in results(folder)}
  assert lines.keys() == {("one", 0), ("one", 1), ("two", 0), ("two", 1)}
  assert lines["two", 1]["settings"] == {"x": 2} and lines["two", 1]["result"] == {"of": "two_1"}
  again = Launcher()
  assert run(folder, again, jobs) == []
  assert again.started == []


def test_what_is_not_done_is_run_with_its_setup(folder):
  run(folder, Launcher(), only="one")
  launcher = Launcher()
  run(folder, launcher)
  assert sorted(launcher.started) == ["setup_0", "setup_1", "two_0", "two_1"]
  assert len(results(folder)) == 4


def test_commands(folder):
  jobs = list(sweep.jobs(sweep.load(folder / "sweep.json"), folder / "runs"))
  setup, one = (next(job for job in jobs if (job.name, job.seed) == key) for key in (("setup", 1), ("one", 1)))
  assert setup.command[1:] == [
    "-m", "hiermem_jax.run", f"--gin_file={folder}/setup.gin", "--gin_bindings=SEED = 1", f"--run_dir={folder}/runs/setup_1",
  ]  # fmt: skip
  assert one.command[3:] == [
    f"--gin_file={folder}/a.gin", "--gin_bindings=SEED = 1", f"--gin_bindings=ANCHOR = '{folder}/runs/setup_1/anchor'",
    "--gin_bindings=X = 1", f"--run_dir={folder}/runs/one_1",
  ]  # fmt: skip


def test_failures_are_shown_and_the_rest_goes_on(folder, capsys):
  launcher = Launcher({"one_0": [2], "setup_1": [1]})
  assert sorted(run(folder, launcher)) == ["one_0", "setup_1"]
  assert "one_0 FAILED with status 2" in (said := capsys.readouterr().out) and "error: no such thing" in said
  assert [(line["name"], line["seed"]) for line in results(folder)] == [("two", 0)]  # seed 1 has no setup
  assert run(folder, Launcher()) == []
  assert len(results(folder)) == 4


def test_a_preempted_run_is_started_again(folder):
  launcher = Launcher({"one_0": [75, 75, 0]})
  assert run(folder, launcher) == []
  assert launcher.started.count("one_0") == 3


def test_both_reports_of_a_run_are_kept(folder):
  spec = json.loads((folder / "sweep.json").read_text())
  (folder / "sweep.json").write_text(json.dumps(spec | {"train": "report.json"}))
  run(folder, Launcher(), only="one")
  assert sorted(line["train"]["of"] for line in results(folder)) == ["one_0", "one_1"]  # in whatever order they end


def test_workers_are_numbered_where_there_are_several(folder):
  for jobs, numbers in ((1, {None}), (2, {0, 1})):
    launcher = Launcher()
    together = threading.Barrier(jobs, timeout=30)
    seen = set()

    def launch(job, log, worker, started, launcher=launcher, together=together, seen=seen):
      if job.name == "setup":  # one for each worker
        together.wait()
      seen.add(worker)
      return launcher(job, log, worker, started)

    run(folder, launch, jobs)
    assert seen == numbers
    (folder / "results.jsonl").unlink()


def test_time_that_is_left(folder, monkeypatch, capsys):
  """Every run takes two minutes; there are six."""
  launcher, clock = Launcher(), iter(range(0, 10**6, 120))
  now = [0]
  monkeypatch.setattr(sweep, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

  def launch(*arguments):
    now[0] = next(clock) + 120
    return launcher(*arguments)

  run(folder, launch, 1)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "6 runs, 0 done before"
  assert lines[1].endswith("done in 120 s; about 10 min left") and lines[-1].endswith("; about 0 min left")


@pytest.fixture
def local(tmp_path, monkeypatch):
  """Runs a program as a job on this machine; returns its exit status and its log."""

  def run_program(program, worker=None, started=lambda child: None):
    monkeypatch.setattr(sweep.Job, "command", property(lambda job: [sys.executable, "-c", program]))
    status = sweep.run_local(sweep.Job("one", 0, {}, [], tmp_path / "run"), tmp_path / "log", worker, started)
    return status, (tmp_path / "log").read_text()

  return run_program


def test_local_runs_are_processes_with_a_log(local):
  children = []
  assert local("print('hello'); raise SystemExit(7)", 0, children.append) == (7, "hello\n")
  assert len(children) == 1
  assert local("import sys; print('again', file=sys.stderr)") == (0, "hello\nagain\n")  # a second try goes on in it


def test_local_runs_have_a_core_a_session_and_an_environment(local, monkeypatch):
  """A session of their own, so that Ctrl-C reaches the runner alone."""
  program = """
import json, os
print(json.dumps([sorted(os.sched_getaffinity(0)), os.getsid(0) == os.getpid(), dict(os.environ)]))
"""
  core = max(os.sched_getaffinity(0))
  monkeypatch.setenv("OF_THE_USER", "x")
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
  cores, own_session, environment = json.loads(local(program, core)[1])
  assert cores == [core] and own_session
  assert environment["OF_THE_USER"] == "x" and environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
  monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
  cores, _, environment = json.loads(local(program)[1].splitlines()[1])
  assert cores == sorted(os.sched_getaffinity(0)) and environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=0"


@pytest.mark.parametrize(
  "change, message",
  [
    ({"seed": 1}, "unknown seed"),
    ({"runs": [{"name": "a"}, {"name": "a"}]}, "runs of the same name, a"),
    ({"gin_files": ["nowhere.gin"]}, "nowhere.gin: no such file"),
    ({"setup": "nowhere.gin"}, "nowhere.gin: no such file"),
    ({"runs": [{"name": "a", "binding": []}]}, "a run: unknown binding"),
    ({"seeds": None}, "seeds missing"),
  ],
)
def test_bad_sweeps_are_named(folder, change, message):
  spec = json.loads((folder / "sweep.json").read_text()) | change
  (folder / "sweep.json").write_text(json.dumps({key: value for key, value in spec.items() if value is not None}))
  with pytest.raises(InputError, match=message):
    sweep.load(folder / "sweep.json")


def test_an_error_of_the_launcher_ends_the_sweep(folder):
  def launch(job, log, worker, started):
    raise OSError("no space left")

  with pytest.raises(OSError, match="no space left"):
    run(folder, launch, jobs=1)
