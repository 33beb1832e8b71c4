"""The command line that all verbs share: flags, gin, logging, and one clear line for bad input.

What needs jax or gin is imported where it is used, so that `hiermem VERB --help` and a refused flag answer at once.
"""

import ast
import dataclasses
import difflib
import functools
import importlib.util
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from hiermem_jax import completion, console, interrupts
from hiermem_jax.errors import InputError, Preempted
from hiermem_jax.verbs import CONFIGURED, VERBS, Verb

_LEAVE_SECONDS = 10  # for the other processes, when this one ends early


@dataclasses.dataclass(frozen=True)
class _Flag:
  """A flag: absl's function that defines it, its default, its help, and the gin bindings that its value stands for."""

  define: Callable
  default: Any
  help: str
  bindings: Callable[[Any], list[str]] | None = None


_at_least_1 = functools.partial(flags.DEFINE_integer, lower_bound=1)
_FLAGS = {
  "gin_file": _Flag(flags.DEFINE_multi_string, [], "Configuration to load; may be repeated, later ones win."),
  "gin_bindings": _Flag(
    flags.DEFINE_multi_string, [], "One binding, e.g. 'train.steps = 100'; may be repeated, and wins over the files."
  ),
  "run_dir": _Flag(flags.DEFINE_string, None, "Directory of the run; relative paths in the configuration start here."),
  "validate_only": _Flag(flags.DEFINE_bool, False, "Check the configuration, print it in full, and stop."),
  "verbose": _Flag(flags.DEFINE_bool, False, "Show on the console all that goes to RUN_DIR/log.txt."),
  "stages": _Flag(
    flags.DEFINE_string, None, "Stages to run, with commas; NAME.. is a stage and all after it. By default all."
  ),
  "json": _Flag(flags.DEFINE_bool, False, "Print JSON instead of text."),
  "diff": _Flag(
    flags.DEFINE_string, None, "Two gin files or run directories, --diff A B: print what differs, one line each."
  ),
  "params": _Flag(
    lambda name, default, text, **values: flags.DEFINE_enum(name, default, list(CONFIGURED), text, **values),
    None,
    "A verb: print every name that can be bound for it, with type, default and meaning.",
  ),
  "tree": _Flag(flags.DEFINE_bool, False, "Show the levels of the tree, the sizes of its clusters and their balance."),
  "leaf": _Flag(
    flags.DEFINE_string, None, "Path of a cluster, e.g. 7.57: show its terms, titles, size and the norms of its blocks."
  ),
  "text": _Flag(flags.DEFINE_string, None, "A text: show its path, the runners-up and how sure the route is."),
  "token_budget": _Flag(flags.DEFINE_bool, False, "Show how the training tokens are spread over leaves and blocks."),
  "out": _Flag(flags.DEFINE_string, "compare", "Directory for the picture and the report."),
  "topology": _Flag(flags.DEFINE_string, None, "TPU slice, e.g. v5e:16x16."),
  "num_slices": _Flag(_at_least_1, None, "Number of such slices."),
  "skip_bad_records": _Flag(
    flags.DEFINE_bool,
    False,
    "Count and report malformed records, however many there are.",
    lambda given: ["ReadConfig.max_bad_share = 1.0"] if given else [],
  ),
  "runner": _Flag(
    flags.DEFINE_string, None, "Beam runner, e.g. DataflowRunner.", lambda name: [f"BeamConfig.runner = {name!r}"]
  ),
  "pipeline_option": _Flag(
    flags.DEFINE_multi_string,
    [],
    "An option of Beam's, e.g. --pipeline_option=--region=europe-west4; may be repeated.",
    lambda options: [f"BeamConfig.options = {tuple(options)!r}"],
  ),
  "skip_damaged_checkpoints": _Flag(
    flags.DEFINE_bool,
    False,
    "Set a damaged checkpoint aside and resume from the one before it.",
    lambda given: ["CheckpointConfig.skip_damaged = True"] if given else [],
  ),
  "compilation_cache": _Flag(
    flags.DEFINE_string,
    None,
    "Directory that keeps compiled programs, or none. By default RUN_DIR/compilation_cache, or where"
    " JAX_COMPILATION_CACHE_DIR says.",
  ),
  "distributed": _Flag(flags.DEFINE_bool, False, "One of several processes that run the same command."),
  # What a Cloud TPU pod or Slurm says by itself; anywhere else all three are given.
  "coordinator_address": _Flag(flags.DEFINE_string, None, "HOST:PORT that process 0 of --distributed listens on."),
  "num_processes": _Flag(_at_least_1, None, "Processes of --distributed."),
  "process_id": _Flag(
    functools.partial(flags.DEFINE_integer, lower_bound=0), None, "Which of --num_processes this is, from 0."
  ),
}
_PROCESS_FLAGS = ("coordinator_address", "num_processes", "process_id")


def command(argv: Sequence[str] | None = None) -> None:
  """The command `hiermem`: runs the verb that comes first in `argv` (by default sys.argv), or lists the verbs."""
  if "_ARGCOMPLETE" in os.environ:  # a shell asks what could follow
    completion.propose({name: (flag.help, flag.define is not flags.DEFINE_bool) for name, flag in _FLAGS.items()})
  program, *arguments = sys.argv if argv is None else argv
  if not arguments or arguments[0] in ("-h", "-help", "--help", "help"):
    _show(_overview())
  elif arguments[0] in VERBS:
    main(arguments[0], [f"{program} {arguments[0]}", *arguments[1:]])
  else:
    close = difflib.get_close_matches(arguments[0], VERBS, 1)
    meant = f" did you mean {close[0]}?" if close else ""
    _fail(f"{arguments[0]!r}: no such verb;{meant} The verbs are {', '.join(VERBS)}")


def main(name: str, argv: Sequence[str] | None = None) -> None:
  """Runs a verb from the command line (by default sys.argv); exits with status 2 and one line on bad input."""
  console.set_up()
  verb = VERBS[name]
  define(verb, flags.FLAGS)
  app.run(
    lambda rest: run(verb, rest, flags.FLAGS),
    argv=None if argv is None else list(argv),
    flags_parser=lambda given: parse(verb, given, flags.FLAGS),
  )


def _overview() -> str:
  width = max(map(len, VERBS))
  lines = [f"  {verb.name:<{width}}  {verb.help}" for verb in VERBS.values()]
  return "\n".join(
    [
      "hiermem VERB --gin_file=... --run_dir=..., or python -m hiermem_jax VERB ...",
      "",
      "Verbs, in the order of the data flow:",
      *lines,
      "",
      "hiermem VERB --help shows an example and the flags of a verb.",
    ]
  )


def _show(text: str) -> None:
  """Prints; a reader that has seen enough, as `head`, is no error."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    _give_up_output()


def _give_up_output() -> None:
  """Keeps Python from complaining at exit that nobody reads what is left to print."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def define(verb: Verb, values: flags.FlagValues) -> None:
  """Defines the flags of a verb, and no others."""
  for name in verb.flags:
    flag = _FLAGS[name]
    flag.define(name, flag.default, flag.help, flag_values=values)


def parse(verb: Verb, argv: list[str], values: flags.FlagValues) -> list[str]:
  """Sets the flags; returns the program and what is no flag. Exits after --help and after a flag that is refused."""
  if {"-h", "-help", "--help"} & set(argv[1:]):
    _show(_help(verb, values))
    sys.exit(0)
  try:
    return values(argv)
  except flags.UnrecognizedFlagError as error:
    if takers := [other.name for other in VERBS.values() if error.flagname in other.flags]:
      _fail(f"--{error.flagname}: {verb.name} does not take it, only {', '.join(takers)}; leave it out")
    _fail(f"{error}; --help lists the flags")
  except flags.Error as error:
    _fail(f"{error}; --help lists the flags")


def _help(verb: Verb, values: flags.FlagValues) -> str:
  """The docstring of the verb's module, which is not imported for it, and the verb's flags."""
  spec = importlib.util.find_spec(verb.module)
  assert spec is not None and spec.origin is not None
  text = ast.get_docstring(ast.parse(pathlib.Path(spec.origin).read_text(encoding="utf-8")))
  flags_of_verb = values.module_help(__name__).partition(":")[2]
  bound = "" if verb.looks else f"hiermem describe --params {verb.name} lists what can be bound.\n\n"
  return f"{text}\n\n{bound}flags:{flags_of_verb}"


def _fail(message: str, distributed: bool = False) -> NoReturn:
  print("error: " + " ".join(message.split()), file=sys.stderr)
  _exit(2, distributed)


def _exit(status: int, distributed: bool) -> NoReturn:
  """Ends the process; one of several does not wait long for another that may be gone."""
  if distributed:
    from hiermem_jax.parallel.distributed import leave

    if leave(_LEAVE_SECONDS):
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(status)
  sys.exit(status)


def run(verb: Verb, rest: Sequence[str], values: flags.FlagValues) -> None:
  """Runs a verb with parsed flags. `rest` is what `parse` returned."""
  given: dict[str, Any] = {
    name: values[name].value if name in verb.flags else flag.default for name, flag in _FLAGS.items()
  }
  compared = rest[1:] if given["diff"] is not None else []
  if given["diff"] is not None and len(compared) != 1:
    _fail("--diff: compares two gin files or run directories; give it as --diff A B")
  if len(rest) > 1 and not compared and not verb.positional:
    _fail(f"{rest[1]!r}: arguments are given as --flags; --help lists them")
  if needless := [name for name in _PROCESS_FLAGS if given[name] is not None and not given["distributed"]]:
    _fail(f"--{needless[0]}: says nothing without --distributed; add that or leave this out")
  if "run_dir" in verb.flags and given["run_dir"] is None and not given["validate_only"]:
    of = "of the run" if verb.looks else "that the run may fill"
    _fail(f"--run_dir is missing; name the directory {of}")
  try:
    with interrupts.handled(interrupts.interrupt):
      _call(verb, given, rest[1:])
  except (InputError, FloatingPointError) as error:
    _fail(str(error), given["distributed"])
  except Preempted as notice:
    logging.warning("%s", notice)
    _exit(os.EX_TEMPFAIL, given["distributed"])
  except KeyboardInterrupt as notice:
    logging.warning("ended by %s; what is finished is kept, and the same command goes on", str(notice) or "SIGINT")
    _exit(os.EX_TEMPFAIL, given["distributed"])
  except BrokenPipeError:  # of `hiermem describe ... | head`
    _give_up_output()
    _exit(1, given["distributed"])
  except OSError as error:
    place = "" if error.filename else f"{given['run_dir']}: "
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    _fail(f"{place}{reason}; check the path, its permissions and the space left", given["distributed"])
  except Exception:
    if not given["distributed"]:
      raise
    traceback.print_exc()
    _exit(1, given["distributed"])


def _call(verb: Verb, given: Mapping[str, Any], operands: Sequence[str]) -> None:
  """Does what the flags ask for; `operands` are directories to compare, or the second one of --diff."""
  if given["diff"] is not None:
    _diff(given, [given["diff"], *operands])
  elif given["params"] is not None:
    _params(given)
  elif verb.positional:
    _compare(operands, given)
  elif verb.looks:
    _inspect(given)
  else:
    _fill(verb, given) if verb.has_run_dir else _print(verb, given)


def _diff(given: Mapping[str, Any], paths: Sequence[str]) -> None:
  """Prints what differs between two gin files or run directories."""
  from hiermem_jax import config_diff, configuration

  if needless := [name for name in ("gin_file", "gin_bindings", "params") if given[name]]:
    raise InputError(f"--{needless[0]}: says nothing beside --diff A B; leave it out")
  a, b = map(config_diff.Side.of, paths)
  _announce_imports([*a.files.values(), *b.files.values()])
  found = config_diff.differences(a, b, lambda gin_files: configuration.load(gin_files, []))
  _show((config_diff.as_json if given["json"] else config_diff.text)(a, b, found))


def _params(given: Mapping[str, Any]) -> None:
  """Prints the bindable names of a verb."""
  from hiermem_jax import config_params, configuration

  configuration.load(given["gin_file"], given["gin_bindings"])
  found = config_params.parameters(given["params"], configuration.constructors())
  _show(config_params.as_json(found) if given["json"] else config_params.text(given["params"], found))


def _inspect(given: Mapping[str, Any]) -> None:
  """Shows what is asked for of the run in a directory."""
  from hiermem_jax import saved_run
  from hiermem_jax.inspect import inspect

  _announce_imports(saved_run.configurations(given["run_dir"]))
  asked = {name: given[name] for name in ("tree", "leaf", "text", "token_budget")}
  inspect(run=saved_run.find(given["run_dir"]), as_json=given["json"], **asked)


def _compare(runs: Sequence[str], given: Mapping[str, Any]) -> None:
  """Compares run directories with the first of them."""
  if len(runs) < 2 or len(set(map(os.path.realpath, runs))) < len(runs):
    raise InputError("compare: compares two or more different run directories; give it as compare RUN RUN...")
  if missing := [run for run in runs if not os.path.isdir(run)]:
    raise InputError(f"compare {missing[0]}: no such directory; name the directory of a run")
  from hiermem_jax import config_diff, configuration
  from hiermem_jax.compare import compare

  first, *others = map(config_diff.Side.of, runs)
  texts = []
  for other in others:
    _announce_imports([*first.files.values(), *other.files.values()])
    found = config_diff.differences(first, other, lambda gin_files: configuration.load(gin_files, []))
    texts.append(config_diff.text(first, other, found))
  compare(runs=runs, configurations=texts, out=given["out"], as_json=given["json"])


def _announce_imports(gin_files: Sequence[str], bindings: Sequence[str] = ()) -> None:
  """Says on standard error what a configuration is about to import: gin files are programs."""
  from hiermem_jax import config_files

  for line in config_files.imports(gin_files, bindings):
    print(line, file=sys.stderr, flush=True)


def _print(verb: Verb, given: Mapping[str, Any]) -> None:
  """Runs a verb that has no run directory."""
  from hiermem_jax import configuration

  configuration.load(given["gin_file"], given["gin_bindings"])
  arguments = {
    name: given[name] for name in ("topology", "num_slices") if given[name] is not None
  }  # others may be bound
  configuration.require_read(verb.name, ("as_json", *arguments))
  configuration.call(verb.name, as_json=given["json"], **arguments)


def _fill(verb: Verb, given: Mapping[str, Any]) -> None:
  """Runs a verb that fills a run directory."""
  from hiermem_jax import execution

  if given["validate_only"]:
    _announce_imports(given["gin_file"], given["gin_bindings"])
  # These flags are not part of the run's configuration: a run that stopped may go on with others.
  extra = [
    line for name, flag in _FLAGS.items() if flag.bindings and given[name] for line in flag.bindings(given[name])
  ]
  execution.execute(verb, given, [given[name] for name in _PROCESS_FLAGS], extra)
