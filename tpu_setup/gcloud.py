"""Slices of Cloud TPUs: queued resources, through the gcloud command line."""

import json
import time
from collections.abc import Sequence

from hiermem_jax.errors import InputError
from tpu_setup.config import CHIPS, Config
from tpu_setup.shell import CommandError, Shell
from tpu_setup.slices import ACTIVE, LOST, MISSING, WAITING, Host, TroubleError

# States of a queued resource that is still on its way; all others but ACTIVE are only good for deletion.
_COMING = {"STATE_UNSPECIFIED", "CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"}
# States of a node that will be READY again without our doing.
_NODE_COMING = {"CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING"}
MOUNT = "/gcs"


class GcloudSlice:
  """A slice of Cloud TPUs; see `slices.Slice`. Several slices are one queued resource with nodes NAME-0, NAME-1, ..."""

  def __init__(self, config: Config, shell: Shell):
    self.config, self.shell = config, shell
    where = [f"--project={config.project}", f"--zone={config.zone}"]
    self._where = where
    self._queue = ["gcloud", "compute", "tpus", "queued-resources"]
    self._node = ["gcloud", "compute", "tpus", "tpu-vm"]
    count = config.slices
    self._nodes = [config.name] if count == 1 else [f"{config.name}-{number}" for number in range(count)]

  def create(self) -> None:
    """Queues the request and waits for the slice.

    Raises:
      InputError: it was refused, the name is taken, or the bucket would not do.
      TroubleError: it was not granted in time, or was lost at once.

    After an error the request is deleted, except where the name was taken before.
    """
    self._check_bucket()
    try:
      self.shell.run([*self._queue, "create", self.config.name, *self._where, *self._request()])
    except CommandError as error:
      if "ALREADY_EXISTS" in error.text or "already exists" in error.text:
        raise InputError(
          f"{self.config.name}: a slice of this name exists in {self.config.zone}; delete it, or give another --name"
        ) from None
      self._take_back()
      raise InputError(f"{self.config.name}: {_advice(error)}") from None
    except KeyboardInterrupt:
      self._take_back()
      raise
    if self.shell.dry_run:
      self.state()
      return
    deadline = time.monotonic() + 60 * self.config.wait_minutes
    try:
      while (state := self.state()) == WAITING and time.monotonic() < deadline:
        self.shell.sleep(self.config.poll_seconds)
      detail = self.detail()
    except BaseException:
      self._take_back()
      raise
    if state != ACTIVE:
      self._take_back()
      why = f"not granted in {self.config.wait_minutes:g} minutes" if state == WAITING else f"became {detail}"
      raise TroubleError(
        f"{self.config.name}: {why}, and was deleted; try another zone or capacity, or raise wait_minutes"
      )

  def _check_bucket(self) -> None:
    """Checks the bucket before anything costs money.

    Its folders must be renamed atomically, because renaming its folder is what completes a checkpoint.
    """
    if not (bucket := self.config.bucket):
      return
    command = ["gcloud", "storage", "buckets", "describe", bucket, "--raw"]
    found = self._get([*command, "--format=value(hierarchicalNamespace.enabled)"])
    if found is None:
      raise InputError(f"bucket {bucket}: there is none; create it (tpu_setup/README.md, Ten commands)")
    if not self.shell.dry_run and found.strip() != "True":
      raise InputError(
        f"bucket {bucket}: has no hierarchical namespace, so that a kill could leave half a checkpoint; create one with"
        " --enable-hierarchical-namespace and copy the data there"
      )

  def _request(self) -> list[str]:
    config, cloud = self.config, CHIPS[self.config.chip]
    if config.chip == "v4":  # the one chip whose shape gcloud lets one choose
      flags = ["--type=v4", f"--topology={config.topology.partition(':')[2]}"]
    else:
      flags = [f"--accelerator-type={cloud.accelerator}-{config.chips * cloud.cores}"]
    flags.append(f"--runtime-version={config.runtime_version or cloud.runtime}")
    flags += [f"--node-id={config.name}"] if config.slices == 1 else []
    flags += [f"--node-count={config.slices}", f"--node-prefix={config.name}"] if config.slices > 1 else []
    flags += {"spot": ["--spot"], "reserved": ["--reserved"], "on-demand": []}[config.capacity]
    for name in ("network", "subnetwork", "service_account"):
      if value := getattr(config, name):
        flags.append(f"--{name.replace('_', '-')}={value}")
    flags += ["--internal-ips"] if config.internal_ips else []
    flags += ["--scopes=https://www.googleapis.com/auth/cloud-platform"]
    labels = ",".join(f"{key}={value}" for key, value in config.labels.items())
    return [*flags, f"--labels={labels}"] if labels else flags

  def state(self) -> str:
    """MISSING, WAITING, ACTIVE or LOST, by the queued resource and, when that is active, by its nodes.

    A preemption shows in the state of a node before it shows in the queued resource.
    """
    found = self._queue_state()
    if found == "ACTIVE":
      nodes = {self._describe_node(node)["state"] for node in self._nodes}
      return ACTIVE if nodes == {"READY"} else WAITING if nodes <= _NODE_COMING | {"READY"} else LOST
    return MISSING if not found else WAITING if found in _COMING else LOST

  def detail(self) -> str:
    """The state of the queued resource in Google's words."""
    return self._queue_state() or "missing"

  def _queue_state(self) -> str:
    command = [*self._queue, "describe", self.config.name, *self._where, "--format=value(state.state)"]
    return (self._get(command) or "").strip()

  def _get(self, command: list[str]) -> str | None:
    """Runs a command that reads something; None where the thing does not exist. Other failures are tried again."""
    try:
      return self.shell.run(command, again=lambda error: not (_not_found(error) or _refused(error)))
    except CommandError as error:
      if _not_found(error):
        return None
      raise InputError(f"{self.config.name}: {_advice(error)}") from None

  def _describe_node(self, node: str) -> dict:
    text = self._get([*self._node, "describe", node, *self._where, "--format=json(state,networkEndpoints)"])
    return {"state": "missing", "networkEndpoints": []} | json.loads(text or "{}")

  def delete(self) -> None:
    """Deletes the queued resource with its nodes."""
    command = [*self._queue, "delete", self.config.name, *self._where, "--force", "--quiet"]
    try:
      self.shell.run(command, again=lambda error: not _not_found(error))
    except CommandError as error:
      if not _not_found(error):
        raise InputError(
          f"{self.config.name}: could not be deleted and may still cost money: {error.line}; run delete again"
        ) from None

  def _take_back(self) -> None:
    self.shell.say(f"{self.config.name}: taking the request back")
    self.delete()

  def hosts(self) -> list[Host]:
    """All hosts that the nodes list; in a dry run as many as the topology should have."""
    counts = [len(self._describe_node(node)["networkEndpoints"]) for node in self._nodes]
    if self.shell.dry_run:
      counts = [self.config.chips // self.config.chips_per_host] * self.config.slices
    pairs = [(node, worker) for node, count in zip(self._nodes, counts) for worker in range(count)]
    return [Host(node, worker, index) for index, (node, worker) in enumerate(pairs)]

  def _connection(self, host: Host) -> list[str]:
    return [*self._where, f"--worker={host.worker}", "--quiet", *["--internal-ip"] * self.config.internal_ips]

  def run(self, host: Host, script: str) -> str:
    """Runs a script through ssh. A failure is tried again, unless the script itself printed a line `error: ...`."""
    command = [*self._node, "ssh", host.node, *self._connection(host), f"--command={script}"]
    return self.shell.run(command, again=lambda error: "error: " not in error.text)

  def send(self, host: Host, path: str, name: str) -> None:
    """Copies a file to the host through scp."""
    command = [*self._node, "scp", path, f"{host.node}:{name}", *self._connection(host)]
    self.shell.run(command, again=lambda error: True)

  def process_flags(self, hosts: Sequence[Host]) -> list[list[str]]:
    """No flags: on Cloud TPU jax finds the other processes by itself."""
    return [[] for _ in hosts]

  def environment(self) -> dict[str, str]:
    """The kind of chip, the bucket to mount, and the interpreter where one is configured."""
    return {"CHIP": self.config.chip, "BUCKET": self.config.bucket.removeprefix("gs://"), "PYTHON": self.config.python}

  def on_host(self, text: str) -> str:
    """Replaces gs://BUCKET/ by the folder where the hosts mount the bucket."""
    bucket = self.config.bucket or "none"
    result = text.replace(f"{bucket}/", f"{MOUNT}/{bucket.removeprefix('gs://')}/")
    if "gs://" in result:
      raise InputError(f"{text}: not in the bucket that hosts see (bucket = {bucket}); set bucket, or move it there")
    return result

  def read(self, path: str) -> str | None:
    """Reads a file from the bucket, which also works when the slice is gone; None where there is none."""
    return self._get(["gcloud", "storage", "cat", path])


def _not_found(error: CommandError) -> bool:
  return any(words in error.text for words in ("NOT_FOUND", "not found", "matched no objects"))


def _refused(error: CommandError) -> bool:
  return any(
    words in error.text for words in ("PERMISSION_DENIED", "does not have", "active account", "eauthentication")
  )


def _advice(error: CommandError) -> str:
  """The line of gcloud's error, followed by the remedy."""
  text = error.text.lower()
  for words, remedy in (
    ("quota", "ask for more quota, or choose another zone, topology or capacity"),
    ("resource_exhausted", "ask for more quota, or choose another zone, topology or capacity"),
    ("no more capacity", "try again later, another zone, or --capacity=on-demand"),
    ("storage.", "ask for the roles Storage Object User and Storage Legacy Bucket Reader on the bucket"),
    ("permission", "log in with `gcloud auth login`, and ask for the role TPU Admin"),
    ("reauthentication", "log in with `gcloud auth login`"),
    ("active account", "log in with `gcloud auth login`"),
    ("has not been used", "enable the API: gcloud services enable tpu.googleapis.com"),
  ):
    if words in text:
      return f"{error.line}; {remedy}"
  return f"{error.line}; see tpu_setup/README.md, Troubleshooting"
