"""Configuration, costs, the GKE manifest, the lock file, the scripts, and sweeps on slices."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from hiermem_jax.errors import InputError
from hiermem_jax.parallel import hosts
from tpu_setup import config, costs, source
from tpu_setup.__main__ import main
from tpu_setup.shell import CommandError, Shell

ROOT = pathlib.Path(__file__).parents[2]
SHELLCHECK = pathlib.Path(sys.executable).with_name("shellcheck")
CLOUD = {"project": "p", "zone": "z"}


def test_file_over_defaults_and_flag_over_file(tmp_path):
  path = tmp_path / "mine.toml"
  path.write_text('zone = "a"\nproject = "p"\ntries = 9\n[labels]\nteam = "x"\n')
  found = config.load(path, {"zone": "b"})
  assert (found.zone, found.project, found.tries, found.labels) == ("b", "p", 9, {"team": "x"})
  assert found.capacity == "spot"
  assert set(tomllib.loads(config.DEFAULTS.read_text())) == set(config.Config.__dataclass_fields__)


@pytest.mark.parametrize(
  "text, line",
  [
    ("zome = 'x'", "mine.toml: zome: no such value; zone?"),
    ("tries = 'x'", "mine.toml: tries = 'x': must be int"),
    ("internal_ips = 1", "mine.toml: internal_ips = 1: must be bool"),
    ("labels = 1", "mine.toml: labels = 1: must be a table"),
    ("tries = ", "mine.toml: Invalid value"),
    ("tries = 0", "tries = 0: must be at least 1"),
    ("name = 'A B'", "name = 'A B': use at most 40 lower-case letters"),
    ("provider = 'aws'", "provider = 'aws': no such provider"),
    ("capacity = 'cheap'", "capacity = 'cheap': use one of spot, reserved, on-demand"),
    ("topology = 'v5e:16'", "--topology=v5e:16: a v5e slice has 2 axes"),
    ("topology = 'tpu7x:4x4x4'", "topology = 'tpu7x:4x4x4': no such Cloud TPU here; use one of v4, v5e"),
    ("bucket = 'gs://bkt/x'", "bucket = 'gs://bkt/x': give the bucket alone"),
  ],
)
def test_bad_configuration_is_named(tmp_path, text, line):
  path = tmp_path / "mine.toml"
  path.write_text(text)
  with pytest.raises(InputError) as caught:
    config.load(path, CLOUD)
  assert line in str(caught.value)


def test_missing_project(capsys):
  assert main(["create", "--zone=z"]) == 2
  assert "error: project missing; set it in config.toml, or give --project=..." in capsys.readouterr().err


def test_hosts_of_a_slice():
  for topology, chips, per_host in (
    ("v5e:2x4", 8, 8),
    ("v5e:4x4", 16, 4),
    ("v5p:4x4x8", 128, 4),
    ("v6e:16x16", 256, 4),
  ):
    found = config.load(None, CLOUD | {"topology": topology})
    assert (found.chips, found.chips_per_host) == (chips, per_host)


def test_costs_from_first_principles(capsys, tmp_path):
  """A2: 2^40 tokens, 6 FLOPs for each parameter and the attention's, at 40% of 197 TFLOP/s; 4,861 hours of a chip."""
  assert main(["costs", "--topology=v5e:16x16", "--", "--gin_file=gin/runs/a2.gin"]) == 0
  hours = 2**40 * 3 * 418_070_528 / (0.4 * 197e12) / 3600
  output = capsys.readouterr().out
  assert f"{hours:,.0f} of v5e at 40%" in output and f"{hours / 256:,.1f} hours" in output
  assert "price             not known: fill in [v5e] spot" in output
  prices = tmp_path / "prices.toml"
  prices.write_text("[v5e]\nspot = 0.5\nreserved = -1\n")
  page = costs.report(config.load(None, CLOUD | {"topology": "v5e:16x16"}), 3600 * 197e12 * 100, 0.5, prices)
  assert "chip-hours        200 of v5e" in page and "price             100 at 0.5" in page and "128.00 an hour" in page
  assert "a forgotten slice 128.00 an hour, 3,072 a day" in page
  two = config.load(None, CLOUD | {"topology": "v5e:16x16", "slices": 2})
  page = costs.report(two, 3600 * 197e12 * 100, 0.5, prices)
  assert "chip-hours        200 of v5e" in page and "on 2 x v5e:16x16  0.4 hours (0.0 days) on 512 chips" in page
  assert "price             100 at 0.5" in page and "a forgotten slice 256.00 an hour, 6,144 a day" in page
  with pytest.raises(InputError, match="reserved = -1: give a price"):
    costs.price(config.load(None, CLOUD | {"capacity": "reserved"}), prices)
  assert main(["costs", "--utilisation=40", "--", "--gin_file=gin/runs/a2.gin"]) == 2
  assert main(["costs", "--", "--gin_file=nowhere.gin"]) == 2
  assert "nowhere.gin" in capsys.readouterr().err


def test_page_of_costs(tmp_path):
  """256 chips for 8 days at half of their peak of 197 TFLOP/s, as one slice and as two."""
  prices = tmp_path / "prices.toml"
  prices.write_text("[v5e]\nspot = 0.5\n")
  flops = 256 * 8 * 24 * 3600 * 197e12 / 2
  for slices, on in (
    (1, "on v5e:16x16      192.0 hours (8.0 days) on 256"),
    (2, "on 2 x v5e:16x16  96.0 hours (4.0 days) on 512"),
  ):
    found = config.load(None, CLOUD | {"topology": "v5e:16x16", "slices": slices})
    assert costs.report(found, flops, 0.5, prices).splitlines() == [
      "model FLOPs       1.743e+22",
      "chip-hours        49,152 of v5e at 50% of 197 TFLOP/s",
      f"{on} chips",
      "price             24,576 at 0.5 per chip and hour (spot)",
      f"a forgotten slice {128 * slices}.00 an hour, {3072 * slices:,} a day",
    ]


@pytest.mark.parametrize("value", ["0", "-1", "true", "'1'"])
def test_price_that_is_none(tmp_path, value):
  prices = tmp_path / "prices.toml"
  prices.write_text(f"[v5e]\nspot = {value}\n")
  with pytest.raises(InputError, match="prices.toml: v5e, spot = .*: give a price for one chip and hour"):
    costs.price(config.load(None, CLOUD), prices)


def test_prices_name_every_chip():
  assert set(tomllib.loads(costs.PRICES.read_text())) == set(config.CHIPS)


def test_gke_manifest(capsys, tmp_path):
  flags = ["--topology=v5e:4x8", "--slices=2", "--bucket=gs://bkt", "--run_dir=gs://bkt/runs/a2", "--tries=7"]
  flags += ["--stop_seconds=90", "--service_account=trainer", "--labels=team=x"]
  command = ["--", "train", "--gin_file=gin/runs/a2.gin", "--gin_bindings=train.dataset = 'gs://bkt/d'"]
  assert main(["gke", *flags, "--image=img", *command]) == 0
  found = yaml.safe_load(capsys.readouterr().out)
  assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert found["metadata"]["labels"] == {"team": "x"} and found["spec"]["failurePolicy"] == {"maxRestarts": 7}
  (replicated,) = found["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  assert (replicated["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (2, 8, 8, 0)
  pod = job["template"]["spec"]
  assert (pod["terminationGracePeriodSeconds"], pod["serviceAccountName"]) == (90, "trainer")
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x8",
    "cloud.google.com/gke-spot": "true",
  }
  (container,) = pod["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  for name, script in (("python", """printf '%s\\n' "$JAX_PLATFORMS" "$LIBTPU_INIT_ARGS" "$@" """), ("sudo", "exit 1")):
    (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / name).chmod(0o755)
  env = {each["name"]: each["value"] for each in container["env"]} | {
    "PATH": f"{tmp_path}:{os.environ['PATH']}",
    "HOME": "/x",
  }
  printed = subprocess.run(container["command"], env=env, cwd=ROOT, capture_output=True, text=True, check=True).stdout
  platforms, libtpu_flags, *run = printed.splitlines()
  assert (platforms, libtpu_flags) == ("tpu,cpu", "--megascale_abort_on_hangs=true")
  assert run[:4] == ["-m", "hiermem_jax.train", "--distributed", "--run_dir=/gcs/bkt/runs/a2"]
  assert run[-1] == "--gin_bindings=train.dataset = '/gcs/bkt/d'"
  options = pod["volumes"][0]["csi"]["volumeAttributes"]["mountOptions"]
  assert set(options.split(",")) == {"implicit-dirs", "metadata-cache:ttl-secs:0", "metadata-cache:negative-ttl-secs:0"}
  assert container["volumeMounts"][0]["mountPath"] == "/gcs/bkt"
  assert main(["gke", *flags, *command]) == 2
  assert "--image is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
  "topology, accelerator",  # cloud.google.com/kubernetes-engine/docs/how-to/tpus
  [
    ("v4:2x2x4", "tpu-v4-podslice"),
    ("v5e:4x4", "tpu-v5-lite-podslice"),
    ("v5p:2x2x4", "tpu-v5p-slice"),
    ("v6e:4x4", "tpu-v6e-slice"),
  ],
)
def test_gke_names_of_chips(capsys, topology, accelerator):
  assert (
    main(["gke", f"--topology={topology}", "--run_dir=/r", "--image=img", "--capacity=on-demand", "--", "train"]) == 0
  )
  (job,) = yaml.safe_load(capsys.readouterr().out)["spec"]["replicatedJobs"]
  assert job["template"]["spec"]["template"]["spec"]["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": accelerator,
    "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
  }
  assert job["template"]["spec"]["parallelism"] == 4


def test_reader_that_has_enough(tmp_path):
  command = f"{sys.executable} -m tpu_setup create --provider=local --dry_run --root={tmp_path}"
  script = f"set -o pipefail; ({command}; echo status $? >&2) | true"
  done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
  assert done.stderr == "status 1\n"


def test_lock_has_every_requirement():
  lines = (ROOT / "tpu_setup/requirements.lock").read_text().splitlines()
  locked = dict(line.split("==") for line in lines if line and not line.startswith("#"))
  wanted = [line.split("#")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()]
  for requirement in map(Requirement, filter(str.strip, wanted)):
    assert requirement.specifier.contains(locked[requirement.name.lower()]), requirement
  assert {"libtpu", "gcsfs", "jaxlib"} <= set(locked)


def test_scripts_pass_shellcheck():
  scripts = sorted((ROOT / "tpu_setup").rglob("*.sh"))
  assert len(scripts) == 6
  done = subprocess.run([str(SHELLCHECK), "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A git checkout of one commit, in place of this one."""
  root = tmp_path / "checkout"
  root.mkdir()
  monkeypatch.setattr(source, "ROOT", root)
  (root / ".gitignore").write_text("ignored\n")
  (root / "old.py").write_text("old\n")
  (root / "gone.py").write_text("gone\n")
  identity = ["-c", "user.name=n", "-c", "user.email=e"]
  for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "one"]):
    subprocess.run(["git", "-C", root, *arguments], check=True)
  return root


def test_archive_of_a_commit_and_of_the_working_tree(checkout, tmp_path):
  def unpacked(commit):
    directory = tmp_path / (commit or "tree")
    directory.mkdir()
    name = source.archive(commit, tmp_path / "code.tar.gz")
    subprocess.run(["tar", "-xzf", tmp_path / "code.tar.gz", "-C", directory], check=True)
    files = {path.name: path.read_text() for path in directory.iterdir()}
    assert files.pop("COMMIT") == name
    return name, files

  committed = {".gitignore": "ignored\n", "old.py": "old\n", "gone.py": "gone\n"}
  clean, files = unpacked("")
  assert re.fullmatch(r"[0-9a-f]{12}", clean) and files == committed
  (checkout / "ignored").write_text("x")
  (checkout / "new.py").write_text("new\n")
  (checkout / "old.py").write_text("changed\n")
  (checkout / "gone.py").unlink()
  assert unpacked("HEAD") == (clean, committed)
  (tmp_path / "tree").rename(tmp_path / "before")
  assert unpacked("") == (
    f"{clean}+changes",
    {".gitignore": "ignored\n", "old.py": "changed\n", "new.py": "new\n"},
  )


def test_archive_of_no_commit(tmp_path):
  with pytest.raises(InputError, match="commit = 'nothing': .*; name one"):
    source.archive("nothing", tmp_path / "x")


def test_archive_of_an_installed_package(tmp_path, monkeypatch):
  monkeypatch.setattr(source, "ROOT", tmp_path)
  with pytest.raises(InputError, match="is no git checkout, whose code the hosts run; run tpu_setup in one"):
    source.archive("", tmp_path / "x")


def test_host_without_chips_and_host_that_differs():
  here = hosts.facts()
  assert {"host", "chips", "python", "jax", "hiermem_jax"} <= set(here)
  hosts.check_chips(here | {"chips": 4}, "tpu,cpu")
  hosts.check_chips(here | {"chips": 0}, "cpu")
  hosts.check_chips(here | {"chips": 0}, None)
  with pytest.raises(InputError, match="h7: JAX_PLATFORMS=tpu,cpu, but there is no TPU chip"):
    hosts.check_chips(here | {"chips": 0, "host": "h7"}, "tpu,cpu")
  three = [here | {"host": f"h{number}"} for number in range(3)]
  hosts.check_agreement(three)
  three[1]["libtpu"] = ""
  with pytest.raises(InputError, match=r"h1 \(process 1\): has libtpu none, 2 of 3 hosts have"):
    hosts.check_agreement([each | {"libtpu": each["libtpu"] and "1.0"} for each in three])


def test_sweep_on_slices(cloud, tmp_path):
  """Two runs after a setup, on one slice that is created once and deleted at the end; results come from the bucket."""
  gin = str(ROOT / "tests/smoke.gin")
  runs = [{"name": name, "settings": {"x": name}, "bindings": ["train.dataset = '{setup}/packed'"]} for name in "ab"]
  sweep = {"gin_files": [gin], "seeds": [0], "setup": gin, "result": "evaluation/report.json", "runs": runs}
  path = tmp_path / "sweep.json"
  path.write_text(json.dumps(sweep))
  (cloud.folder / "finish_when_asked").touch()
  cloud.answer(("storage cat&report.json", 0, '{"loss": 1.5}', 9), ("storage cat&a_0/finished", 0, "today", 9))
  flags = ("--bucket=gs://bkt", "--runs_root=gs://bkt/sweep", path)
  cloud("sweep", *map(str, flags))
  lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
  assert [(line["name"], line["seed"], line["result"]) for line in lines] == [
    ("a", 0, {"loss": 1.5}),
    ("b", 0, {"loss": 1.5}),
  ]
  assert len(cloud.named("queued-resources create hiermem-0")) == 1
  assert "queued-resources delete hiermem-0" in cloud.calls[-1]
  started = cloud.named("start.sh", "--worker=0 ")
  assert "-m hiermem_jax.run --distributed --run_dir=/gcs/bkt/sweep/setup_0" in started[0]
  assert not cloud.named("start.sh", "a_0")  # its mark was there


@pytest.fixture
def two_runs(tmp_path):
  """A sweep of two runs without a setup, as arguments of the command."""
  runs = [{"name": name, "settings": {}} for name in "ab"]
  sweep = {"seeds": [0], "result": "report.json", "runs": runs}
  (tmp_path / "sweep.json").write_text(json.dumps(sweep))
  return ["--bucket=gs://bkt", "--runs_root=gs://bkt/sweep", "--parallel=2", str(tmp_path / "sweep.json")]


def test_parallel_runs_have_a_slice_and_a_log_each(cloud, two_runs, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(source, "archive", lambda commit, path: "code")
  (cloud.folder / "finish_when_asked").touch()

  def both_are_under_way():  # so that neither run has finished before the other is watched
    deadline = time.monotonic() + 60
    while len(cloud.named("queued-resources create")) < 2 and time.monotonic() < deadline:
      time.sleep(0.01)

  cloud.on_status = both_are_under_way
  cloud.answer(("storage cat&report.json", 0, "{}", 2))
  output = cloud("sweep", *two_runs, hosts=1)
  assert "2 runs, 0 done before" in output and "[2/2]" in output and "started on" not in output
  slices = {}
  for name in "ab":
    (line,) = [call for call in cloud.named("start.sh") if f"--run_dir=/gcs/bkt/sweep/{name}_0" in call]
    slices[name] = re.search(r"hiermem-\d", line).group()
    log = (tmp_path / f"runs/sweep_logs/{name}_0.log").read_text()
    assert f"{slices[name]}: started on 1 hosts" in log and f"gs://bkt/sweep/{name}_0: finished, today" in log
    assert len(log.splitlines()) == 5, log
  assert sorted(slices.values()) == ["hiermem-0", "hiermem-1"]
  assert len(cloud.named("queued-resources delete")) == 2


def test_interrupted_sweep_ends_and_gives_the_slices_back(cloud, two_runs, tmp_path, monkeypatch):
  """Where the signal is inherited as ignored, too. The runs were waiting for their next look, ten minutes away."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(source, "archive", lambda commit, path: "code")
  once = threading.Lock()

  def interrupt():
    if cloud.named("start.sh") and once.acquire(blocking=False):
      os.kill(os.getpid(), signal.SIGINT)

  cloud.on_status = interrupt
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    output = cloud("sweep", *two_runs, "--poll_seconds=600", hosts=1, status=130)
  finally:
    assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN
  assert "interrupted" in output and not (tmp_path / "results.jsonl").exists()
  assert not list(cloud.folder.glob("exists*"))


def test_shell_tries_again_and_says_what_failed(tmp_path):
  pauses = []
  shell = Shell(dry_run=False, tries=3, backoff_seconds=2, sleep=pauses.append)
  assert shell.run(["sh", "-c", "echo out; echo err >&2"]) == "out\n"
  counted = f"echo x >> {tmp_path}/count; echo ERROR out; echo 'ERROR: no luck' >&2; echo after >&2; exit 3"
  with pytest.raises(CommandError) as caught:
    shell.run(["sh", "-c", counted], again=lambda error: error.status == 3)
  assert str(caught.value).endswith("exit 3': status 3: ERROR: no luck\nafter")
  assert caught.value.line == "ERROR: no luck" and (tmp_path / "count").read_text() == "x\n" * 3 and pauses == [2, 4]
  with pytest.raises(CommandError):
    shell.run(["sh", "-c", counted], again=lambda error: False)
  assert (tmp_path / "count").read_text() == "x\n" * 4
  assert [shell.pause(number) for number in (0, 3, 30)] == [2, 16, 900]


def test_sweep_dry_run(cloud, tmp_path):
  path = ROOT / "experiments/table9_placement/sweep.json"
  output = cloud("sweep", "--bucket=gs://bkt", "--runs_root=gs://bkt/s", "--only=last", "--dry_run", str(path))
  assert (
    "# setup, seed 0" in output
    and "--run_dir=/gcs/bkt/s/last_2_0" in output
    and "RUN_DIR=/gcs/bkt/s/last_2_0" in output
  )
  assert "train.dataset" in output or "DATASET = " in output
  assert cloud.calls == []
