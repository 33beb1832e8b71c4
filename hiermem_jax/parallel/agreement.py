"""How processes that train together agree on what happened: through the coordinator's key-value store, within a time.

A collective waits for ever for a process that does not come, and a process that has failed does not come. So whatever
decides how a run goes on is said here, and no device takes part.

Every process must call these functions in the same order; they are counted.
"""

import dataclasses
import itertools
import json
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax

T = TypeVar("T")

_ROOT = "hiermem_jax"
_SLICE = 60.0  # seconds that a wait without an end asks at a time
_GRACE = 60.0  # seconds that a process may begin later than another
_PAUSES = (0.005, 0.25)  # seconds between two looks, first and longest
_numbers = itertools.count()


class CalledOffError(RuntimeError):
  """A meeting did not take place, because another process has failed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
  """What went wrong in one process.

  Attributes:
    process: its number.
    host: its host's name; "" where it did not say.
    kind: what the caller calls it; "silent" for a process that did not answer, "late" for one that did not get done,
      "called off" for one that only waited for another that failed.
    reason: in words.
  """

  process: int
  host: str
  kind: str
  reason: str

  def __str__(self) -> str:
    if not jax.distributed.is_initialized():
      return self.reason
    return f"process {self.process}{f' ({self.host})' if self.host else ''}: {self.reason}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome(Generic[T]):
  """What became of something that every process tried.

  Attributes:
    value: what it gave here; None where it failed.
    error: what it raised here, or None.
    failures: of all processes, the same list in each.
  """

  value: T | None
  error: BaseException | None
  failures: tuple[Failure, ...]


def attempt(
  function: Callable[[], T],
  seconds: float,
  *,
  describe: Callable[[BaseException], tuple[str, str]],
  patience: float | None = None,
) -> Outcome[T]:
  """Calls `function` in every process; all learn of all failures.

  Where there are several processes it runs in a thread of its own, which is left alone when the time is over. So
  nothing that hangs, here or elsewhere, holds a process for longer than `seconds` and two minutes.

  Args:
    function: may do something else in each process, but no collective.
    seconds: that it may take.
    describe: from what it raised to the kind and the reason of a `Failure`.
    patience: seconds that this process goes on when another has failed, for a function that waits for the others; None:
      until it is done.
  """
  if not jax.distributed.is_initialized():
    try:
      return Outcome(value=function(), error=None, failures=())
    except Exception as error:
      kind, reason = describe(error)
      return Outcome(value=None, error=error, failures=(Failure(process=0, host="", kind=kind, reason=reason),))
  number = next(_numbers)
  worker = _Worker(function)
  worker.start()
  deadline = given_up = time.monotonic() + seconds
  for pause in _pauses():
    worker.join(pause)
    if not worker.is_alive() or time.monotonic() > given_up:
      break
    if patience is not None and given_up == deadline and pause == _PAUSES[1] and _failed_elsewhere(number):
      given_up = min(deadline, time.monotonic() + patience)
  said: dict[str, str] | None = None
  if worker.is_alive() and time.monotonic() > deadline:
    said = {"kind": "late", "reason": f"not done within {seconds:.0f} s"}
  elif worker.error is not None:
    called_off = all(isinstance(each, CalledOffError) for each in causes(worker.error))
    kind_and_reason = ("called off", str(worker.error)) if called_off else describe(worker.error)
    said = dict(zip(("kind", "reason"), kind_and_reason))
  if said is not None:
    said["host"] = socket.gethostname()
    _client().key_value_set(f"{_ROOT}/{number}/failed/{jax.process_index()}", "")
  answers = _exchange(number, json.dumps(said), max(deadline - time.monotonic(), 0) + _GRACE)
  silent = {"kind": "silent", "host": "", "reason": f"no answer within {seconds + _GRACE:.0f} s"}
  found = [silent if answer is None else json.loads(answer) for answer in answers]
  failures = tuple(Failure(process=process, **each) for process, each in enumerate(found) if each)
  first = tuple(failure for failure in failures if failure.kind != "called off")
  return Outcome(value=worker.value, error=worker.error, failures=first or failures)


def exchange(text: str) -> list[str]:
  """The text of each process. It waits for as long as the others are alive.

  Raises:
    RuntimeError: the coordinator is gone.
  """
  answers = _exchange(next(_numbers), text, math.inf)
  return [answer or "" for answer in answers]


def causes(error: BaseException) -> list[BaseException]:
  """An error, and what it was raised from."""
  found: list[BaseException] = []
  cause: BaseException | None = error
  while cause is not None and cause not in found:
    found.append(cause)
    cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
  return found


class Meeting:
  """A barrier that ends when the processes do not do the same, for what waits in it would never end.

  The processes meet again and again, each time under the same name. One that has failed goes on to the next name, or is
  told to by `call_off`, and so the others are let go.
  """

  def __init__(self, name: str):
    """A meeting place whose name no other has, the same in all processes."""
    self._place, self._numbers, self._off = f"{_ROOT}/{name}", itertools.count(), threading.Event()

  def call_off(self) -> None:
    """Lets this process's threads go that wait here, or will."""
    self._off.set()

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    """Waits for all processes.

    Raises:
      CalledOffError: another process is elsewhere, or the meeting was called off, as all that follow are then.
      TimeoutError: another did not come.
    """
    number, deadline = next(self._numbers), time.monotonic() + timeout_ms / 1000
    client, folder = _client(), f"{self._place}/{number}"
    client.key_value_set(f"{folder}/{jax.process_index()}", key)
    for pause in _pauses():
      came = {name.rsplit("/", 1)[1]: theirs for name, theirs in client.key_value_dir_get(folder)}
      if elsewhere := [process for process, theirs in came.items() if theirs != key]:
        self._off.set()
        raise CalledOffError(f"process {', '.join(elsewhere)} failed before {key}")
      if len(came) == jax.process_count():
        break
      if time.monotonic() > deadline:
        missing = sorted(set(map(str, range(jax.process_count()))) - set(came))
        raise TimeoutError(f"process {', '.join(missing)} did not reach {key} within {timeout_ms / 1000:.0f} s")
      if self._off.wait(pause):
        raise CalledOffError(f"another process failed before {key}")
    if number and not jax.process_index():  # whoever came here has left the one before
      client.key_value_delete(f"{self._place}/{number - 1}")


class _Worker(threading.Thread):
  """Runs a function and keeps what became of it."""

  def __init__(self, function: Callable[[], Any]):
    super().__init__(daemon=True)
    self._function = function
    self.value: Any = None
    self.error: BaseException | None = None

  def run(self) -> None:
    try:
      self.value = self._function()
    except BaseException as error:
      self.error = error


def _exchange(number: int, text: str, seconds: float) -> list[str | None]:
  """The first process collects the texts and hands the list out; None stands for one that did not come in time."""
  client, folder, own = _client(), f"{_ROOT}/{number}", jax.process_index()
  if own:
    client.key_value_set(f"{folder}/{own}", text)
    answers = _get(f"{folder}/all", seconds + _GRACE)
    if answers is None:
      return [text if process == own else None if process == 0 else "null" for process in range(jax.process_count())]
    return json.loads(answers)
  deadline = time.monotonic() + seconds
  found: list[str | None] = [text]
  for process in range(1, jax.process_count()):
    found.append(_get(f"{folder}/{process}", max(deadline - time.monotonic(), 0.001)))
  client.key_value_set(f"{folder}/all", json.dumps(found))
  if number and None not in found:  # whoever has answered has read the list before
    client.key_value_delete(f"{_ROOT}/{number - 1}")
  return found


def _get(key: str, seconds: float) -> str | None:
  """The value of a key as soon as it has one; None where it gets none in time."""
  deadline = time.monotonic() + seconds
  while True:
    wait = min(max(deadline - time.monotonic(), 0.001), _SLICE)
    try:
      return _client().blocking_key_value_get(key, math.ceil(1000 * wait))
    except jax.errors.JaxRuntimeError as error:
      if not str(error).startswith("DEADLINE_EXCEEDED"):
        raise
      if time.monotonic() >= deadline:
        return None


def _failed_elsewhere(number: int) -> bool:
  return bool(_client().key_value_dir_get(f"{_ROOT}/{number}/failed"))


def _pauses():
  """Seconds between two looks, without an end."""
  pause, longest = _PAUSES
  while True:
    yield pause
    pause = min(2 * pause, longest)


def _client() -> Any:
  """The client of the coordinator, which jax hands out under no public name; orbax takes the same."""
  from jax._src import distributed

  return distributed.global_state.client
