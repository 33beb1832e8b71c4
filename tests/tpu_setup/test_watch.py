"""`watch` on a slice that exists in memory: what counts as trouble, and how tries are counted."""

import dataclasses
import threading

import pytest

from hiermem_jax.errors import InputError
from tpu_setup import config as configuration
from tpu_setup import jobs, source
from tpu_setup.shell import Shell
from tpu_setup.slices import ACTIVE, LOST, MISSING, WAITING, Host, TroubleError, everywhere
from tpu_setup.watch import watch

JOB = jobs.Job("train", [], "/runs/a2")


class FakeSlice:
  """Two hosts whose statuses are told one after the other; the last one stays. A run finishes when they are used up."""

  def __init__(self, statuses, states=(ACTIVE,), tries=3):
    defaults = configuration.load(None, {"provider": "local"})
    self.config = dataclasses.replace(defaults, hosts=2, tries=tries, healthy_minutes=30, poll_seconds=60)
    self.said, self.now, self.done = [], 0.0, []
    self.shell = Shell(False, tries, 1.0, self.sleep, self.said.append)
    self._statuses, self._states = list(statuses), list(states)

  def sleep(self, seconds):
    self.now += seconds

  def state(self):
    return self._states.pop(0) if len(self._states) > 1 else self._states[0]

  def create(self):
    self.done.append("create")

  def delete(self):
    self.done.append("delete")

  def hosts(self):
    return [Host("s", number, number) for number in range(2)]

  def read(self, path):
    return None if self._statuses else "today\n"

  def on_host(self, text):
    return text


@pytest.fixture
def watched(monkeypatch):
  """Runs `watch` and returns what was done to the slice."""
  monkeypatch.setattr(source, "archive", lambda commit, path: "code")
  monkeypatch.setattr(jobs, "statuses", lambda slice_, hosts: [jobs.Status(*each) for each in slice_._statuses.pop(0)])
  monkeypatch.setattr(jobs, "bootstrap", lambda slice_, archive: slice_.done.append("bootstrap"))
  monkeypatch.setattr(jobs, "stop", lambda slice_: slice_.done.append("stop"))
  monkeypatch.setattr(jobs, "launch", lambda slice_, job: slice_.done.append("launch"))

  def run(slice_):
    watch(slice_, JOB, clock=lambda: slice_.now)
    return slice_.done

  return run


def both(first, second):
  command = "python -m hiermem_jax.train --run_dir=/runs/a2"
  return [(first, command, "line"), (second, command, "line")]


START = ["stop", "bootstrap", "launch"]


def test_a_host_that_has_ended_well_waits_for_the_others(watched):
  """The hosts of a run do not end in the same second."""
  slice_ = FakeSlice([both("running", "running"), both("exited 0", "running"), both("running", "exited 0")])
  assert watched(slice_) == [] and slice_.now == 180
  assert slice_.said == ["code: code", "/runs/a2: finished, today"]


@pytest.mark.parametrize("last", ["exited 0", "exited 1", "died", "none"])
def test_what_has_ended_is_started_again(watched, last):
  first = "exited 0" if last == "exited 0" else "running"
  slice_ = FakeSlice([both(first, last), both("running", "running")])
  assert watched(slice_) == START
  reason = "every host has ended, but there is no completion mark" if last == "exited 0" else f"s:1 {last} (line)"
  assert f"{slice_.config.name}: {reason}; try 1 of 3" in slice_.said


def test_bad_input_ends_the_watching_only_where_this_watching_started_the_run(watched):
  """What a host says from before may be about another command, which the user has corrected since."""
  slice_ = FakeSlice([both("running", "exited 2"), both("running", "running")])
  assert watched(slice_) == START
  slice_ = FakeSlice([both("running", "exited 2"), both("running", "exited 2"), both("running", "running")])
  with pytest.raises(InputError, match="^s:1: line; mend that, then watch again"):
    watched(slice_)
  assert slice_.done == START


def test_a_long_run_clears_the_tries(watched):
  """Three failures in a row are the end, but a run that went on for half an hour in between starts the count anew."""
  failures = [both("running", "died")] * 2
  healthy = [both("running", "running")] * 30  # looks that are a minute apart
  slice_ = FakeSlice([*failures, *healthy, *failures, both("running", "died"), both("running", "running")])
  assert watched(slice_) == 5 * START
  slice_ = FakeSlice([*failures, *healthy[1:], *failures, both("running", "running")])
  with pytest.raises(InputError, match=r"^/runs/a2: gave up after 3 tries, s:1 died \(line\)"):
    watched(slice_)
  assert slice_.done == 3 * START


def test_pauses_grow_with_the_tries(watched):
  slice_ = FakeSlice([both("running", "died")] * 3 + [both("running", "running")])
  watched(slice_)
  assert slice_.now == 1 + 2 + 60  # none before the first try
  assert [line for line in slice_.said if "waiting" in line] == ["hiermem: waiting 1 s", "hiermem: waiting 2 s"]


def test_slices_are_waited_for_made_and_made_anew(watched):
  running = [both("running", "running")]
  slice_ = FakeSlice(running, [WAITING, WAITING, ACTIVE])
  assert watched(slice_) == [] and slice_.now == 180
  assert watched(FakeSlice(running, [MISSING, ACTIVE])) == ["create", "bootstrap", "launch"]
  assert watched(FakeSlice(running, [LOST, ACTIVE])) == ["delete", "create", "bootstrap", "launch"]


def test_hosts_are_reached_at_the_same_time():
  slice_, together = FakeSlice([]), threading.Barrier(2, timeout=30)
  assert sorted(everywhere(slice_, lambda host: together.wait())) == [0, 1]


def test_an_error_of_the_program_is_not_taken_for_a_failure_of_a_host():
  def fail(host):
    raise KeyError(host.index)

  with pytest.raises(KeyError):
    everywhere(FakeSlice([]), fail)
  with pytest.raises(TroubleError, match="^lost$"):
    everywhere(FakeSlice([]), lambda host: (_ for _ in ()).throw(TroubleError("lost")))


def test_completion_mark():
  assert jobs.Job("train", [], "gs://b/a2").mark == jobs.Job("train", [], "gs://b/a2/").mark == "gs://b/a2/finished"
