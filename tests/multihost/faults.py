"""Run by test_checkpoints.py: two processes save and restore a small state, while things go wrong in one of them.

python faults.py RUN_DIR PORT PROCESS_ID    writes RUN_DIR/PROCESS_ID.json, what each fault came to in this process
"""

import contextlib
import json
import pathlib
import resource
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hiermem_jax import files
from hiermem_jax.parallel import agreement, distributed
from hiermem_jax.training import checkpoint
from hiermem_jax.training.checkpoint import CheckpointStore
from hiermem_jax.training.digest import digest
from hiermem_jax.training.state import TrainState
from hiermem_jax.training.validation import BestModel


def make_state(mesh, step):
  """Random numbers, so that no chunk is left out as empty; each process holds half of each array."""
  rng = np.random.default_rng(step)

  def array(*shape):
    values = rng.standard_normal(shape).astype(np.float32)
    return jax.make_array_from_callback(shape, NamedSharding(mesh, PartitionSpec("x")), lambda index: values[index])

  scalars = [
    jax.jit(lambda value=value: jnp.int32(value), out_shardings=NamedSharding(mesh, PartitionSpec()))()
    for value in (step, 0)
  ]
  params = {"anchor": {"w": array(8, 64)}, "bank": {"level_1": array(16, 256)}}
  return TrainState(step=scalars[0], skipped=scalars[1], params=params, opt_state={"mu": array(8, 64)})


class Trial:
  """What happens in this process."""

  def __init__(self, run_dir, process):
    self.run_dir, self.process, self.found = pathlib.Path(run_dir), process, {}
    self.mesh = Mesh(jax.devices(), ("x",))
    self.store = CheckpointStore(str(self.run_dir), keep=10)

  @contextlib.contextmanager
  def fault(self, name):
    """Both processes begin together; what is raised, and how long it took, is kept."""
    distributed.together(lambda: None)
    start, found = time.monotonic(), {}
    try:
      yield found
    except Exception as error:
      found["error"] = f"{type(error).__name__}: {error}"
    found["seconds"], found["failed"] = time.monotonic() - start, self.store.failed
    distributed.together(lambda: None)
    found["steps"] = sorted(
      int(entry.name) for entry in (self.run_dir / "checkpoints").iterdir() if entry.name.isdigit()
    )
    self.found[name] = found
    print(name, found, flush=True)

  def save(self, step):
    self.store.save(make_state(self.mesh, step), {"name": "toy"})
    self.store.wait()

  def restored(self, step):
    """Whether the newest checkpoint is what was saved at a step."""
    state = make_state(self.mesh, step)
    return digest(self.store.restore(state)) == digest(state)

  def in_second(self, owner, name, value):
    """Replaces an attribute in the second process alone."""
    if self.process != 1:
      return contextlib.nullcontext()
    return replaced(owner, name, value)


@contextlib.contextmanager
def replaced(owner, name, value):
  before = getattr(owner, name)
  setattr(owner, name, value)
  try:
    yield
  finally:
    setattr(owner, name, before)


@contextlib.contextmanager
def largest_file(size):
  """A limit of the kernel on what this process writes, as a full disk has one."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def failing(error, times=1000):
  """A restore that raises, so many times."""
  restore, left = ocp.Checkpointer.restore, [times]

  def fail(self, *args, **kwargs):
    left[0] -= 1
    if left[0] >= 0:
      raise error
    return restore(self, *args, **kwargs)

  return fail


def flip(path):
  """Flips every bit: a file with a single wrong one may still decode, and then no one knows whose part is wrong."""
  path.write_bytes(bytes(byte ^ 255 for byte in path.read_bytes()))


def try_all(trial):
  first = trial.process == 0
  with trial.fault("saved"):
    trial.save(1)
    trial.save(2)
  with trial.fault("disk full"), contextlib.nullcontext() if first else largest_file(64):
    trial.save(3)

  def full(self, *args, **kwargs):
    raise OSError(28, "No space left on device")

  with trial.fault("save raises"), trial.in_second(ocp.CheckpointManager, "save", full):
    trial.save(3)
  with trial.fault("saved again") as found:
    trial.save(4)
    found["restored"] = trial.restored(4)
  with trial.fault("best at the same step") as found:
    state = make_state(trial.mesh, 5)
    best = BestModel(str(trial.run_dir), {"name": "toy"})
    best.offer(5, state.params, 1.0)
    trial.store.save(state, {"name": "toy"})
    best.offer(6, state.params, 0.5)
    best.close()
    trial.store.wait()
    found["restored"], found["best"] = trial.restored(5), BestModel(str(trial.run_dir), {}).loss
  for name, error, times in (
    ("read times out", TimeoutError("the server does not answer"), 1000),
    ("no memory", MemoryError("no room for the bank"), 1000),
    ("read times out once", TimeoutError("the server does not answer"), 1),
  ):
    with trial.fault(name) as found, trial.in_second(ocp.Checkpointer, "restore", failing(error, times)):
      found["restored"] = trial.restored(5)
  stuck = lambda self, *args, **kwargs: threading.Event().wait()  # noqa: E731
  with (
    trial.fault("read hangs"),
    trial.in_second(ocp.Checkpointer, "restore", stuck),
    replaced(CheckpointStore._agreed, "__defaults__", (5.0,)),
  ):
    trial.store.metadata()
  with trial.fault("does not come"), replaced(CheckpointStore._agreed, "__defaults__", (5.0,)):
    if not first:
      time.sleep(10)
    trial.store.metadata()
  data = list((trial.run_dir / "checkpoints/5/bank/ocdbt.process_1/d").iterdir())
  if first:
    for path in data:
      flip(path)
  with trial.fault("damaged") as found:
    found["data"] = [str(path) for path in data]
    trial.restored(5)
  with trial.fault("set aside") as found:
    trial.store.set_aside()
    found["restored"] = trial.restored(4)
  trial.store.close()


def main(run_dir, port, process):
  jax.config.update("jax_num_cpu_devices", 2)
  distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
  files._RETRY_PAUSES = (0.0, 0.0)
  checkpoint._PATIENCE = agreement._GRACE = 1.0
  trial = Trial(run_dir, int(process))
  try_all(trial)
  pathlib.Path(run_dir, f"{process}.json").write_text(json.dumps(trial.found))


if __name__ == "__main__":
  main(*sys.argv[1:])
