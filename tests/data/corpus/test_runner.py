"""Where pipelines run, and what a failed one raises."""

import logging

import pytest

from hiermem_jax.data.corpus import runner as runner_lib
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.errors import InputError

# The end of what Beam reports of a worker in another process.
_REPORT = """Traceback (most recent call last):
  File "x.py", line 3, in process
{error} [while running 'ParDo(RoutePart)-ptransform-12']
"""


def test_an_unknown_runner():
  with pytest.raises(InputError, match="--runner=Nonsense: .*; name another runner"):
    BeamConfig(runner="Nonsense").run(lambda pipeline: None, num_units=1)


@pytest.mark.parametrize("cores, units, workers", [(8, 3, 3), (2, 3, 2), (8, 1, None), (None, 5, None)])
def test_one_process_per_core_and_no_more_than_units(monkeypatch, cores, units, workers):
  monkeypatch.setattr("os.cpu_count", lambda: cores)
  options = runner_lib._processes(units)
  if workers is None:
    assert options == ("--direct_running_mode=in_memory", "--direct_num_workers=1")
  else:
    assert options[:2] == ("--direct_running_mode=multi_processing", f"--direct_num_workers={workers}")


def test_one_process_feeds_all_accelerators(monkeypatch):
  monkeypatch.setattr("os.cpu_count", lambda: 8)
  monkeypatch.setattr("jax.default_backend", lambda: "tpu")
  assert runner_lib._processes(5) == ("--direct_running_mode=in_memory", "--direct_num_workers=1")


@pytest.mark.parametrize(
  "error, kind, message",
  [
    ("hiermem_jax.errors.InputError: a.gz: cut off", InputError, "a.gz: cut off"),
    (
      "PermissionError: [Errno 13] Permission denied: 'x'",
      OSError,
      "[Errno 13] Permission denied: 'x' (PermissionError)",
    ),
    ("MemoryError: out of memory", OSError, "out of memory (MemoryError)"),
  ],
)
def test_causes_in_other_processes(error, kind, message):
  cause = runner_lib._cause(RuntimeError(_REPORT.format(error=error)))
  assert type(cause) is kind and str(cause) == message


def test_causes_in_this_process():
  cause = runner_lib._cause(InputError("a.gz: cut off [while running 'ParDo(RoutePart)']"))
  assert isinstance(cause, InputError) and str(cause) == "a.gz: cut off"
  other = ZeroDivisionError("division by zero")
  assert runner_lib._cause(other) is other


def test_a_failing_pipeline_says_nothing_but_its_error():
  """Beam's own logger would print the traceback of every try."""
  logger = logging.getLogger("apache_beam")
  before = logger.level

  def build_failing(pipeline):
    assert not logger.isEnabledFor(logging.ERROR)
    raise InputError("a.jsonl: not a compressed file")

  with pytest.raises(InputError, match="^a.jsonl: not a compressed file$"):
    BeamConfig().run(build_failing, 1)
  assert logger.level == before


@pytest.mark.slow
def test_bad_input_in_another_process_is_one_line(build, tmp_path):
  for name in "ab":
    (tmp_path / f"{name}.jsonl.gz").write_bytes(b"not gzip")
  source = JsonlSource(pattern=str(tmp_path / "*.jsonl.gz"))
  two = BeamConfig(options=("--direct_num_workers=2", "--direct_running_mode=multi_processing"))
  with pytest.raises(InputError, match=r"[ab]\.jsonl\.gz: not a compressed file") as caught:
    build(tmp_path / "set", source=source, tree=None, beam_config=two)
  assert "\n" not in str(caught.value)
