r"""Walks through what a user does, in processes of their own, and in a pseudo-terminal where a terminal matters.

  python tests/walk.py DIRECTORY

It trains the chain of tests/smoke.gin into DIRECTORY/run, gives configurations that are wrong, looks at runs, interrupts
one, and starts two in one directory. It prints a line for every step, and ends with an error at the first that fails.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from terminal import shown

ROOT = pathlib.Path(__file__).parents[1]
SMOKE, QUICKSTART = "--gin_file=tests/smoke.gin", "--gin_file=gin/runs/quickstart.gin"
SECONDS = 300  # that a process may take


def start(*arguments, environment=(), **settings):
  """Starts a verb."""
  return subprocess.Popen(
    [sys.executable, "-m", "hiermem_jax", *map(str, arguments)],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment),
    text=True,
    **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings,
  )


def run(*arguments, status=0, environment=()):
  """Runs a verb; returns what it prints."""
  process = start(*arguments, environment=environment)
  output, errors = process.communicate(timeout=SECONDS)
  assert process.returncode == status, f"{arguments} ended with {process.returncode}:\n{output}\n{errors}"
  return output if not status else errors


def refused(*arguments, environment=()):
  """The one line with which a verb refuses what it is given."""
  errors = run(*arguments, status=2, environment=environment)
  lines = [line for line in errors.splitlines() if line.startswith("error: ")]
  assert len(lines) == 1 and "Traceback" not in errors, errors
  return lines[0].removeprefix("error: ")


def in_terminal(columns, *arguments):
  """All that a verb writes into a terminal of so many columns."""
  return shown(columns, lambda variables, **streams: start(*arguments, environment=variables, **streams), SECONDS)


def has(text, *parts):
  """Checks that a text has all parts."""
  for part in parts:
    assert part in text, f"{part!r} is not in\n{text}"


def together(*steps):
  """Does independent steps two at a time."""
  with ThreadPoolExecutor(2) as pool:
    for name, _ in pool.map(lambda step: (step.__name__, step()), steps):
      print(f"ok: {name.replace('_', ' ')}", flush=True)


class Walk:
  """The steps; each has the directory in which the walk takes place."""

  def __init__(self, directory):
    self.directory = pathlib.Path(directory).resolve()
    self.run = self.directory / "run"

  def files(self):
    """Every file of the run with its time."""
    return {path: path.stat().st_mtime_ns for path in self.run.rglob("*") if path.is_file()}

  # The console

  def chain_in_a_terminal_shows_its_stages(self):
    screen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", in_terminal(80, "run", SMOKE, f"--run_dir={self.run}"))
    has(screen, "[1/6 cluster]", "[3/6 train anchor]", "[5/6 train cotrain]", "[6/6 evaluate]", "written: ")
    assert screen.startswith(f"[run] log: {self.run}/log.txt"), screen
    assert screen.count("\n") < 65, screen  # progress is rewritten in place

  # A. Configurations

  def shadowed_bindings_are_refused(self):
    saved = f"--gin_file={self.run}/config.gin"
    for binding in ("MemoryConfig.kind = 'kv'", "OptimizerConfig.peak_learning_rate = 0.5", "train.batch_size = 99"):
      name = binding.split(" = ")[0]
      message = refused("run", saved, f"--gin_bindings={binding}", "--validate_only")
      has(message, binding, "every scope that reads it binds its own", f"cotrain/{name}")

  def saved_configurations_load_again(self):
    text = (self.run / "config.gin").read_text()
    for name in ("config.gin", "config.short.gin"):
      printed = run("run", f"--gin_file={self.run / name}", f"--run_dir={self.run}", "--validate_only")
      assert printed.strip() == text.strip(), name
    record = [json.loads(line) for line in (self.run / "runs.jsonl").read_text().splitlines()]
    assert {"version", "commit", "host"} <= record[0].keys(), record[0].keys()

  def natural_overrides_work_or_say_how(self):
    check = ("run", QUICKSTART, "--validate_only")
    has(run(*check, "--gin_bindings=train.steps = 60"), "train.steps = 60")
    has(refused(*check, "--gin_bindings=train.steps = 50"), "OptimizerConfig.warmup_steps = 50", "bind fewer")
    has(refused(*check, "--gin_bindings=train.step = 50"), "did you mean", "train.steps")
    has(refused(*check, "--gin_bindings=MemoryConfig.kind = kv"), "text stands in quotes")
    (self.directory / "own.gin").write_text("include 'nowhere.gin'\n")
    message = refused("run", f"--gin_file={self.directory}/own.gin", "--validate_only")
    has(message, "nowhere.gin", f"{self.directory}/nowhere.gin", f"{ROOT}/nowhere.gin")
    (self.directory / "part.gin").write_text("train.log_every = 3\n")
    (self.directory / "own.gin").write_text("include 'gin/runs/quickstart.gin'\ninclude 'part.gin'\n")
    has(run("run", f"--gin_file={self.directory}/own.gin", "--validate_only"), "train.log_every = 3")

  def configurations_are_compared_and_listed(self):
    has(run("describe", "--diff", "gin/runs/a2.gin", "gin/runs/b2.gin"), "AnchorConfig.num_layers")
    has(run("describe", "--params", "train"), "train.steps", "OptimizerConfig.peak_learning_rate")

  # B. Checks first

  def what_does_not_fit_is_refused_before_the_first_stage(self):
    for bindings, parts in (
      (["OptimizerConfig.warmup_steps = 9"], ["warmup"]),
      (["TreeConfig.branching = 4"], ["branching"]),
      (["cluster.tokenizer_vocab_size = 600"], ["vocab_size"]),
    ):
      given = [f"--gin_bindings={binding}" for binding in bindings]
      has(refused("run", SMOKE, *given, f"--run_dir={self.directory}/refused"), *parts)
    message = refused("run", SMOKE, f"--run_dir={self.directory}/refused", environment={"JAX_PLATFORMS": "cuda"})
    has(message, "JAX_PLATFORMS=cuda")
    assert not (self.directory / "refused").exists()

  def finished_runs_are_left_as_they_are(self):
    before = self.files()
    run("run", SMOKE, f"--run_dir={self.run}")
    kept = ("log.txt", "runs.jsonl", "stages.json")
    changed = [path for path, at in self.files().items() if before.get(path) != at and path.name not in kept]
    assert not changed, changed

  def failed_evaluations_leave_the_good_one(self):
    before = self.files()
    message = refused("evaluate", SMOKE, "--gin_bindings=evaluate.modes = ('levels 9',)", f"--run_dir={self.run}")
    has(message, "levels 9")
    message = refused("evaluate", SMOKE, "--gin_bindings=ModelFiles.directory = 'nowhere'", f"--run_dir={self.run}")
    has(message, "nowhere", "anchor", "baseline", "cotrain", "ModelFiles.directory")
    assert self.files().keys() == before.keys()
    for name in ("evaluation/report.json", "evaluation/report.png"):
      assert self.files()[self.run / name] == before[self.run / name]
    refused("evaluate", SMOKE, f"--run_dir={self.directory}/rum")
    assert not (self.directory / "rum").exists()

  def interrupts_save_and_a_directory_in_use_is_refused(self):
    """SIGINT, also where it was inherited as ignored, saves; the same command goes on."""
    target, dataset = self.directory / "interrupted", f"--gin_bindings=train.dataset = '{self.run}/packed/train'"
    command = ["train", SMOKE, dataset, "--gin_bindings=train.steps = 100000", "--gin_bindings=train.log_every = 1"]
    command += ["--gin_bindings=ModelConfig.memory = @MemoryConfig()", f"--run_dir={target}"]
    ignored = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    for round_ in range(2):
      with open(self.directory / f"output{round_}", "w") as output:
        process = start(*command, stdout=output, stderr=output, preexec_fn=ignored)
        try:
          deadline = time.monotonic() + SECONDS
          scalars = target / "metrics.jsonl"
          seen = scalars.read_text().count("\n") if scalars.exists() else 0
          while not scalars.exists() or scalars.read_text().count("\n") < seen + 5:
            assert process.poll() is None and time.monotonic() < deadline, (self.directory / output.name).read_text()
            time.sleep(0.1)
          if not round_:
            has(refused(*command), "in use by process", str(process.pid))
          process.send_signal(signal.SIGINT)
          assert process.wait(SECONDS) == 75, (self.directory / output.name).read_text()
        finally:
          process.kill()
    checkpoints = sorted(int(path.name) for path in (target / "checkpoints").iterdir() if path.name.isdigit())
    steps = [json.loads(line)["step"] for line in (target / "metrics.jsonl").read_text().splitlines()]
    assert len(checkpoints) == 2 and checkpoints[-1] <= max(steps) < 100000, (checkpoints, steps)

  # D. Commands for the questions users have

  def runs_are_inspected(self):
    look = ("inspect", f"--run_dir={self.run}")
    has(run(*look, "--tree"), "level")
    assert json.loads(run(*look, "--leaf=1.2", "--json"))
    has(run(*look, "--text=The island of"), "margin")
    has(run(*look, "--token_budget"), "median")

  def runs_are_compared(self):
    shutil.copytree(self.run, self.directory / "other")
    printed = run("compare", self.run, self.directory / "other", f"--out={self.directory}/compare")
    has(printed, "fetched")
    assert (self.directory / "compare/losses.png").stat().st_size > 5000

  def some_stages_run_alone(self):
    has(run("run", SMOKE, f"--run_dir={self.run}", "--stages=evaluate"), "fetched")
    has(refused("run", SMOKE, f"--run_dir={self.run}", "--stages=evaluat"), "did you mean evaluate?")
    has(refused("run", SMOKE, f"--run_dir={self.directory}/none", "--stages=cotrain.."), "add", "to --stages")

  def errors_say_what_there_is(self):
    (self.directory / "corpus.jsonl").write_text('{"body": "x", "name": "y"}\n')
    corpus = self.directory / "corpus.jsonl"
    files = [f"--gin_bindings={name} = '{corpus}'" for name in ("CORPUS", "VALIDATION")]
    message = refused("run", "--gin_file=gin/runs/real_text_small.gin", *files, f"--run_dir={self.directory}")
    has(message, "body", "name", "JsonlSource.text_field")


def main():
  """Walks."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("directory", type=pathlib.Path, help="is created")
  walk = Walk(parser.parse_args().directory)
  walk.directory.mkdir(parents=True)
  together(walk.chain_in_a_terminal_shows_its_stages)
  together(
    walk.shadowed_bindings_are_refused,
    walk.interrupts_save_and_a_directory_in_use_is_refused,
    walk.saved_configurations_load_again,
    walk.natural_overrides_work_or_say_how,
    walk.configurations_are_compared_and_listed,
    walk.what_does_not_fit_is_refused_before_the_first_stage,
    walk.errors_say_what_there_is,
  )
  together(walk.finished_runs_are_left_as_they_are)
  together(walk.failed_evaluations_leave_the_good_one)
  together(walk.runs_are_compared)
  together(walk.runs_are_inspected, walk.some_stages_run_alone)


if __name__ == "__main__":
  main()
