"""Sets up the hosts of a slice, and starts, inspects and stops a run on them."""

import json
import pathlib
import shlex
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from hiermem_jax.errors import InputError
from hiermem_jax.parallel.hosts import check_agreement
from tpu_setup import source
from tpu_setup.slices import ACTIVE, Host, Slice, TroubleError, everywhere

_ARCHIVE = "hiermem_code.tar.gz"
_SCRIPTS = "hiermem/code/tpu_setup/host"
# The old code is replaced when the new code is unpacked in full, and never while a run uses it.
_UNPACK = f"""set -e
if [ -e {_SCRIPTS}/status.sh ] && [ "$(bash {_SCRIPTS}/status.sh | head -n 1)" = running ]; then
  echo "error: a run is going on; stop it first" >&2
  exit 2
fi
rm -rf hiermem/code.new
mkdir -p hiermem/code.new
tar -xzf {_ARCHIVE} -C hiermem/code.new
rm -rf hiermem/code
mv hiermem/code.new hiermem/code
"""


class Job(NamedTuple):
  """A run: a verb, its flags, and its run directory."""

  verb: str  # one that takes --distributed, e.g. "train"
  flags: Sequence[str]
  run_dir: str  # as the user names it: gs://... or a path

  @property
  def mark(self) -> str:
    """The file that exists once the run has finished."""
    return f"{self.run_dir.rstrip('/')}/finished"


class Status(NamedTuple):
  """The state of a run on one host."""

  state: str  # "running", "exited N", "died" or "none"
  command: str
  last_line: str


def require_active(slice_: Slice) -> None:
  """Raises InputError when the slice is not active."""
  if not slice_.shell.dry_run and (state := slice_.state()) != ACTIVE:
    raise InputError(f"{slice_.config.name}: is {state} ({slice_.detail()}); create it first, or wait for it")


def bootstrap(slice_: Slice, archive: pathlib.Path | None = None) -> None:
  """Copies the code to every host, makes the environment, mounts the bucket, and compares the hosts.

  Args:
    slice_: an active slice.
    archive: the code, see `source.archive`; None makes an archive of the configured commit.

  Raises:
    TroubleError: a host could not be made ready.
    InputError: a host lacks chips, or differs from the others; it is named.
  """
  config, dry_run = slice_.config, slice_.shell.dry_run
  hosts = slice_.hosts()
  with tempfile.TemporaryDirectory() as directory:
    if archive is None:
      archive = pathlib.Path(directory if not dry_run else ".") / _ARCHIVE
      name = "(not made)" if dry_run else source.archive(config.commit, archive)
      slice_.shell.say(f"code: {name}")
    send = lambda host: slice_.send(host, str(archive), _ARCHIVE)  # noqa: E731
    everywhere(slice_, send, hosts[:1])  # the first connection makes the ssh key that all others use
    everywhere(slice_, send, hosts[1:])
  script = f"{_UNPACK}{_variables(slice_.environment())} bash {_SCRIPTS}/bootstrap.sh"
  answers = everywhere(slice_, lambda host: slice_.run(host, script), hosts)
  if dry_run:
    return
  facts = [_facts(host, text) for host, text in zip(hosts, answers)]
  if config.provider == "gcloud":
    for each in facts:
      if each["chips"] != config.chips_per_host:
        raise InputError(
          f"{each['host']}: has {each['chips']} TPU chips, a host of {config.topology} should have"
          f" {config.chips_per_host}; delete the slice and create it again"
        )
  check_agreement(facts)
  slice_.shell.say(f"{len(hosts)} hosts are ready: jax {facts[0]['jax']}, Python {facts[0]['python']}")


def _facts(host: Host, text: str) -> dict:
  """Parses the last line of bootstrap.sh's output, JSON, and adds the name of the host."""
  last = (text.strip().splitlines() or [""])[-1]
  try:
    return json.loads(last) | {"host": str(host)}
  except (ValueError, TypeError):
    raise TroubleError(f"{host}: bootstrap.sh ended with {last!r} instead of what the host has; try again") from None


def launch(slice_: Slice, job: Job) -> None:
  """Starts the run on every host.

  Raises:
    TroubleError: it did not start on one host; it is then stopped on the others.
    InputError: a run is going on there.
  """
  hosts = slice_.hosts()
  run_dir = slice_.on_host(job.run_dir)
  flags = [slice_.on_host(flag) for flag in job.flags]
  arguments = ["-m", f"hiermem_jax.{job.verb}", "--distributed", f"--run_dir={run_dir}", *flags]
  own = slice_.process_flags(hosts)

  def start(host: Host) -> str:
    variables = _variables(slice_.environment() | {"RUN_DIR": run_dir, "INDEX": str(host.index)})
    return slice_.run(host, f"{variables} bash {_SCRIPTS}/start.sh {shlex.join([*arguments, *own[host.index]])}")

  already = [] if slice_.shell.dry_run else [each.state == "running" for each in statuses(slice_, hosts)]
  if any(already):
    raise InputError(f"{hosts[already.index(True)]}: a run is going on; stop it first, or watch it")
  try:
    everywhere(slice_, start, hosts)
  except Exception:
    stop(slice_, seconds=0)
    raise
  if not slice_.shell.dry_run:
    slice_.shell.say(f"{slice_.config.name}: started on {len(hosts)} hosts")


def statuses(slice_: Slice, hosts: Sequence[Host] | None = None) -> list[Status]:
  """Asks every host for the state of its run; the answers are in the order of the hosts."""
  script = f"bash {_SCRIPTS}/status.sh 2> /dev/null || printf 'none\\n\\n\\n'"
  answers = everywhere(slice_, lambda host: slice_.run(host, script), hosts)
  return [Status(*(text.split("\n") + ["", "", ""])[:3]) for text in answers]


def stop(slice_: Slice, seconds: int | None = None) -> None:
  """Tells the run on every host to save its state and end, and kills it where it has not ended after `seconds`."""
  seconds = slice_.config.stop_seconds if seconds is None else seconds
  script = f"[ ! -e {_SCRIPTS}/stop.sh ] || STOP_SECONDS={seconds} bash {_SCRIPTS}/stop.sh"
  everywhere(slice_, lambda host: slice_.run(host, script))


def logs(slice_: Slice, worker: int | None, lines: int) -> list[str]:
  """Reads the last lines of the logs of one host or of all; each line begins with its host."""
  hosts = slice_.hosts()
  if worker is not None:
    if not 0 <= worker < len(hosts):
      raise InputError(f"--host={worker}: {slice_.config.name} has hosts 0 to {len(hosts) - 1}")
    hosts = [hosts[worker]]
  script = f"tail -n {lines} hiermem/job/log 2> /dev/null || true"
  answers = everywhere(slice_, lambda host: slice_.run(host, script), hosts)
  return [f"{host}| {line}" for host, text in zip(hosts, answers) for line in text.splitlines()]


def _variables(values: dict[str, str]) -> str:
  return " ".join(f"{name}={shlex.quote(value)}" for name, value in values.items())
