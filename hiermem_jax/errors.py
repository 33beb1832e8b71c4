"""The one exception for mistakes that the person running the program can mend."""


class InputError(ValueError):
  """Bad input: a path, a record, a binding, a mismatch.

  The message is one line that names the thing, the place and the remedy. Verbs
  print it without a traceback and exit with status 2.
  """
