r"""Runs a chain of verbs from one gin file: cluster, prepare, train (several times), evaluate.

  python -m hiermem_jax.run --gin_file=gin/runs/quickstart.gin --run_dir=runs/quickstart
  python -m hiermem_jax.run --gin_file=gin/runs/quickstart.gin --run_dir=runs/quickstart --stages=cotrain..

The gin file names the stages. Every stage keeps what is already done, so the same command continues a broken run.
--stages runs some of them: --stages=cluster,prepare two, --stages=cotrain.. one and all after it. A stage is named by
its scope and verb (cotrain/train), or by one of the two where that is enough. What earlier stages would have made must
be there. Of several processes (--distributed) the first one alone runs the verbs that cannot be distributed: cluster,
prepare.
"""

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refused flag answer at once
  from hiermem_jax import cli

  cli.main("run")

import functools
from collections.abc import Callable

from hiermem_jax import console
from hiermem_jax.verbs import VERBS, Stage


def run(*, run_dir: str, stages: tuple[Callable, ...]) -> None:
  """Calls each stage with the run directory.

  Args:
    run_dir: where relative paths of all stages start.
    stages: verbs with their bindings, as gin's scoped references, e.g. (@cluster, @prepare, @cotrain/train, @evaluate);
      from the command line, each is a `Stage`.
  """
  from hiermem_jax.parallel import distributed

  for number, function in enumerate(stages, start=1):
    stage = function
    if not isinstance(stage, Stage):
      stage = Stage(name=function.__name__, call=function, number=number, total=len(stages))
    with console.stage(stage.title):
      if VERBS[stage.verb].distributed:
        stage(run_dir=run_dir)
      else:
        distributed.on_first(functools.partial(stage, run_dir=run_dir))
