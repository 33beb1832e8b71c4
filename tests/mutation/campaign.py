"""Mutation testing: how many small mistakes in the code do the tests see? See docs/mutation_testing.md.

  python tests/mutation/campaign.py                  # draws the sample where there is none, runs what has no result yet
  python tests/mutation/campaign.py --room training --again   # runs a room's survivors again
  python tests/mutation/campaign.py --report         # prints the tables

A mutant is applied to a copy of the repository, never to the repository itself. A server that has imported the
libraries, but nothing of ours, forks a child for every mutant, which runs those tests in its own process that execute the
mutated line, fastest first, until one fails. Which tests those are is measured once, with coverage.py. They are the tests
that run in the process of pytest; what only tests with processes of their own see is seen with --thorough, which runs
the whole of `THOROUGH` for each survivor.
"""

import argparse
import collections
import compileall
import ctypes
import dataclasses
import importlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import mutants
import sample

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = pathlib.Path(__file__).with_name("results")  # a file for every room
EQUIVALENT = pathlib.Path(__file__).with_name("equivalent.json")
LIBRARIES = (
  "pytest",
  "coverage",
  "numpy",
  "jax",
  "jax.experimental.mesh_utils",
  "flax.linen",
  "optax",
  "orbax.checkpoint",
  "gin",
  "clu.metric_writers",
  "tensorflow",
  "seqio",
  "apache_beam",
  "tensorflow_datasets",
  "sklearn.decomposition",
  "tokenizers",
  "sentencepiece",
  "matplotlib.pyplot",
  "pyarrow",
  "torch",
  "transformers",
  "array_record.python.array_record_module",
)
GOLDEN = "tests/golden/test_runs.py"  # sees the defaults
MEASURED = {  # the tests of a room that run in the process of pytest; their coverage is measured
  "models": ["tests/models", "tests/golden/test_paper_numbers.py"],
  "parallel": [
    "tests/parallel/test_mesh.py",
    "tests/parallel/test_distributed.py",
    "tests/tpu_setup/test_parts.py",
    "tests/training",
  ],
  "training": ["tests/training"],
  "retrieval": ["tests/retrieval"],
  "data": [
    *(f"tests/data/{folder}" for folder in ("packed", "text", "tasks", "sources", "world", "corpus")),
    "tests/data/test_seqio_tasks.py",
    "tests/golden/test_paper_tasks.py",
  ],
  "evaluation": ["tests/evaluation"],
  "inference": ["tests/inference", "tests/evaluation"],
  "tpu_setup": ["tests/tpu_setup"],
}
THOROUGH = {
  "parallel": ["tests/parallel", "tests/golden"],
  "training": ["tests/training", "tests/parallel", "tests/test_train.py", "tests/multihost"],
  "models": ["tests/models", "tests/parallel", "tests/golden", "tests/test_compile_pod.py"],
  "inference": ["tests/inference", "tests/evaluation", "tests/parallel"],
  "data": ["tests/data"],
}
BUDGET = 60.0  # seconds of tests for one mutant, of CPU, when nothing is mutated
TIMEOUT = 240.0  # seconds, after which a mutant counts as seen: it hangs


class Watch:
  """A plugin of pytest: measures tests, or runs chosen ones in a given order, and notes which fail."""

  def __init__(self, order=None, coverage=None):
    """Runs the tests in `order` alone, or all of them, telling `coverage` which test runs."""
    self.order, self.coverage, self.failed = order, coverage, {}
    self.started, self.durations = 0.0, {}

  def pytest_collection_modifyitems(self, items):
    """Chooses and sorts."""
    if self.order is not None:
      place = {test: number for number, test in enumerate(self.order)}
      items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

  def pytest_runtest_logstart(self, nodeid):
    """Says which test is measured."""
    self.started = sum(os.times()[:4])  # CPU of this process and of those it has waited for
    if self.coverage:
      self.coverage.switch_context(nodeid)

  def pytest_runtest_logreport(self, report):
    """Notes a failure."""
    if report.failed:
      crash = getattr(report.longrepr, "reprcrash", None)
      self.failed.setdefault(report.nodeid, crash.message.split("\n")[0][:200] if crash else "")

  def pytest_runtest_logfinish(self, nodeid):
    """Notes the time of a test."""
    self.durations[nodeid] = sum(os.times()[:4]) - self.started

  def pytest_collectreport(self, report):
    """A file that cannot be imported."""
    if report.failed:
      self.failed.setdefault(report.nodeid, str(report.longrepr).strip().split("\n")[-1][:200])


class Worker:
  """A process with a copy of the repository, which forks a child for every run of pytest."""

  def __init__(self, work: pathlib.Path, number: int):
    """Copies what git tracks and imports the libraries."""
    self.tree, self.log, self.tmp = (work / f"{name}-{number}" for name in ("tree", "log", "tmp"))
    shutil.rmtree(self.tree, ignore_errors=True)
    files = subprocess.run(
      ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    )
    for file in files.stdout.splitlines():
      if (ROOT / file).is_file():
        (self.tree / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, self.tree / file)
    for command in (
      ["init", "-q"],
      ["add", "-A"],
      ["-c", "user.name=copy", "-c", "user.email=", "commit", "-qm", "copy"],
    ):
      subprocess.run(["git", *command], cwd=self.tree, check=True)
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what a child leaves running becomes ours, to end
    os.environ |= {
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(work / "compiled")),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",  # as in tests/conftest.py, which is read after JAX here
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
      "PYTHONPATH": str(self.tree),
      "PYTHONDONTWRITEBYTECODE": "1",
      "OMP_NUM_THREADS": "1",
    }
    os.chdir(self.tree)
    compileall.compile_dir("hiermem_jax", quiet=1)
    sys.path[:0] = [str(self.tree)]
    for library in LIBRARIES:
      try:
        importlib.import_module(library)
      except ImportError:
        print(f"without {library}")
    assert not any(name.startswith("hiermem_jax") for name in sys.modules)

  def run(self, files: list[str], order: list[str] | None = None, measure: pathlib.Path | None = None, timeout=3600.0):
    """Runs pytest in a child.

    Returns:
      Exit status (None when the time was up), what failed with its message, seconds of CPU, durations of the tests.
    """
    shutil.rmtree(self.tmp, ignore_errors=True)
    self.tmp.mkdir()
    answer = self.tmp / "answer.json"
    pid = os.fork()
    if not pid:
      self._child(files, order, measure, answer)
    deadline, status, cpu = time.monotonic() + timeout, None, 0.0
    while status is None:
      done, code, usage = os.wait4(pid, os.WNOHANG)
      if done:
        status, cpu = os.waitstatus_to_exitcode(code), usage.ru_utime + usage.ru_stime
      elif time.monotonic() > deadline:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        break
      else:
        time.sleep(0.02)
    self._end_orphans()
    found = json.loads(answer.read_text()) if answer.exists() else {"failed": {}, "durations": {}}
    return status, found["failed"], cpu, found["durations"]

  def _child(self, files, order, measure, answer):
    os.setpgid(0, 0)
    output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 70
    try:
      import coverage
      import pytest

      measured, sys.dont_write_bytecode = None, not measure
      if measure:
        measured = coverage.Coverage(data_file=str(measure), source=["hiermem_jax", "tpu_setup"], config_file=False)
        measured.start()
      watch = Watch(order, measured)
      options = ["-q", "-p", "no:cacheprovider", f"--basetemp={self.tmp / 'pytest'}", "-m", "not slow"]
      code = int(pytest.main([*options, *([] if measure else ["-x"]), *files], plugins=[watch]))
      if measured:
        measured.stop()
        measured.save()
      answer.write_text(json.dumps({"failed": watch.failed, "durations": watch.durations}))
    finally:
      sys.stdout.flush()
      os._exit(code)

  def _end_orphans(self):
    while True:
      try:
        pid, _ = os.waitpid(-1, os.WNOHANG)
      except ChildProcessError:
        return
      if not pid:
        children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for child in children:
          os.kill(int(child), signal.SIGKILL)
        time.sleep(0.05)

  def measure(self, folder: str, target: pathlib.Path) -> None:
    """Writes which lines the tests of a folder execute, and the CPU that each takes."""
    from coverage import CoverageData

    data_file = target.with_suffix(".coverage")
    data_file.unlink(missing_ok=True)
    status, failed, cpu, durations = self.run([folder], measure=data_file)
    data, lines = CoverageData(str(data_file)), {}
    data.read()
    for file in data.measured_files():
      module = os.path.relpath(file, self.tree)
      lines[module] = {line: [t for t in tests if t] for line, tests in data.contexts_by_lineno(file).items()}
    about = {"durations": durations, "lines": lines, "failed": failed, "cpu": cpu, "status": status}
    target.write_text(json.dumps(about))

  def judge(self, mutant: mutants.Mutant, stages: list[list[str]]) -> dict:
    """Applies a mutant, runs the tests of one stage after the other until one fails, and takes it back."""
    place = mutants.find(self.tree, mutant)
    if place is None:
      return {"fate": "gone"}
    path = self.tree / mutant.module
    original, times = path.read_text(encoding="utf-8"), path.stat()
    path.write_text(mutants.mutate(self.tree, place), encoding="utf-8")
    os.utime(path, (times.st_atime, times.st_mtime + 100))  # so that no compiled file of the original is taken for it
    fate, failed, count, cpu, start = "no tests", {}, 0, 0.0, time.monotonic()
    try:
      for stage in filter(None, stages):
        files = list(dict.fromkeys(test.split("::")[0] for test in stage))
        order = stage if any("::" in test for test in stage) else None
        status, failed, used, durations = self.run(files, order, timeout=TIMEOUT if order else 1200.0)
        fate, count, cpu = {0: "survived", None: "timeout"}.get(status, "killed"), count + len(durations), cpu + used
        if fate != "survived":
          break
    finally:
      path.write_text(original, encoding="utf-8")
      os.utime(path, (times.st_atime, times.st_mtime))
    test, message = next(iter(failed.items()), (None, None))
    if message:  # records name no place on the machine that made them
      message = message.replace(str(self.tree), ".").replace(str(self.tmp), "TMP")
    about = {"fate": fate, "line": place.start[0], "test": test, "message": message, "tests": count}
    return about | {"seconds": round(time.monotonic() - start, 1), "cpu": round(cpu, 1)}


class TestMap:
  """Which tests execute a line, and how long they take."""

  def __init__(self, work: pathlib.Path):
    """Joins what was measured, without the tests that fail here also when nothing is mutated."""
    self.durations, self.lines, failing = {}, collections.defaultdict(lambda: collections.defaultdict(set)), set()
    for path in sorted(work.glob("map-*.json")):
      found = json.loads(path.read_text())
      failing |= found["failed"].keys()
      self.durations |= {test: used for test, used in found["durations"].items() if test not in failing}
      for module, lines in found["lines"].items():
        for line, tests in lines.items():
          self.lines[module][int(line)].update(set(tests) - failing)

  def stages(self, root: pathlib.Path, mutant: mutants.Mutant) -> list[list[str]]:
    """Tests that execute the line; then the rest of their files, which may see what a shared fixture has executed."""
    place, lines = mutants.find(root, mutant), self.lines[mutant.module]
    if place is None:
      return []
    tests = set().union(*(lines[line] for line in range(place.start[0], place.end[0] + 1)))
    if not tests:  # executed at import, or in the middle of a statement: those that execute anything near it
      near = (root / mutant.module).read_text(encoding="utf-8").split("\n")
      low, high = (place.start[0] - 6, place.end[0] + 6) if mutant.function else (0, len(near))
      tests = set().union(*(lines[line] for line in range(low, high)))
    files = {test.split("::")[0] for test in tests}
    module = pathlib.Path(mutant.module)
    folder = pathlib.Path("tests", *(module.parts[1:-1] if module.parts[0] == "hiermem_jax" else module.parts[:1]))
    own = str(next(f for f in (folder, *folder.parents) if (root / f).is_dir()))
    if not tests or not mutant.function:  # executed at import alone
      files |= {t.split("::")[0] for t in self.durations if t.startswith((f"{own}/", "tests/golden/"))}
    others = {t for t in self.durations if t.split("::")[0] in files} - tests
    return [self._chosen(group, own) for group in (tests, others)]

  def _chosen(self, tests: set[str], own: str) -> list[str]:
    """As many as `BUDGET` allows: the room's own files first, cheap files first, in a file cheap tests first.

    No file is begun twice.
    """
    files, chosen, spent = collections.defaultdict(list), [], 0.0
    for test in tests:
      files[test.split("::")[0]].append((self.durations.get(test, 1.0), test))
    for _, file in sorted(
      files.items(), key=lambda item: (not item[0].startswith(f"{own}/"), sum(used for used, _ in item[1]), item[0])
    ):
      for used, test in sorted(file):
        spent += used
        if spent <= BUDGET or not chosen:
          chosen.append(test)
    return chosen


def _serve(work, number, tasks, results):
  worker = Worker(work, number)
  while (task := tasks.get()) is not None:
    kind, *arguments = task
    try:
      results.put((task, getattr(worker, kind)(*arguments)))
    except Exception as error:  # noqa: BLE001
      results.put((task, {"fate": f"error: {error!r}"}))


def _run(work: pathlib.Path, workers: int, tasks: list[tuple]):
  """Yields the tasks and their results as they come."""
  queues = multiprocessing.SimpleQueue(), multiprocessing.SimpleQueue()
  processes = [multiprocessing.Process(target=_serve, args=(work, i, *queues)) for i in range(workers)]
  for process in processes:
    process.start()
  waiting = iter(tasks)
  for _ in range(workers):
    queues[0].put(next(waiting, None))
  for _ in tasks:
    yield queues[1].get()
    queues[0].put(next(waiting, None))
  for process in processes:
    process.join()


def _load() -> dict[mutants.Mutant, dict]:
  fields, results = [field.name for field in dataclasses.fields(mutants.Mutant)], {}
  for path in sorted(RESULTS.glob("*.jsonl")):
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
      results[mutants.Mutant(**{name: line.pop(name) for name in fields})] = line
  return results


def _store(results: dict[mutants.Mutant, dict], room: str) -> None:
  chosen = (dataclasses.asdict(mutant) | about for mutant, about in results.items() if _room(mutant) == room)
  text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in chosen)
  (RESULTS / f"{room}.jsonl").write_text(text, encoding="utf-8")


def _files(folder: str) -> list[str]:
  """The files of tests in a folder; a file itself."""
  return sorted(str(f.relative_to(ROOT)) for f in (ROOT / folder).rglob("test_*.py")) or [folder]


def _room(mutant: mutants.Mutant) -> str:
  first, second = mutant.module.split("/")[:2]
  return first if first == "tpu_setup" else second


def report(results: dict[mutants.Mutant, dict]) -> None:
  """Prints the mutants per room as a table, then those that are equivalent and those that survived."""
  reasons = json.loads(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else []
  equivalent = {(r["module"], r["before"], r["after"]): r["reason"] for r in reasons}
  table = {room: collections.Counter() for room in sample.SIZES}
  for mutant, about in results.items():
    key = (mutant.module, mutant.before, mutant.after)
    fate = about.get("fate") or "not run"
    table[_room(mutant)]["equivalent" if fate == "survived" and key in equivalent else fate] += 1
  print("| room | mutants | killed | of these by the time limit | survived | equivalent | not run yet |")
  print("|---|---|---|---|---|---|---|")
  for room, n in (table | {"all": sum(table.values(), collections.Counter())}).items():
    killed = n["killed"] + n["timeout"]
    survived = n["survived"] + n["no tests"]
    print(f"| {room} | {n.total()} | {killed} | {n['timeout']} | {survived} | {n['equivalent']} | {n['not run']} |")
  for mutant, about in results.items():
    if about.get("fate") not in (None, "killed", "timeout"):
      reason = equivalent.get((mutant.module, mutant.before, mutant.after))
      print(f"\n{about.get('fate')}: {mutant.module}:{about.get('line')} {mutant.function} {mutant.operator}")
      print(f"  - {mutant.before}\n  + {mutant.after}" + (f"\n  equivalent: {reason}" if reason else ""))


def main():
  """Draws, measures, runs, reports."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--room", action="append", choices=list(sample.SIZES), help="one room alone; may be repeated")
  parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/hiermem_mutation"), help="scratch folder")
  parser.add_argument("--workers", type=int, default=2)
  parser.add_argument("--again", action="store_true", help="run survivors again")
  parser.add_argument("--thorough", action="store_true", help="run survivors again, with the tests of whole folders")
  parser.add_argument("--measure", action="store_true", help="measure again which tests execute what")
  parser.add_argument("--report", action="store_true", help="print the tables alone")
  options = parser.parse_args()
  results = _load()
  if options.report:
    report(results)
    return
  options.work.mkdir(parents=True, exist_ok=True)
  rooms = options.room or list(sample.SIZES)
  for room in rooms:
    if not any(_room(mutant) == room for mutant in results):
      results |= {mutant: {} for mutant in sample.draw(ROOT, room)}
      _store(results, room)
  folders = dict.fromkeys(f for room in rooms for f in [*MEASURED[room], GOLDEN] if (ROOT / f).exists())
  folders = [f for folder in folders for f in _files(folder)]
  targets = {f: options.work / f"map-{f.replace('/', '-')}.json" for f in folders}
  chosen = [f for f in targets if options.measure or not targets[f].exists()]
  for (_, folder, target), _ in _run(options.work, options.workers, [("measure", f, targets[f]) for f in chosen]):
    found = json.loads(target.read_text())
    print(
      f"{folder}: {len(found['durations'])} tests, {found['cpu']:.0f} s of CPU, failing: {list(found['failed'])}",
      flush=True,
    )
  tests, tasks = TestMap(options.work), []
  for mutant, about in results.items():
    wanted = ("survived", "no tests", "gone") if options.again or options.thorough else (None,)
    if _room(mutant) in rooms and about.get("fate") in wanted:
      folders = THOROUGH.get(_room(mutant), [f"tests/{_room(mutant)}"])
      tasks.append(("judge", mutant, [folders] if options.thorough else tests.stages(ROOT, mutant)))
  for (_, mutant, _), about in _run(options.work, options.workers, tasks):
    results[mutant] = about | {"first": results[mutant].get("first", about["fate"])}
    _store(results, _room(mutant))
    print(
      f"{about.get('fate')} {about.get('cpu')} s {mutant.module}:{about.get('line')}\n  + {mutant.after}", flush=True
    )
  report({mutant: about for mutant, about in results.items() if _room(mutant) in rooms})


if __name__ == "__main__":
  main()
