"""Runs a verb that fills a run directory: checks first, then one process at a time, and a record of what was done."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from hiermem_jax import checks, compilation_cache, configuration, console, lock, run_config, run_record, stages
from hiermem_jax.errors import InputError
from hiermem_jax.parallel import distributed
from hiermem_jax.plan import Planned, Record
from hiermem_jax.verbs import Verb


def execute(verb: Verb, given: Mapping[str, Any], processes: Sequence[Any], extra: Sequence[str]) -> None:
  """Checks a verb's configuration and runs it; with `validate_only` prints the configuration instead.

  Args:
    verb: the verb.
    given: values of all flags by name; those that the verb does not take have their defaults.
    processes: arguments of `distributed.initialize`.
    extra: bindings that are no part of the run's configuration: a run that stopped may go on with others.

  Raises:
    InputError: the input is bad; nothing has been created if that was known before the first stage.
  """
  configuration.load(given["gin_file"], given["gin_bindings"])
  text = configuration.dry_run(verb.name, run_dir=given["run_dir"] or "")
  planned = configuration.planned()
  if given["distributed"] and not given["validate_only"]:
    distributed.initialize(*processes, preemptible=verb.trains)
  arguments = distributed.together(lambda: _checked(verb, given, planned))
  if given["validate_only"]:
    print(text)
    return
  path = os.path.join(given["run_dir"], verb.saved_as)
  try:
    with contextlib.ExitStack() as stack:
      if not verb.replaces:
        distributed.on_first(lambda: stack.enter_context(lock.held(given["run_dir"])))
      _run(verb, given, path, text, planned, arguments, extra)
  except InputError:
    if distributed.is_first() and not verb.replaces and os.path.isdir(given["run_dir"]):
      run_config.discard(path)
    raise


def _checked(verb: Verb, given: Mapping[str, Any], planned: Sequence[Planned]) -> dict[str, Any]:
  """Makes all checks; returns the argument `stages` of a chain: those that --stages names."""
  arguments: dict[str, Any] = {}
  if "stages" in verb.flags:
    chain = configuration.chain()
    selected = stages.chosen(chain, given["stages"])
    if given["run_dir"] is not None:
      stages.require_made(chain, selected, given["run_dir"], configuration.all_arguments)
    planned = [planned[stage.number - 1] for stage in selected]
    arguments = {"stages": selected}
  checks.before(planned, given["run_dir"])
  # jax's backends say much when they start; with --distributed, only standard error shows why a process was ended.
  plain = given["verbose"] or given["distributed"]
  with contextlib.nullcontext() if plain else console.kept_for_the_log():
    checks.devices(planned, mesh=not given["validate_only"])
  return arguments


def _run(
  verb: Verb,
  given: Mapping[str, Any],
  path: str,
  text: str,
  planned: Sequence[Planned],
  arguments: Mapping[str, Any],
  extra: Sequence[str],
) -> None:
  """Runs a verb in a directory that no other process fills; one that only reads and fails leaves but its log."""

  def save(replace: bool) -> None:
    run_config.save(path, text, replace=replace)
    command = (verb.name, given["gin_file"], given["gin_bindings"])
    distributed.on_first(lambda: run_record.start(path, text, *command, changed=changes))

  record = Record(given["run_dir"])
  changes = {} if verb.replaces else record.changes(planned)
  if verb.replaces:
    run_config.agree(text)
  else:
    distributed.on_first(lambda: record.check(planned))
    save(replace=record.covers(planned))
    distributed.on_first(lambda: record.begin(planned))
  if extra:
    configuration.load(given["gin_file"], [*given["gin_bindings"], *extra])
  shown = {"verbose": given["verbose"], "process": distributed.number(), "one_of_several": given["distributed"]}
  try:
    with (
      console.opened(given["run_dir"], verb.name, **shown),
      compilation_cache.kept(given["run_dir"], given["compilation_cache"]),
    ):
      for stage, changed in changes.items():
        console.say("%s: changed here: %s", stage, ", ".join(f"{n} {a} -> {b}" for n, (a, b) in changed.items()))
      configuration.call(verb.name, run_dir=given["run_dir"], **arguments)
  except InputError:
    if distributed.is_first() and not verb.replaces:
      Record(given["run_dir"]).discard()
    raise
  if verb.replaces:
    save(replace=True)
