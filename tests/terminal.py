"""A program in a pseudo-terminal."""

import fcntl
import os
import pty
import struct
import termios


def shown(columns, start, seconds=300):
  """All that a program writes into a terminal of so many columns; it must end well.

  Args:
    columns: of the terminal.
    start: is given standard input, output and error, and the variable TERM as `env`, and returns the process.
    seconds: that it may take to end after it has closed the terminal.
  """
  ours, theirs = pty.openpty()
  fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
  process = start({"TERM": "xterm-256color"}, stdin=theirs, stdout=theirs, stderr=theirs)
  os.close(theirs)
  written = b""
  try:
    while data := os.read(ours, 4096):
      written += data
  except OSError:  # the end, on Linux
    pass
  os.close(ours)
  assert process.wait(seconds) == 0, written.decode()
  return written.decode()
