"""The one exception for mistakes that the person running the program can mend."""

from collections.abc import Iterable

_LISTED = 10


class InputError(ValueError):
  """Bad input: a path, a record, a binding, a mismatch.

  The message is one line that names the thing, the place and the remedy. Verbs
  print it without a traceback and exit with status 2.
  """


class Preempted(Exception):  # noqa: N818 - nothing went wrong
  """The run was told to end (SIGTERM, SIGINT) and has saved its state; the same command goes on from there.

  Verbs exit with status 75, `EX_TEMPFAIL` of sysexits.h: try again.
  """


def listed(names: Iterable[object]) -> str:
  """Names for a message: at most ten, in quotes (so that they stay in one line), and how many more there are."""
  quoted = [repr(str(name)) for name in names]
  more = f" and {len(quoted) - _LISTED} more" if len(quoted) > _LISTED else ""
  return ", ".join(quoted[:_LISTED]) + more if quoted else "nothing"
