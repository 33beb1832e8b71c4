"""What a command shows: in a pseudo-terminal of two widths, in a CI log, with and without colours; and what its log has."""

import os
import re
import subprocess
import sys
import textwrap

import pytest
from terminal import shown

from hiermem_jax import console

# Takes a while, prints what a library would, and writes to file descriptor 2 as a library in C++ does.
_PROGRAM = """
import contextlib, logging, os, subprocess, sys, time, warnings
from hiermem_jax import console
now = [0]
time.monotonic = lambda: now[0]  # also for rich, which is imported later
console.set_up()
with console.opened(sys.argv[1], "run", verbose="verbose" in sys.argv, process=int(sys.argv[2])):
  with contextlib.suppress(OSError):
    os.write(2, b"failed call to cuInit\\n")
  subprocess.run([sys.executable, "-c", "import os; os.write(2, b'from a child')"])
  logging.getLogger("library").info("library note")
  logging.getLogger("library").warning("library warning")
  logging.getLogger("library").error("library error %d", 1)
  with console.stage("3/6 train anchor"):
    console.say("%s", "x" * 150)
    with console.Progress("step", 1000, 100) as progress:
      for step in range(101, 110):
        now[0] += 20
        progress.update(step, f"loss {step / 100:.2f}", amount=2048, of="tokens")
        time.sleep(0.3 if "slow" in sys.argv else 0)
  print("table", flush=True)
  if "fail" in sys.argv:
    raise ValueError("a fault of ours")
"""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def in_pipes(directory, *arguments, process=0):
  return subprocess.run(
    [sys.executable, "-c", _PROGRAM, str(directory), str(process), *arguments],
    capture_output=True, text=True, check=False,
  )  # fmt: skip


def in_terminal(columns, *arguments, **environment):
  """All that a program writes into a terminal."""
  names = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
  kept = {name: value for name, value in os.environ.items() if name not in names}

  def start(variables, **streams):
    command = [sys.executable, "-c", _PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, env=kept | variables | environment, **streams)

  return shown(columns, start)


def test_a_log_without_a_terminal_has_a_line_of_progress_every_30_seconds(tmp_path):
  result = in_pipes(tmp_path)
  assert (result.returncode, result.stdout) == (0, "table\n")
  lines = result.stderr.splitlines()
  assert lines[:3] == [
    f"[run] log: {tmp_path}/log.txt",
    "[run] error: library error 1",
    f"[3/6 train anchor] {'x' * 150}",
  ]
  steps = [line for line in lines if " step " in line]
  assert steps == [  # of nine, 20 s apart: 2,048 tokens in 20 s, and 898 steps or fewer to go
    f"[3/6 train anchor] step {step}/1,000  loss {step / 100:.2f}  102 tokens/s  {(1000 - step) * 20 / 3600:.1f} h left"
    for step in (102, 104, 106, 108)
  ]
  assert [*lines[:3], *steps, "[3/6 train anchor] done in 3 min"] == lines


def test_everything_is_in_the_log(tmp_path):
  in_pipes(tmp_path)
  log = (tmp_path / "log.txt").read_text()
  for text in (
    "failed call to cuInit",
    "from a child",
    "library note",
    "library warning",
    "library error 1",
    "x" * 150,
  ):
    assert log.count(text) == 1, text
  assert "-c" in log.splitlines()[0] and "done in" in log
  in_pipes(tmp_path)
  assert (tmp_path / "log.txt").read_text().startswith(log)


def test_verbose_shows_it_all_and_logs_it_too(tmp_path):
  result = in_pipes(tmp_path, "verbose")
  for text in ("failed call to cuInit", "from a child", "library note", "library warning", "x" * 150):
    assert result.stderr.count(text) == 1, text
  assert "library note" in (tmp_path / "log.txt").read_text()


def test_an_uncaught_error_is_on_the_console(tmp_path):
  result = in_pipes(tmp_path, "fail")
  assert result.returncode == 1 and result.stderr.endswith("ValueError: a fault of ours\n")
  assert "Traceback" in result.stderr and "cuInit" not in result.stderr


def test_another_process_shows_errors_alone_and_has_a_log_of_its_own(tmp_path):
  result = in_pipes(tmp_path, process=1)
  assert result.stderr == "[run] error: library error 1\n"
  assert [path.name for path in tmp_path.iterdir()] == ["log.1.txt"]


def test_a_full_disk_does_not_end_a_run(tmp_path):
  (tmp_path / "log.txt").symlink_to("/dev/full")
  result = in_pipes(tmp_path)
  assert (result.returncode, result.stdout) == (0, "table\n")
  assert "done in 3 min" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_has_one_line_that_is_rewritten(tmp_path, columns):
  """It fits into the terminal, and is gone at the end."""
  written = in_terminal(columns, tmp_path, 0, "slow")
  assert "\x1b[36m[3/6 train anchor] \x1b[0m" in written and "cuInit" not in written
  written = _COLOUR.sub("", written)
  shown = [line.strip() for line in re.split(r"[\r\n]|\x1b\[\d*[AK]", written) if " step " in line]
  assert len(set(shown)) > 2 and all(len(line) <= columns for line in shown)
  assert shown[-1].startswith("[3/6 train anchor] step 109/1,000  loss 1.09  ")
  assert written.endswith("\x1b[1A\x1b[2K[3/6 train anchor] done in 3 min\r\ntable\r\n")


def test_no_color(tmp_path):
  written = in_terminal(80, tmp_path, 0, NO_COLOR="1")
  assert "[3/6 train anchor] done in" in written and not re.search(r"\x1b\[3\dm", written)


def test_a_dumb_terminal_is_written_to_line_by_line(tmp_path):
  written = in_terminal(80, tmp_path, 0, TERM="dumb")
  assert "\x1b" not in written and len(re.findall(r"step 1\d\d/1,000", written)) == 4


def test_without_a_console_it_is_log_records_and_nothing(caplog):
  """In a notebook, and in the tests of everything else."""
  caplog.set_level("INFO", logger="absl")  # which this test must not owe to one before it
  with console.stage("1/1 train"), console.Progress("step", 3) as progress:
    progress.update(1, "loss 1.00")
    console.say("%d leaves", 4)
  assert [record.getMessage() for record in caplog.records[:2]] == ["stage 1/1 train", "4 leaves"]
  assert caplog.records[1].pathname == __file__


@pytest.mark.parametrize(
  "seconds, text",
  [(0.4, "0 s"), (99.4, "99 s"), (99.5, "2 min"), (5900, "98 min"), (5970, "1.7 h"), (4e6, "1,111.1 h")],
)
def test_durations(seconds, text):
  assert console.duration(seconds) == text


@pytest.mark.parametrize(
  "number, text",
  [
    (0, "0"),
    (735.4, "735"),
    (999.6, "1.0k"),
    (9949, "9.9k"),
    (36_123, "36k"),
    (999_600, "1.0M"),
    (2_048_000, "2.0M"),
    (4.6e9, "4.6B"),
  ],
)
def test_short_numbers(number, text):
  assert console.short(number) == text


def test_importing_it_does_not_import_rich():
  program = "import sys; from hiermem_jax import console; print('rich' in sys.modules)"
  result = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
  assert result.stdout == "False\n"


def test_what_libraries_say_before_the_log_is_open_goes_there(tmp_path):
  program = """
import os, sys
from hiermem_jax import console
console.set_up()
with console.kept_for_the_log():
  os.write(2, b"a library starts\\n")
os.write(2, b"between\\n")
with console.opened(sys.argv[1], "run"):
  console.say("said")
"""
  result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
  assert result.stderr.splitlines() == ["between", f"[run] log: {tmp_path}/log.txt", "[run] said"]
  assert (tmp_path / "log.txt").read_text().startswith("a library starts\n")
