"""Slices on this machine, to try things before they cost money. A host is a directory, its chips are CPU devices."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

from hiermem_jax.errors import InputError
from tpu_setup.config import Config
from tpu_setup.shell import CommandError, Shell
from tpu_setup.slices import ACTIVE, MISSING, Host, everywhere


class LocalSlice:
  """A slice on this machine; see `slices.Slice`.

  ROOT/NAME/slice.json holds the state. Writing "lost" there simulates a preemption.
  """

  def __init__(self, config: Config, shell: Shell):
    self.config, self.shell = config, shell
    self.directory = pathlib.Path(config.root).absolute() / config.name
    self._file = self.directory / "slice.json"

  def create(self) -> None:
    """Makes the directories of the hosts."""
    if self.state() != MISSING:
      raise InputError(f"{self.config.name}: this slice exists in {self.directory}; delete it, or give another --name")
    homes = [str(self._home(number)) for number in range(self.config.hosts)]
    self.shell.run(["mkdir", "-p", *homes])
    if not self.shell.dry_run:
      self._file.write_text(json.dumps({"state": ACTIVE, "hosts": self.config.hosts}))

  def _home(self, number: int) -> pathlib.Path:
    return self.directory / f"host_{number}"

  def state(self) -> str:
    """The state that slice.json holds; MISSING without the file."""
    return json.loads(self._file.read_text())["state"] if self._file.exists() else MISSING

  def detail(self) -> str:
    """The same as `state`."""
    return self.state()

  def delete(self) -> None:
    """Kills what runs on the hosts and removes their directories."""
    if self.state() == MISSING:
      return
    script = f"STOP_SECONDS=0 bash {pathlib.Path(__file__).parent}/host/stop.sh"
    everywhere(self, lambda host: self.run(host, script))
    self.shell.run(["rm", "-r", str(self.directory)])

  def hosts(self) -> list[Host]:
    """All hosts; each is for one process."""
    count = json.loads(self._file.read_text())["hosts"] if self._file.exists() else self.config.hosts
    return [Host(self.config.name, number, number) for number in range(count)]

  def run(self, host: Host, script: str) -> str:
    """Runs a script in bash with the host's directory as HOME."""
    home = self._home(host.worker)
    if self.shell.dry_run:
      self.shell.say(f"cd {home} && HOME={home} bash -c {script!r}")
      return ""
    done = subprocess.run(
      ["bash", "-c", script],
      cwd=home,
      env=os.environ | {"HOME": str(home)},
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
    )
    if done.returncode:
      raise CommandError(["bash", "-c", script], done.returncode, done.stderr or done.stdout)
    return done.stdout

  def send(self, host: Host, path: str, name: str) -> None:
    """Copies a file into the host's directory."""
    self.shell.run(["cp", path, str(self._home(host.worker) / name)])

  def process_flags(self, hosts: Sequence[Host]) -> list[list[str]]:
    """The address of process 0, on a port that is free at this moment, with the number and the id of each process."""
    with socket.socket() as listener:
      listener.bind(("127.0.0.1", 0))
      port = listener.getsockname()[1]
    meeting = [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={len(hosts)}"]
    return [[*meeting, f"--process_id={host.index}"] for host in hosts]

  def environment(self) -> dict[str, str]:
    """CPU devices, and the interpreter that runs this program where none is configured."""
    python = self.config.python or sys.executable
    return {"CHIP": "cpu", "DEVICES": str(self.config.devices), "BUCKET": "", "PYTHON": python}

  def on_host(self, text: str) -> str:
    """The text itself, because hosts see the same paths. Raises InputError for gs:// paths."""
    if "gs://" in text:
      raise InputError(f"{text}: a local slice has no buckets; give a path")
    return text

  def read(self, path: str) -> str | None:
    """Reads a file of this machine; None where there is none."""
    return pathlib.Path(path).read_text() if os.path.exists(path) else None
