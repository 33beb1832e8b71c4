"""Run by test_loop.py: trains the small model as one of two processes with four CPU devices each.

python worker.py RUN_DIR PORT PROCESS_ID    trains on several meshes, each in its own directory
"""

import sys

import jax
from small_run import BATCH, MODEL, STEPS, batches, optimizer

from hiermem_jax.parallel import MeshConfig, distributed, local_sequences, make_mesh
from hiermem_jax.training import loop
from hiermem_jax.training.config import CheckpointConfig, Objective, TrainingRun
from hiermem_jax.training.loop import LoopData
from hiermem_jax.training.metrics import JsonlWriter, NoWriter

# Slices, model axis, in which order the eight devices fill the mesh, and context axis. In the last two, each process has
# half of a pair of the inner axis, so that both feed the pair's rows, and rows of their own.
MESHES = {
  "2x4x1 interleaved": (2, 1, (0, 4, 1, 5, 2, 6, 3, 7)),
  "1x4x2 across": (1, 2, (0, 1, 2, 4, 3, 5, 6, 7)),
  "1x4x2x1 across": (1, 1, (0, 1, 2, 4, 3, 5, 6, 7), 2),
}


def train(run_dir, slices, model, devices, context=1):
  config = MeshConfig(slices=slices, model=model, context=context)
  mesh = make_mesh(config, [jax.devices()[number] for number in devices])
  positions = local_sequences(mesh, BATCH)

  def open_writer(start):
    return JsonlWriter(f"{run_dir}/metrics.jsonl", start) if distributed.is_first() else NoWriter()

  run = TrainingRun(
    model=MODEL,
    optimizer=optimizer("lazy"),
    steps=STEPS,
    batch_size=BATCH,
    objective=Objective(generic_probability=0.3),
    mesh=config,
    checkpoints=CheckpointConfig(every=STEPS // 2),
    log_every=1,
  )
  loop.train(
    run, str(run_dir), LoopData(batches=lambda start: batches(start, positions)), mesh, open_writer=open_writer
  )


def main(run_dir, port, process_id):
  jax.config.update("jax_num_cpu_devices", 4)
  distributed.initialize(f"127.0.0.1:{port}", 2, int(process_id))
  for name, mesh in MESHES.items():
    train(f"{run_dir}/{name}", *mesh)


if __name__ == "__main__":
  main(*sys.argv[1:])
