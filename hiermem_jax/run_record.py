"""What a run directory keeps of how its runs were started: a short configuration, and a line for each start.

Beside the complete configuration, say `config.gin`, stands `config.short.gin`: the gin files that were given, as
includes, and what was bound on the command line. It is the one to edit and to share; both resolve to the same.
`runs.jsonl` has a line for each time that a verb started here. The complete configuration is that of the last start;
what it changed of the one before is in its line.
"""

import datetime
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hiermem_jax import config_files, files

NAME = "runs.jsonl"


def short_name(name: str) -> str:
  """The name of the short configuration that stands beside a complete one."""
  return name.removesuffix(".gin") + ".short.gin"


def start(
  path: str,
  text: str,
  verb: str,
  gin_files: Sequence[str],
  bindings: Sequence[str],
  changed: Mapping[str, Any] | None = None,
) -> None:
  """Writes the short configuration, where there is none that resolves to `text`, and adds a line to `runs.jsonl`.

  Args:
    path: of the complete configuration in the run directory; it has been written.
    text: the complete configuration.
    verb: that starts.
    gin_files: as given on the command line.
    bindings: as given on the command line.
    changed: what is bound to another value than when it was started before: by stage and name, both values.
  """
  directory, name = os.path.split(path)
  short = os.path.join(directory, short_name(name))
  head = f"# Resolves to {name} (sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}), for the verb {verb}.\n"
  if not os.path.exists(short) or not _read(short).startswith(head):
    files.write_text(short, head + short_text(gin_files, bindings, replaced=(path, short)))
  with open(os.path.join(directory, NAME), "a", encoding="utf-8") as file:
    file.write(json.dumps({"verb": verb, "config": name, "changed": changed or {}, **facts()}) + "\n")


def short_text(gin_files: Sequence[str], bindings: Sequence[str], replaced: Sequence[str] = ()) -> str:
  """A gin file that says the same as gin files and bindings on top of them.

  Args:
    gin_files: each becomes an include that can be found from anywhere.
    bindings: each becomes a line.
    replaced: files that the run writes itself; where one is among `gin_files` its statements stand for it.
  """
  own = {os.path.realpath(path) for path in replaced}
  lines = ["# The files that were given, then what was bound on the command line.\n"]
  for name in gin_files:
    path = config_files.find(name, f"--gin_file={name}")
    if os.path.realpath(path) in own:
      lines += [line for line in _read(path).splitlines(keepends=True) if not line.startswith("#")]
    else:
      lines.append(f"include {config_files.portable(path)!r}\n")
  return "".join([*lines, *(f"{binding.strip()}\n" for binding in bindings)])


def facts() -> dict[str, Any]:
  """What a run depends on beside its configuration, and who started it.

  Returns:
    `time` (UTC), `command`, `directory` (where it was given), `host`, `python`, `version` of hiermem_jax and `code`, a
    digest of its files; `commit` and `dirty` (whether tracked files differ from it), None outside a git checkout;
    `packages`, the version of each requirement that is installed.
  """
  from hiermem_jax.parallel import hosts

  host = hosts.facts()
  commit = _git("rev-parse", "HEAD")
  changes = None if commit is None else _git("status", "--porcelain", "--untracked-files=no")
  return {
    "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": shlex.join(sys.argv),
    "directory": os.getcwd(),
    "host": host["host"],
    "python": host["python"],
    "version": importlib.import_module("hiermem_jax").__version__,  # of the code, not of what pip noted once
    "code": host["hiermem_jax"],
    "commit": commit,
    "dirty": None if changes is None else bool(changes),
    "packages": _packages(),
  }


def read(directory: str) -> list[dict[str, Any]]:
  """The lines of a run directory's `runs.jsonl`, oldest first; none where it keeps none."""
  path = os.path.join(directory, NAME)
  return files.read_jsonl(path) if os.path.exists(path) else []


@functools.cache
def _packages() -> dict[str, str]:
  try:
    declared = importlib.metadata.requires("hiermem_jax") or []
  except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
    declared = ["jax", "flax", "optax", "orbax-checkpoint", "gin-config", "numpy"]
  names = {found[0] for line in [*declared, "jaxlib"] if (found := re.match(r"[\w.-]+", line))}
  return {name: version for name in sorted(names) if (version := _version(name)) is not None}


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _git(*arguments: str) -> str | None:
  """What git says of the checkout; None where there is none, or no git."""
  if not os.path.exists(os.path.join(config_files.ROOT, ".git")):
    return None
  try:
    result = subprocess.run(
      ["git", "-C", config_files.ROOT, *arguments], capture_output=True, text=True, check=True, timeout=10
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return result.stdout.strip()


def _read(path: str) -> str:
  with open(path, encoding="utf-8") as file:
    return file.read()
