"""A gcloud that records how it is called and fails when told to, in front of the real one on PATH."""

import json
import os
import sys

import pytest

from tpu_setup.__main__ import main

FAKE = '''#!{python}
"""Answers as gcloud does; FAKE/answers.json says what goes wrong: [part of the command, status, text, times] each."""
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["FAKE"])
command = " ".join(sys.argv[1:])
fd = os.open(folder / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(fd, (json.dumps(sys.argv) + "\\n").encode())
for number, (part, status, text, times) in enumerate(json.loads((folder / "answers.json").read_text())):
  if all(word in command for word in part.split("&")):
    used = folder / f"used_{{number}}"
    count = len(used.read_bytes()) if used.exists() else 0
    if count < times:
      with open(used, "ab") as file: file.write(b"x")
      print(text, file=sys.stderr if status else sys.stdout)
      sys.exit(status)
if "queued-resources describe" in command:
  if not (folder / "exists").exists():
    print("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no such resource", file=sys.stderr)
    sys.exit(1)
  print("ACTIVE")
elif "queued-resources create" in command:
  (folder / "exists").touch()
elif "queued-resources delete" in command:
  if not (folder / "exists").exists():
    print("ERROR: NOT_FOUND: no such resource", file=sys.stderr)
    sys.exit(1)
  (folder / "exists").unlink()
elif "tpu-vm describe" in command:
  print(json.dumps({{"state": "READY", "networkEndpoints": [{{}}] * int(os.environ.get("FAKE_HOSTS", "8"))}}))
elif "buckets describe" in command:
  print("True")
elif "storage cat" in command:
  mark = folder / f"finished_{{next(a for a in sys.argv if a.startswith('gs://')).split('/')[-2]}}"
  if not mark.exists():
    print("ERROR: (gcloud.storage.cat) The following URLs matched no objects or files", file=sys.stderr)
    sys.exit(1)
  print(mark.read_text())
elif "bootstrap.sh" in command:
  print(json.dumps({{"host": "t1v", "chips": 4, "python": "3.12.1", "jax": "0.12.0"}}))
elif "start.sh" in command:
  (folder / "started").write_text(command.split("start.sh ")[1])
elif "status.sh" in command:
  job = (folder / "started").read_text() if (folder / "started").exists() else ""
  state = "running" if job else "none"
  if job and (folder / "finish_when_asked").exists():
    name = job.split("--run_dir=")[1].split()[0].split("/")[-1]
    (folder / f"finished_{{name}}").write_text("today")
    state = "exited 0"
  print(state, job, "step 7", sep="\\n")
elif "stop.sh" in command:
  (folder / "started").unlink(missing_ok=True)
'''


class Cloud:
  """The fake, and the command line that meets it."""

  def __init__(self, folder, monkeypatch, capsys):
    self.folder, self._capsys, self._set = folder, capsys, monkeypatch.setenv
    self._set("FAKE", str(folder))
    self._set("PATH", f"{folder}:{os.environ['PATH']}")
    for name in ("gcloud", "gsutil"):
      (folder / name).write_text(FAKE.format(python=sys.executable))
      (folder / name).chmod(0o755)
    self.answer()

  def answer(self, *wrong):
    """What goes wrong: (words of the command joined by &, status, text, how often)."""
    (self.folder / "answers.json").write_text(json.dumps(wrong))

  @property
  def calls(self):
    """Commands so far, without program, project and zone, in order."""
    path = self.folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [" ".join(json.loads(line)[1:]).replace(" --project=p --zone=z", "") for line in lines]

  def named(self, *words):
    return [call for call in self.calls if all(word in call for word in words)]

  def __call__(self, command, *flags, status=0, hosts=8):
    defaults = ["--project=p", "--zone=z", "--topology=v5e:4x8", "--backoff_seconds=0", "--poll_seconds=0", "--tries=3"]
    self._set("FAKE_HOSTS", str(hosts))
    found = main([command, *defaults, *flags])
    output = "".join(self._capsys.readouterr())
    assert found == status, output
    return output


@pytest.fixture
def cloud(tmp_path, monkeypatch, capsys):
  folder = tmp_path / "cloud"
  folder.mkdir()
  return Cloud(folder, monkeypatch, capsys)
