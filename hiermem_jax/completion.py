"""What a shell proposes behind `hiermem` when Tab is pressed: verbs, then the flags of the verb, and files.

argcomplete speaks with the shell, which is told of it by `eval "$(register-python-argcomplete hiermem)"`. It knows
argparse alone, so the table of verbs is given to it as parsers that never parse.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from hiermem_jax.verbs import VERBS


def propose(flags: Mapping[str, tuple[str, bool]]) -> None:
  """Answers the shell and ends the process. It is called where the shell has set _ARGCOMPLETE.

  Args:
    flags: from the name of a flag to its help, and whether it takes a value.
  """
  import argcomplete
  from argcomplete.completers import DirectoriesCompleter, FilesCompleter

  completers = {"gin_file": FilesCompleter(("gin",)), "run_dir": DirectoriesCompleter()}
  parser = argparse.ArgumentParser(prog="hiermem")
  verbs = parser.add_subparsers()
  for verb in VERBS.values():
    one = verbs.add_parser(verb.name, help=verb.help)
    for name in verb.flags:
      text, takes_value = flags[name]
      kind: dict[str, Any] = {} if takes_value else {"action": "store_true"}
      action = one.add_argument(f"--{name}", help=text.replace("%", "%%"), **kind)
      if takes_value:
        action.completer = completers.get(name, _no_proposal)  # type: ignore[attr-defined]
  argcomplete.autocomplete(parser, always_complete_options="long")


def _no_proposal(**_: object) -> tuple[()]:
  return ()
