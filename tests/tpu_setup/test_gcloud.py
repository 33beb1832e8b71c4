"""The commands that reach gcloud, in which order, and what happens when it fails."""

import pytest

CREATE = (
  "compute tpus queued-resources create hiermem --accelerator-type=v5litepod-32 --runtime-version=v2-alpha-tpuv5-lite"
  " --node-id=hiermem --spot --scopes=https://www.googleapis.com/auth/cloud-platform --labels=app=hiermem_jax"
)
DELETE = "compute tpus queued-resources delete hiermem --force --quiet"
RUN = ("--bucket=gs://bkt", "--run_dir=gs://bkt/runs/a2", "--", "train", "--gin_file=gin/runs/a2.gin")


def test_create_asks_and_waits(cloud):
  cloud.answer(("queued-resources describe", 0, "WAITING_FOR_RESOURCES", 2))
  assert "hiermem: active" in cloud("create")
  assert cloud.calls[0] == CREATE
  assert len(cloud.named("queued-resources describe")) >= 3
  assert not cloud.named("delete")


@pytest.mark.parametrize(
  "flags, words",
  [
    (("--capacity=reserved",), ["--reserved"]),
    (("--topology=v4:4x4x8",), ["--type=v4", "--topology=4x4x8", "tpu-ubuntu2204-base"]),
    (("--topology=v5p:4x4x4",), ["--accelerator-type=v5p-128", "v2-alpha-tpuv5 "]),
    (("--topology=v6e:16x16", "--slices=2"), ["v6e-256", "--node-count=2", "--node-prefix=hiermem"]),
    (
      ("--labels=team=x,app=y", "--network=n", "--internal_ips"),
      ["--labels=team=x,app=y", "--network=n", "--internal-ips"],
    ),
  ],
)
def test_kinds_of_slices(cloud, flags, words):
  cloud("create", *flags)
  assert all(word in cloud.calls[0] for word in words), cloud.calls[0]
  assert ("--spot" in cloud.calls[0]) == ("--capacity=reserved" not in flags)


@pytest.mark.parametrize(
  "text, line",
  [
    ("ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepod' exceeded. Limit: 0", "ask for more quota"),
    ("ERROR: PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", "gcloud auth login"),
    ("ERROR: Cloud TPU API has not been used in project p before", "gcloud services enable"),
  ],
)
def test_refused_request_leaves_nothing(cloud, text, line):
  cloud.answer(("create", 1, text, 1))
  output = cloud("create", status=2)
  assert output.count("error:") == 1 and line in output
  assert cloud.calls == [CREATE, DELETE]


@pytest.mark.parametrize(
  "status, text, line",
  [
    (0, "", "bucket gs://bkt: has no hierarchical namespace, so that a kill could leave half a checkpoint; create one"),
    (
      1,
      "ERROR: (gcloud.storage.buckets.describe) gs://bkt not found: 404.",
      "bucket gs://bkt: there is none; create it",
    ),
    (1, "ERROR: me@x does not have storage.buckets.get access", "ask for the roles Storage Object User and"),
  ],
)
def test_bucket_that_would_not_do_is_said_before_anything_costs(cloud, status, text, line):
  cloud.answer(("buckets describe", status, text, 1))
  output = cloud("create", "--bucket=gs://bkt", status=2)
  assert output.count("error:") == 1 and line in output
  assert cloud.calls == ["storage buckets describe gs://bkt --raw --format=value(hierarchicalNamespace.enabled)"]


def test_taken_name_is_not_deleted(cloud):
  (cloud.folder / "exists").touch()
  cloud.answer(("create", 1, "ERROR: (gcloud) ALREADY_EXISTS: Resource already exists", 1))
  assert "a slice of this name exists in z; delete it, or give another --name" in cloud("create", status=2)
  assert cloud.calls == [CREATE]


# All values of QueuedResourceState.State in the Cloud TPU API, and whether `watch` waits for the slice in that state. In
# the others it is gone or useless: it is deleted and asked for again.
QUEUED = {
  "STATE_UNSPECIFIED": True,
  "CREATING": True,
  "ACCEPTED": True,
  "PROVISIONING": True,
  "FAILED": False,
  "DELETING": False,
  "ACTIVE": True,
  "SUSPENDING": False,
  "SUSPENDED": False,
  "WAITING_FOR_RESOURCES": True,
}
# The same for Node.State, of a slice whose queued resource is ACTIVE.
NODES = {
  "CREATING": True,
  "READY": True,
  "RESTARTING": True,
  "REIMAGING": True,
  "REPAIRING": True,
  "STARTING": True,
  "DELETING": False,
  "STOPPED": False,
  "STOPPING": False,
  "PREEMPTED": False,
  "TERMINATED": False,
  "HIDING": False,
  "HIDDEN": False,
  "UNHIDING": False,
}


@pytest.mark.parametrize(
  "question, state, waits",
  [("queued-resources describe", *each) for each in QUEUED.items()]
  + [("tpu-vm describe", *each) for each in NODES.items()],
)
def test_watch_waits_for_what_comes_and_replaces_what_does_not(cloud, question, state, waits):
  (cloud.folder / "exists").touch()
  (cloud.folder / "finish_when_asked").touch()
  text = state if question.startswith("queued") else f'{{"state": "{state}", "networkEndpoints": [{{}}]}}'
  cloud.answer((question, 0, text, 1))
  output = cloud("watch", *RUN, hosts=1)
  assert "gs://bkt/runs/a2: finished, today" in output
  assert len(cloud.named("queued-resources delete")) == len(cloud.named("queued-resources create")) == (not waits)
  assert ("the slice is lost" in output) == (not waits)


@pytest.mark.parametrize("state, waits", [(state, waits) for state, waits in QUEUED.items() if state != "ACTIVE"])
def test_create_waits_for_what_comes_and_takes_the_rest_back(cloud, state, waits):
  cloud.answer(("queued-resources describe", 0, state, 2))
  output = cloud("create", status=0 if waits else 1)
  assert ("hiermem: active" in output) == waits
  assert (f"became {state}, and was deleted" in output) == (not waits)
  assert len(cloud.named("queued-resources delete")) == (not waits)


def test_request_that_never_comes_is_deleted(cloud):
  cloud.answer(("queued-resources describe", 0, "WAITING_FOR_RESOURCES", 99))
  assert "not granted in 0 minutes" in cloud("create", "--wait_minutes=0", status=1)
  assert cloud.calls[-1] == DELETE


@pytest.mark.parametrize("moment", ["queued-resources create", "queued-resources describe"])
def test_interrupted_request_is_deleted(cloud, moment):
  cloud.answer((moment, KeyboardInterrupt(), "", 1))
  assert "taking the request back" in cloud("create", status=130)
  assert cloud.calls[-1] == DELETE


@pytest.mark.parametrize("other, state", [("READY", "active"), ("CREATING", "waiting"), ("PREEMPTED", "lost")])
def test_several_slices_are_one(cloud, other, state):
  """They are active when all are, and lost when one is."""
  (cloud.folder / "exists").touch()
  answer = f'{{"state": "{other}", "networkEndpoints": [{{}}]}}'
  cloud.answer(("tpu-vm describe hiermem-1", 0, answer, 9))
  assert f"hiermem: {state}" in cloud("status", "--slices=2", hosts=1)


def test_failed_deletion_says_that_it_costs(cloud):
  (cloud.folder / "exists").touch()
  cloud.answer(("delete", 1, "ERROR: INTERNAL", 9))
  assert "may still cost money: ERROR: INTERNAL; run delete again" in cloud("delete", status=2)
  assert len(cloud.named("delete")) == 3


def test_nothing_to_delete_is_no_error(cloud):
  cloud("delete")
  assert cloud.calls == [DELETE]


def test_bootstrap_reaches_every_host_and_tries_again(cloud):
  """The first host alone first, for it makes the ssh key; one of eight that drops its connection is tried again."""
  (cloud.folder / "exists").touch()
  cloud.answer(("ssh&--worker=5&bootstrap.sh", 255, "ssh: connect to host 10.0.0.5 port 22: Connection refused", 2))
  assert "8 hosts are ready: jax 0.12.0, Python 3.12.1" in cloud("bootstrap", "--bucket=gs://bkt")
  sent = cloud.named("tpu-vm scp")
  assert len(sent) == 8 and "--worker=0 " in sent[0]
  assert len(cloud.named("bootstrap.sh", "BUCKET=bkt", "CHIP=v5e")) == 10
  last_sent = max(number for number, call in enumerate(cloud.calls) if "scp" in call)
  assert all("scp" in call for call in cloud.calls[cloud.calls.index(sent[0]) : last_sent + 1])


@pytest.mark.parametrize("flags, given", [(("--internal_ips",), True), ((), False)])
def test_addresses_inside_the_network(cloud, flags, given):
  (cloud.folder / "exists").touch()
  cloud("bootstrap", *flags, hosts=8)
  for word in ("ssh", "scp"):
    calls = cloud.named(f"tpu-vm {word}")
    assert len(calls) == 8 and all(("--internal-ip" in call) == given for call in calls)


def test_host_that_stays_away_is_named(cloud):
  (cloud.folder / "exists").touch()
  cloud.answer(("ssh&--worker=5&bootstrap.sh", 255, "ssh: connect to host 10.0.0.5 port 22: Connection refused", 9))
  output = cloud("bootstrap", status=1)
  assert "error: hiermem:5 of 8 hosts: ssh: connect to host 10.0.0.5 port 22: Connection refused" in output


@pytest.mark.parametrize(
  "facts, line",
  [
    (
      '{"chips": 0, "python": "3.12.1", "jax": "0.12.0"}',
      "hiermem:3: has 0 TPU chips, a host of v5e:4x8 should have 4",
    ),
    (
      '{"chips": 4, "python": "3.12.1", "jax": "0.11.0"}',
      "hiermem:3 (process 3): has jax 0.11.0, 7 of 8 hosts have 0.12.0",
    ),
  ],
)
def test_host_that_differs_is_named(cloud, facts, line):
  (cloud.folder / "exists").touch()
  cloud.answer(("--worker=3&bootstrap.sh", 0, facts, 1))
  assert line in cloud("bootstrap", status=2)


def test_launch_translates_the_bucket(cloud):
  (cloud.folder / "exists").touch()
  assert "started on 8 hosts" in cloud("launch", *RUN)
  calls = cloud.named("start.sh")
  assert len(calls) == 8
  for number in range(8):
    (call,) = [call for call in calls if f"--worker={number} " in call]
    assert f"INDEX={number} " in call and "RUN_DIR=/gcs/bkt/runs/a2" in call
    assert "-m hiermem_jax.train --distributed --run_dir=/gcs/bkt/runs/a2 --gin_file=gin/runs/a2.gin" in call


def test_launch_that_fails_on_one_host_stops_the_others(cloud):
  (cloud.folder / "exists").touch()
  cloud.answer(("--worker=2&start.sh", 2, "error: the run did not start; look at /home/me/hiermem/job", 9))
  assert "hiermem:2 of 8 hosts: error: the run did not start" in cloud("launch", *RUN, status=1)
  assert len(cloud.named("start.sh")) == 8 and len(cloud.named("stop.sh", "STOP_SECONDS=0")) == 8


def test_second_launch_is_refused(cloud):
  (cloud.folder / "exists").touch()
  cloud("launch", *RUN)
  assert "hiermem:0: a run is going on; stop it first" in cloud("launch", *RUN, status=2)


def test_path_outside_the_bucket(cloud):
  (cloud.folder / "exists").touch()
  output = cloud("launch", "--bucket=gs://bkt", "--run_dir=gs://c/a2", "--", "train", status=2)
  assert "gs://c/a2: not in the bucket that hosts see (bucket = gs://bkt)" in output


def test_watch_recreates_what_was_preempted(cloud):
  """Preempted in the middle: deleted, created, set up and started again, until the mark is there; then given back."""
  (cloud.folder / "exists").touch()
  cloud.answer(
    ("tpu-vm describe", 0, '{"state": "PREEMPTED", "networkEndpoints": []}', 1),
    ("queued-resources describe", 0, "ACTIVE", 1),
  )
  (cloud.folder / "finish_when_asked").touch()
  output = cloud("watch", "--delete", *RUN)
  assert "the slice is lost; try 1 of 3" in output and "gs://bkt/runs/a2: finished, today" in output
  order = ["delete", "create", "scp", "bootstrap.sh", "start.sh", "storage cat", "delete"]
  position = 0
  for word in order:
    position = next(n for n, call in enumerate(cloud.calls) if n >= position and word in call) + 1
  assert len(cloud.named("queued-resources create")) == 1 and len(cloud.named("start.sh")) == 8


def test_watch_asks_again_when_quota_is_not_back_yet(cloud):
  """What was preempted can hold its quota for a while after its deletion."""
  (cloud.folder / "exists").touch()
  (cloud.folder / "finish_when_asked").touch()
  cloud.answer(
    ("tpu-vm describe", 0, '{"state": "PREEMPTED", "networkEndpoints": []}', 1),
    ("queued-resources describe", 0, "ACTIVE", 1),
    ("queued-resources create", 1, "ERROR: RESOURCE_EXHAUSTED: Quota limit exceeded", 1),
  )
  output = cloud("watch", *RUN)
  assert "hiermem: ERROR: RESOURCE_EXHAUSTED: Quota limit exceeded; ask for more quota" in output
  assert "try 2 of 3" in output and "finished, today" in output
  assert len(cloud.named("queued-resources create")) == 2


def test_watch_does_not_repeat_a_first_refusal(cloud):
  cloud.answer(("queued-resources create", 1, "ERROR: RESOURCE_EXHAUSTED: Quota limit exceeded. Limit: 0", 9))
  assert "ask for more quota" in cloud("watch", *RUN, status=2)
  assert len(cloud.named("queued-resources create")) == 1


def test_watch_gives_up_in_the_end(cloud):
  (cloud.folder / "exists").touch()
  cloud.answer(("--worker=6&status.sh 2>", 0, "exited 1\ncommand a2\nout of luck", 99))
  output = cloud("watch", *RUN, status=2)
  assert "gave up after 3 tries, hiermem:6 exited 1 (out of luck)" in output
  assert output.count("; try ") == 3 and output.count("waiting") == 2
  assert len(cloud.named("start.sh")) == 24


def test_watch_does_not_repeat_bad_input(cloud):
  (cloud.folder / "exists").touch()
  cloud.answer(
    ("--worker=1&status.sh 2>", 0, "none\n\n", 2),
    ("--worker=1&status.sh 2>", 0, "exited 2\n a2\nerror: train.dataset: no such directory", 99),
  )
  output = cloud("watch", *RUN, status=2)
  assert "hiermem:1: error: train.dataset: no such directory; mend that" in output
  assert len(cloud.named("start.sh")) == 8


def test_watch_leaves_other_runs_alone(cloud):
  (cloud.folder / "exists").touch()
  cloud("launch", *RUN)
  other = ("--bucket=gs://bkt", "--run_dir=gs://bkt/runs/b2", "--", "train")
  assert "runs something else" in cloud("watch", *other, status=2)
  assert not cloud.named("stop.sh") and len(cloud.named("start.sh")) == 8


def test_status_and_logs_name_the_hosts(cloud):
  (cloud.folder / "exists").touch()
  cloud("launch", *RUN)
  cloud.answer(("--worker=1&tail -n 5", 0, "one\ntwo", 1))
  lines = cloud("status").splitlines()
  assert lines == ["hiermem: active (ACTIVE)", *(f"hiermem:{host}  running     step 7" for host in range(8))]
  assert "hiermem:1| one\nhiermem:1| two" in cloud("logs", "--lines=5", "--host=1")
  assert "--host=8: hiermem has hosts 0 to 7" in cloud("logs", "--host=8", status=2)


def test_stop_on_all_hosts(cloud):
  (cloud.folder / "exists").touch()
  cloud("stop")
  assert len(cloud.named("stop.sh", "STOP_SECONDS=300")) == 8


@pytest.mark.parametrize("command", ["bootstrap", "stop", "logs"])
def test_no_slice(cloud, command):
  assert "hiermem: is missing (missing); create it first" in cloud(command, status=2)


@pytest.mark.parametrize("command", ["create", "bootstrap", "launch", "status", "watch", "stop", "delete"])
def test_dry_run_touches_nothing(cloud, command):
  """It prints what the command would run; `watch` creates, sets up and starts."""
  output = cloud(command, "--dry_run", *(RUN if command in ("launch", "watch") else ()))
  words = {
    "watch": ["queued-resources create", "bootstrap.sh", "start.sh"],
    "launch": ["start.sh"],
    "stop": ["stop.sh"],
  }
  assert all(word in output for word in ["gcloud compute tpus", *words.get(command, [])])
  assert cloud.calls == []


def test_multislice_hosts(cloud):
  (cloud.folder / "exists").touch()
  cloud("bootstrap", "--slices=2", hosts=2, status=0)
  assert [len(cloud.named("bootstrap.sh", f"ssh hiermem-{number} ")) for number in range(2)] == [2, 2]
