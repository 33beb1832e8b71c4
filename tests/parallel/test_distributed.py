"""How processes agree, in one process that plays one of three; tests/multihost has real ones."""

import json
import types

import jax
import pytest
from absl import logging

from hiermem_jax.errors import InputError
from hiermem_jax.parallel import agreement, distributed, hosts


@pytest.fixture
def play(monkeypatch):
  """Makes this process number `me` of three; the others say `others`."""
  run = types.SimpleNamespace(sent=[])

  def call(me, others=("", "")):
    def exchange(text):
      run.sent.append(text)
      return [*others[:me], text, *others[me:]]

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: me)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(agreement, "exchange", exchange)
    return run

  return call


def fails(error):
  def function():
    raise error

  return function


def test_alone_nothing_is_asked(monkeypatch):
  monkeypatch.setattr(agreement, "exchange", lambda _: pytest.fail("asked other processes"))
  assert distributed.is_first() and distributed.from_first(7) == 7 and not distributed.leave(0)
  assert distributed.together(lambda: "mine") == "mine"


def test_the_number_is_the_firsts(play):
  play(0)
  for number in (0, 5, -1, 2**40, 2**55 + 1):
    assert distributed.is_first() and distributed.from_first(number) == number
  for number in (0, 5, -1, 2**40, 2**55 + 1):
    play(2, (str(number), "3"))
    assert not distributed.is_first() and distributed.from_first(7) == number
    play(0)


def test_the_first_alone_acts(play):
  calls = []
  play(1)
  distributed.on_first(lambda: calls.append(1))
  assert not calls
  play(0)
  distributed.on_first(lambda: calls.append(0))
  assert calls == [0]


def test_every_process_hears_what_happened_in_another(play):
  play(0)
  assert distributed.together(lambda: "mine") == "mine"
  play(0, ("", "1process 2: no such file"))
  with pytest.raises(InputError, match="^process 2: no such file$"):
    distributed.together(lambda: "mine")
  play(0, ("2process 1: a bug", ""))
  with pytest.raises(RuntimeError, match="^process 1: a bug$"):
    distributed.together(lambda: "mine")


@pytest.mark.parametrize("error, kind", [(InputError("x: bad"), "1"), (OSError("full"), "1"), (KeyError("bug"), "2")])
def test_a_process_that_fails_says_so_and_raises_its_own_error(play, error, kind):
  run = play(1)
  with pytest.raises(type(error)) as caught:
    distributed.together(fails(error))
  assert caught.value is error and run.sent == [f"{kind}process 1: {error}"]


@pytest.mark.parametrize("me, level", [(0, logging.INFO), (2, logging.WARNING)])
def test_only_the_first_process_logs_what_is_no_warning(play, monkeypatch, me, level):
  here = hosts.facts()
  play(me, (json.dumps(here),) * 2)
  asked = {}
  monkeypatch.setattr(jax.config, "update", lambda name, value: asked.update({name: value}))
  monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **settings: asked.update(settings, given=given))
  before = logging.get_verbosity()
  logging.set_verbosity(logging.INFO)
  try:
    distributed.initialize("host:1", 3, me, preemptible=True)
    assert logging.get_verbosity() == level
  finally:
    logging.set_verbosity(before)
  assert asked["jax_enable_preemption_service"] and asked["given"] == ("host:1", 3, me)
  assert 0 < asked["heartbeat_timeout_seconds"] <= 60  # the manual promises about a minute
