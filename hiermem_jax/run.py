r"""Runs a chain of verbs from one gin file: cluster, prepare, train (several times), evaluate.

  python -m hiermem_jax.run --gin_file=gin/runs/quickstart.gin --run_dir=runs/quickstart

The gin file names the stages. Every stage keeps what is already done, so the same command continues a broken run. Of
several processes (--distributed) the first one alone runs the verbs that cannot be distributed: cluster, prepare.
"""

import functools
import time
from collections.abc import Callable

from absl import logging

from hiermem_jax.verbs import VERBS


def run(*, run_dir: str, stages: tuple[Callable, ...]) -> None:
  """Calls each stage with the run directory.

  Args:
    run_dir: where relative paths of all stages start.
    stages: verbs with their bindings, as gin's scoped references, e.g. (@cluster, @prepare, @cotrain/train, @evaluate).
  """
  from hiermem_jax.parallel import distributed

  for number, stage in enumerate(stages, start=1):
    start = time.monotonic()
    logging.info("stage %d of %d: %s", number, len(stages), stage.__name__)
    if VERBS[stage.__name__].distributed:
      stage(run_dir=run_dir)
    else:
      distributed.on_first(functools.partial(stage, run_dir=run_dir))
    logging.info("stage %d of %d: done in %.0f s", number, len(stages), time.monotonic() - start)


if __name__ == "__main__":
  from hiermem_jax import cli

  cli.main("run")
