"""The one exception for mistakes that the person running the program can mend."""


class InputError(ValueError):
  """Bad input: a path, a record, a binding, a mismatch.

  The message is one line that names the thing, the place and the remedy. Verbs
  print it without a traceback and exit with status 2.
  """


class Preempted(Exception):  # noqa: N818 - nothing went wrong
  """The run was told to end (SIGTERM, SIGINT) and has saved its state; the same command goes on from there.

  Verbs exit with status 75, `EX_TEMPFAIL` of sysexits.h: try again.
  """
