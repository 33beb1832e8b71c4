"""The command line that all verbs share: flags, gin, logging, and one clear line for bad input."""

import logging as python_logging
import os
import sys

from absl import app, flags, logging

from hiermem_jax import configuration
from hiermem_jax.errors import InputError

_GIN_FILE = flags.DEFINE_multi_string("gin_file", [], "Configuration to load; may be repeated, later ones win.")
_GIN_BINDINGS = flags.DEFINE_multi_string("gin_bindings", [], "One binding, e.g. 'train.steps = 100'; may be repeated.")
_RUN_DIR = flags.DEFINE_string("run_dir", None, "Directory of the run; relative paths in the configuration start here.")
_VALIDATE_ONLY = flags.DEFINE_bool("validate_only", False, "Check the configuration, print it in full, and stop.")
_SKIP_BAD_RECORDS = flags.DEFINE_bool(
  "skip_bad_records", False, "Count and report malformed records instead of stopping at the first."
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of text (describe).")


def main(verb: str) -> None:
  """Runs a verb from the command line; exits with status 2 and one line on bad input."""
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  logging.get_absl_handler().addFilter(_is_news)
  for flag in (_GIN_FILE, _GIN_BINDINGS, _RUN_DIR, _VALIDATE_ONLY, _SKIP_BAD_RECORDS, _JSON):
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
  sys.exit(2)


def _run(verb: str, argv: list[str]) -> None:
  if len(argv) > 1:
    _fail(f"{argv[1]!r}: arguments are given as --flags; --help lists them")
  try:
    configuration.load(_GIN_FILE.value, _GIN_BINDINGS.value)
    if verb == "describe":
      configuration.call("describe", as_json=_JSON.value)
      return
    run_dir = _RUN_DIR.value
    if run_dir is None and not _VALIDATE_ONLY.value:
      raise InputError("--run_dir is missing; name the directory that the run may fill")
    text = configuration.rehearse(verb, run_dir=run_dir or "")
    if _VALIDATE_ONLY.value:
      print(text)
      return
    path = os.path.join(run_dir, "config.gin" if verb in ("train", "quickstart") else f"{verb}.config.gin")
    configuration.save(path, text)
    if _SKIP_BAD_RECORDS.value:  # not part of what is saved: a run that a bad record stopped can go on with the flag
      configuration.load(_GIN_FILE.value, [*_GIN_BINDINGS.value, "JsonlSource.skip_bad_records = True"])
    try:
      configuration.call(verb, run_dir=run_dir)
    except InputError:
      configuration.discard(path)
      raise
  except InputError as error:
    _fail(str(error))
  except (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
    _fail(f"{str(error).splitlines()[0]}; check the path")
