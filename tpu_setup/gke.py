"""Writes a JobSet for `kubectl apply`, for those whose TPU quota is in a GKE cluster."""

from collections.abc import Sequence

import yaml

from hiermem_jax.errors import InputError
from tpu_setup.config import CHIPS, Config

# As in host/bootstrap.sh. No metadata is cached, so that a host sees at once what another one writes.
_MOUNT_OPTIONS = "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"


def manifest(config: Config, verb: str, flags: Sequence[str], run_dir: str, image: str, tries: int) -> str:
  """Writes a JobSet that runs a verb on every host of the slices. When a host is lost, all hosts are restarted.

  The image has this repository as its working directory and its environment on PATH. The bucket is mounted by GKE's
  Cloud Storage FUSE driver at /gcs/BUCKET. jax finds the hosts by the variables that GKE and JobSet set.

  Args:
    config: topology, slices, name, labels, bucket.
    verb: e.g. "train".
    flags: its flags.
    run_dir: as a host sees it.
    image: container image.
    tries: restarts before the JobSet fails.

  Raises:
    InputError: no image is named.
  """
  if not image:
    raise InputError("--image is missing; build one with this repository and requirements.lock, and push it")
  hosts = config.chips // config.chips_per_host
  arguments = ["-m", f"hiermem_jax.{verb}", "--distributed", f"--run_dir={run_dir}", *flags]
  command = ["bash", "-c", 'source tpu_setup/host/flags.sh && exec python "$@"', "bash", *arguments]
  chips = {"google.com/tpu": config.chips_per_host}
  container = {
    "name": "train",
    "image": image,
    "command": command,
    "env": [{"name": "CHIP", "value": config.chip}],
    "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
    "resources": {"requests": chips, "limits": chips},
  }
  pod: dict = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": config.stop_seconds,
    "nodeSelector": {
      "cloud.google.com/gke-tpu-accelerator": CHIPS[config.chip].gke,
      "cloud.google.com/gke-tpu-topology": config.topology.partition(":")[2],
    },
    "containers": [container],
  }
  annotations = {}
  if config.capacity == "spot":
    pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
  if config.bucket:
    bucket = config.bucket.removeprefix("gs://")
    annotations["gke-gcsfuse/volumes"] = "true"
    # Its sidecar starts with 256 MiB of memory and 5 GiB of disk, of which checkpoints want more; 0 is no limit.
    annotations |= {f"gke-gcsfuse/{resource}-limit": "0" for resource in ("cpu", "memory", "ephemeral-storage")}
    container["volumeMounts"] = [{"name": "bucket", "mountPath": f"/gcs/{bucket}"}]
    attributes = {"bucketName": bucket, "mountOptions": _MOUNT_OPTIONS}
    csi = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
    pod["volumes"] = [{"name": "bucket", "csi": csi}]
    pod["serviceAccountName"] = config.service_account or "default"
  job = {
    "parallelism": hosts,
    "completions": hosts,
    "backoffLimit": 0,
    "template": {"metadata": {"annotations": annotations}, "spec": pod},
  }
  return yaml.safe_dump(
    {
      "apiVersion": "jobset.x-k8s.io/v1alpha2",
      "kind": "JobSet",
      "metadata": {
        "name": config.name,
        "labels": dict(config.labels),
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
      },
      "spec": {
        "failurePolicy": {"maxRestarts": tries},
        "replicatedJobs": [{"name": "slice", "replicas": config.slices, "template": {"spec": job}}],
      },
    },
    sort_keys=False,
  )
