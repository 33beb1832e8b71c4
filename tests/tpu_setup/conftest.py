"""A gcloud that records how it is called and fails when told to, in place of the one on PATH."""

import json
import subprocess
import threading
import types

import pytest

from tpu_setup.__main__ import main


class Cloud:
  """The fake, and the command line that meets it.

  Its folder has a file `exists` while the slice does (`exists_NAME` of a slice with another name than hiermem), and
  `finished_NAME` when the run NAME has finished. A run finishes when it is asked for its status, if `finish_when_asked`
  is there. `on_status` is called whenever a host is asked for its status.
  """

  def __init__(self, folder, monkeypatch, capsys):
    self.folder, self.calls, self._capsys, self._lock = folder, [], capsys, threading.Lock()
    self.on_status = lambda: None
    fake = types.SimpleNamespace(run=self._run, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr("tpu_setup.shell.subprocess", fake)
    self.answer()

  def answer(self, *wrong):
    """What goes wrong: (words of the command joined by &, status or an exception to raise, text, how often)."""
    self._wrong = [[words.split("&"), status, text, times] for words, status, text, times in wrong]

  def _run(self, command, **_):
    """What subprocess.run would return for a command line of gcloud."""
    assert command[0] == "gcloud"
    text = " ".join(map(str, command[1:]))
    if "status.sh" in text:
      self.on_status()
    with self._lock:  # hosts are reached in threads
      self.calls.append(text.replace(" --project=p --zone=z", ""))
      status, output = self._wrong_answer(text) or self._right_answer(text, command)
    return subprocess.CompletedProcess(command, status, "" if status else f"{output}\n", output if status else "")

  def _wrong_answer(self, text):
    for wrong in self._wrong:
      words, status, output, times = wrong
      if times and all(word in text for word in words):
        wrong[3] -= 1
        if not isinstance(status, int):
          raise status
        return status, output
    return None

  def _right_answer(self, text, command):
    name = command[5] if "queued-resources" in text or "tpu-vm" in text else ""  # of the slice
    exists = self.folder / ("exists" if name == "hiermem" else f"exists_{name}")
    started = self.folder / f"started_{name.partition(':')[0]}"
    if "queued-resources describe" in text:
      return (0, "ACTIVE") if exists.exists() else (1, "ERROR: NOT_FOUND: no such resource")
    if "queued-resources create" in text:
      exists.touch()
    elif "queued-resources delete" in text:
      if not exists.exists():
        return 1, "ERROR: NOT_FOUND: no such resource"
      exists.unlink()
    elif "tpu-vm describe" in text:
      return 0, json.dumps({"state": "READY", "networkEndpoints": [{}] * self._hosts})
    elif "buckets describe" in text:
      return 0, "True"
    elif "storage cat" in text:
      mark = self.folder / f"finished_{command[-1].split('/')[-2]}"
      return (0, mark.read_text()) if mark.exists() else (1, "ERROR: The following URLs matched no objects or files")
    elif "bootstrap.sh" in text:
      return 0, json.dumps({"host": "t1v", "chips": 4, "python": "3.12.1", "jax": "0.12.0"})
    elif "start.sh" in text:
      started.write_text(text.split("start.sh ")[1])
    elif "status.sh" in text:
      return 0, self._status(started.read_text() if started.exists() else "")
    elif "stop.sh" in text:
      started.unlink(missing_ok=True)
    return 0, ""

  def _status(self, job):
    state = "running" if job else "none"
    if job and (self.folder / "finish_when_asked").exists():
      name = job.split("--run_dir=")[1].split()[0].split("/")[-1]
      (self.folder / f"finished_{name}").write_text("today")
      state = "exited 0"
    return f"{state}\n{job}\nstep 7"

  def named(self, *words):
    return [call for call in self.calls if all(word in call for word in words)]

  def __call__(self, command, *flags, status=0, hosts=8):
    defaults = ["--project=p", "--zone=z", "--topology=v5e:4x8", "--backoff_seconds=0", "--poll_seconds=0", "--tries=3"]
    self._hosts = hosts
    found = main([command, *defaults, *flags])
    output = "".join(self._capsys.readouterr())
    assert found == status, output
    return output


@pytest.fixture
def cloud(tmp_path, monkeypatch, capsys):
  folder = tmp_path / "cloud"
  folder.mkdir()
  return Cloud(folder, monkeypatch, capsys)
