"""The command line that all verbs share: flags, gin, logging, and one clear line for bad input."""

import logging as python_logging
import os
import sys
import traceback

from absl import app, flags, logging

from hiermem_jax import configuration
from hiermem_jax.errors import InputError, Preempted

_GIN_FILE = flags.DEFINE_multi_string("gin_file", [], "Configuration to load; may be repeated, later ones win.")
_GIN_BINDINGS = flags.DEFINE_multi_string("gin_bindings", [], "One binding, e.g. 'train.steps = 100'; may be repeated.")
_RUN_DIR = flags.DEFINE_string("run_dir", None, "Directory of the run; relative paths in the configuration start here.")
_VALIDATE_ONLY = flags.DEFINE_bool("validate_only", False, "Check the configuration, print it in full, and stop.")
_SKIP_BAD_RECORDS = flags.DEFINE_bool(
  "skip_bad_records", False, "Count and report malformed records, however many there are (cluster, prepare)."
)
_SKIP_DAMAGED = flags.DEFINE_bool(
  "skip_damaged_checkpoints",
  False,
  "Set a damaged checkpoint aside and resume from the one before it (train, quickstart).",
)
_RUNNER = flags.DEFINE_string("runner", None, "Beam runner, e.g. DataflowRunner (cluster, prepare).")
_PIPELINE_OPTIONS = flags.DEFINE_multi_string(
  "pipeline_option", [], "An option of Beam's, e.g. --pipeline_option=--region=europe-west4; may be repeated."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of text (describe, compile_pod).")
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice, e.g. v5e:16x16 (compile_pod, describe).")
_NUM_SLICES = flags.DEFINE_integer("num_slices", None, "Number of such slices (compile_pod, describe).", lower_bound=1)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "One of several processes that run the same command (train, merge, evaluate, quickstart)."
)
# What a Cloud TPU pod or Slurm says by itself; anywhere else all three are given.
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT that process 0 of --distributed listens on.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of --distributed.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of --num_processes this is, from 0.", lower_bound=0)
_PROCESS_FLAGS = (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
_LEAVE_SECONDS = 10  # for the other processes, when this one ends early
_FLAGS = (_GIN_FILE, _GIN_BINDINGS, _RUN_DIR, _VALIDATE_ONLY, _SKIP_BAD_RECORDS, _JSON, _TOPOLOGY, _NUM_SLICES)
_FLAGS += (_SKIP_DAMAGED, _RUNNER, _PIPELINE_OPTIONS, _DISTRIBUTED, *_PROCESS_FLAGS)


def main(verb: str) -> None:
  """Runs a verb from the command line; exits with status 2 and one line on bad input."""
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  logging.get_absl_handler().addFilter(_is_news)
  for flag in _FLAGS:
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])  # so that --help lists it
  app.run(lambda argv: _run(verb, argv), flags_parser=_parse_flags)


def _is_news(record: python_logging.LogRecord) -> bool:
  """Whether to log a record: orbax writes dozens of lines per save, gin one per place where an include is not."""
  if record.module == "resource_reader":
    return False
  return "orbax" not in record.pathname or record.levelno > python_logging.INFO


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    _fail(f"{error}; --help lists the flags")


def _fail(message: str) -> None:
  print("error: " + " ".join(message.split()), file=sys.stderr)
  _exit(2)


def _exit(status: int) -> None:
  """Ends the process; of several, without waiting long for one that may be gone."""
  from hiermem_jax.parallel import distributed

  if flags.FLAGS.is_parsed() and _DISTRIBUTED.value and distributed.leave(_LEAVE_SECONDS):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  sys.exit(status)


def _check_process_flags(verb: str) -> None:
  given = [flag.name for flag in _PROCESS_FLAGS if flag.value is not None]
  if given and not _DISTRIBUTED.value:
    raise InputError(f"--{given[0]}: says nothing without --distributed; add that or leave this out")
  if _DISTRIBUTED.value and verb not in ("train", "merge", "evaluate", "evaluate_tasks", "quickstart"):
    raise InputError(f"--distributed: {verb} runs in one process; leave the flag out")


def _how_to_run() -> list[str]:
  """Bindings of flags that are not saved with the configuration: a run that stopped may go on with others."""
  bindings = []
  if _SKIP_BAD_RECORDS.value:
    bindings += ["cluster.max_bad_share = 1.0", "prepare.max_bad_share = 1.0"]
  if _SKIP_DAMAGED.value:
    bindings.append("train.skip_damaged_checkpoints = True")
  if _RUNNER.value is not None:
    bindings.append(f"BeamConfig.runner = {_RUNNER.value!r}")
  if _PIPELINE_OPTIONS.value:
    bindings.append(f"BeamConfig.options = {tuple(_PIPELINE_OPTIONS.value)!r}")
  return bindings


def _run(verb: str, argv: list[str]) -> None:
  from hiermem_jax.parallel import distributed  # here, so that --help is quick

  if len(argv) > 1:
    _fail(f"{argv[1]!r}: arguments are given as --flags; --help lists them")
  try:
    _check_process_flags(verb)
    configuration.load(_GIN_FILE.value, _GIN_BINDINGS.value)
    if verb in ("describe", "compile_pod"):
      given = {"topology": _TOPOLOGY.value, "num_slices": _NUM_SLICES.value}  # what is not given may be bound
      given = {name: value for name, value in given.items() if value is not None}
      configuration.call(verb, as_json=_JSON.value, **given)
      return
    run_dir = _RUN_DIR.value
    if run_dir is None and not _VALIDATE_ONLY.value:
      raise InputError("--run_dir is missing; name the directory that the run may fill")
    text = configuration.rehearse(verb, run_dir=run_dir or "")
    if _VALIDATE_ONLY.value:
      print(text)
      return
    if _DISTRIBUTED.value:
      trains = verb in ("train", "quickstart")
      distributed.initialize(*(flag.value for flag in _PROCESS_FLAGS), preemptible=trains)
    path = os.path.join(run_dir, "config.gin" if verb in ("train", "quickstart") else f"{verb}.config.gin")
    configuration.save(path, text, replace=verb.startswith("evaluate"))  # a model may be measured in many ways
    if how := _how_to_run():
      configuration.load(_GIN_FILE.value, [*_GIN_BINDINGS.value, *how])
    try:
      configuration.call(verb, run_dir=run_dir)
    except InputError:
      if distributed.is_first():
        configuration.discard(path)
      raise
  except (InputError, FloatingPointError) as error:
    _fail(str(error))
  except Preempted as notice:
    logging.warning("%s", notice)
    _exit(os.EX_TEMPFAIL)
  except OSError as error:
    place = "" if error.filename else f"{_RUN_DIR.value}: "
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    _fail(f"{place}{reason}; check the path, its permissions and the space left")
  except Exception:
    if not _DISTRIBUTED.value:
      raise
    traceback.print_exc()
    _exit(1)
