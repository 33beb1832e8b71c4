"""What can be known before the first stage starts: whether the stages fit each other, and what they read is there.

Each check raises InputError. `before` needs no devices and creates nothing; `devices` starts jax's backend.
"""

import itertools
import os
import shutil
from collections.abc import Sequence
from typing import Any

from hiermem_jax import files
from hiermem_jax.errors import InputError
from hiermem_jax.plan import Planned, makes

_ON_DEVICES = ("train", "merge", "evaluate", "evaluate_tasks")


def before(stages: Sequence[Planned], run_dir: str | None) -> None:
  """Makes all checks that need no devices.

  Args:
    stages: in their order.
    run_dir: where relative paths start; None leaves them, and the space on the disk, unchecked.
  """
  if run_dir is not None and os.path.exists(run_dir) and not os.path.isdir(run_dir):
    raise InputError(f"--run_dir={run_dir}: is a file; name a directory, or one that may be created")
  for number, stage in enumerate(stages):
    if stage.verb in ("train", "merge") and run_dir is not None:
      files.refuse_pattern(os.path.join(run_dir, stage.arguments["directory"]))
    if stage.verb == "train":
      stage.arguments["run"].check()
      _dataset(stage, stages[:number])
    if stage.verb in ("evaluate", "evaluate_tasks"):
      _modes(stage, stages[:number])
    _sources(stage)
    _paths(stage, stages[:number], run_dir)
  if run_dir is not None:
    _space(stages, run_dir)


def devices(stages: Sequence[Planned], *, mesh: bool) -> None:
  """Checks that jax has the devices that it was told to use and, with `mesh`, that every training fits on them."""
  if not any(stage.verb in _ON_DEVICES for stage in stages):
    return
  import jax

  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    asked = jax.config.jax_platforms  # type: ignore[attr-defined]  # jax adds its options at run time
    reason = (str(error).splitlines() or ["no such device"])[0].rstrip(".")
    raise InputError(
      f"JAX_PLATFORMS={asked}: jax finds no such device here ({reason}); install jax for it (jax[cuda12], jax[tpu]),"
      " or set JAX_PLATFORMS=cpu"
    ) from None
  if not mesh:
    return
  from hiermem_jax.parallel import check_length, make_mesh
  from hiermem_jax.parallel.layout import check_mesh
  from hiermem_jax.parallel.mesh import check_batch

  for number, stage in enumerate(stages):
    if stage.verb == "train":
      run = stage.arguments["run"]
      made = make_mesh(run.mesh)
      check_mesh(made, run.model)
      check_batch(made, run.batch_size, run.microbatches)
      for path in _datasets(stage):
        prepare = _maker(path, stages[:number], "prepare")
        for length in prepare.arguments["pack"].lengths if prepare else ():
          check_length(made, length)


def _maker(path: str, earlier: Sequence[Planned], *verbs: str) -> Planned | None:
  """The last of some stages, of these verbs, that makes what is read at `path`."""
  return next((stage for stage in reversed(earlier) if stage.verb in verbs and makes(stage, path)), None)


def _datasets(stage: Planned) -> list[str]:
  """What a training reads: the dataset that it trains on, and those that are held out."""
  given = stage.arguments
  return [given["dataset"], *(path for _, path in (given["validation"].datasets if given["validation"] else ()))]


def _dataset(stage: Planned, earlier: Sequence[Planned]) -> None:
  """The model against the tokenizer and the tree of the dataset that earlier stages make."""
  given = stage.arguments
  for path in _datasets(stage):
    prepare = _maker(path, earlier, "prepare")
    if prepare is None:
      continue
    tree, tokenizer, vocab_size = prepare.arguments["tree"], prepare.arguments["tokenizer"], None
    leaves, shape = 0 if tree is None else None, None
    if tree is not None and (cluster := _maker(tree, earlier, "cluster")):
      config = cluster.arguments["tree"]
      leaves, shape = config.num_leaves, (config.branching, config.depth)
    if trained := _maker(tokenizer, earlier, "train_tokenizer", "cluster"):
      name = "vocab_size" if trained.verb == "train_tokenizer" else "tokenizer_vocab_size"
      vocab_size = trained.arguments[name]
    given["run"].model.check_data(f"{stage.name}, {path}", vocab_size, leaves)
    given["run"].model.check_tree(f"{stage.name}, {path}", shape)


def _modes(stage: Planned, earlier: Sequence[Planned]) -> None:
  """The modes of an evaluation, and what they need; the model is known where an earlier stage trains it."""
  from hiermem_jax.evaluation import series
  from hiermem_jax.evaluation.modes import Mode
  from hiermem_jax.evaluation.tasks import task_files

  given = stage.arguments
  if stage.verb == "evaluate_tasks":
    task_files(given["tasks"])
    for name in given["modes"]:
      Mode.parse(name)
    return
  parsed = series.parse(given["modes"], has_probes=given["probes"] is not None, has_documents=given["rag"] is not None)
  train = _maker(given["model"].directory, earlier, "train")
  if train is not None:
    series.check(parsed, train.arguments["run"].model.memory)


def _sources(stage: Planned) -> None:
  """The files of corpora and questions."""
  from hiermem_jax.data.sources.files import FileSource

  values = list(stage.arguments.values())
  values += [getattr(value, name) for value in values for name in ("documents", "corpus") if hasattr(value, name)]
  for source in values:
    if isinstance(source, FileSource):
      source.files()


def _paths(stage: Planned, earlier: Sequence[Planned], run_dir: str | None) -> None:
  """What a stage reads must be there, or an earlier stage makes it."""
  for name, path in stage.named_inputs():
    if run_dir is None and not os.path.isabs(path):
      continue
    whole = os.path.join(run_dir or "", path)
    if "://" in whole or any(makes(other, path) for other in earlier):
      continue
    _require(stage, name, whole, run_dir)
  if stage.verb == "merge" and not stage.arguments["subtrees"] and run_dir is not None:
    import glob

    if not glob.glob(os.path.join(glob.escape(run_dir), "subtree_*")):
      raise InputError(f"{run_dir}: no directory subtree_*; train the subtrees there, or bind merge.subtrees")


def _require(stage: Planned, name: str, path: str, run_dir: str | None) -> None:
  if name.endswith("tokenizer"):
    if not os.path.exists(path):
      remedy = " or cluster.tokenizer_vocab_size to train one" if stage.verb == "cluster" else ""
      raise InputError(f"{path}: no such tokenizer; bind {name}{remedy}")
  elif name == "prepare.tree":
    if not os.path.exists(os.path.join(path, "tree.json")):
      raise InputError(
        f"{path}: no cluster tree there{files.beside(path, 'tree.json')}; run cluster first, or bind {name}"
      )
  elif name in ("train.dataset", "ValidationConfig.dataset", "ValidationConfig.others", "evaluate.validation"):
    if not os.path.isdir(path):
      raise InputError(
        f"{path}/manifest.json: No such file or directory{files.beside(path, 'manifest.json')}; give {name} the"
        " directory that the prepare verb wrote"
      )
    if not any(os.path.exists(os.path.join(path, file)) for file in ("manifest.json", "decomposition.json")):
      raise InputError(f"{path}: no packed dataset, or an unfinished one; run prepare (again), or bind {name}")
  elif not (stage.verb == "train" and _resumes(stage, run_dir)) and not _steps(path):
    raise InputError(f"{path}: no checkpoint there{files.beside(path, 'checkpoints')}; train it first or bind {name}")


def _resumes(stage: Planned, run_dir: str | None) -> bool:
  """Whether a training has a checkpoint of its own, and so reads no other."""
  return run_dir is not None and bool(_steps(os.path.join(run_dir, stage.arguments["directory"])))


def _steps(directory: str) -> list[int]:
  """Steps of a training's checkpoints."""
  path = os.path.join(directory, "checkpoints")
  return [int(name) for name in os.listdir(path) if name.isdigit()] if os.path.isdir(path) else []


def _space(stages: Sequence[Planned], run_dir: str) -> None:
  """The checkpoints of all trainings against the free space of the run directory's file system."""
  if "://" in run_dir:
    return
  needed: dict[str, int] = {}
  for stage in stages:
    if stage.verb == "train":
      needed[stage.name] = max(_checkpoint_bytes(stage.arguments["run"]) - _held_bytes(stage, run_dir), 0)
  place = os.path.abspath(run_dir)
  while not os.path.exists(place):
    place = os.path.dirname(place)
  free, total = shutil.disk_usage(place).free, sum(needed.values())
  if total > free:
    parts = ", ".join(f"{name} {size / 1e9:,.1f} GB" for name, size in needed.items())
    raise InputError(
      f"{run_dir}: {free / 1e9:,.1f} GB are free there, and checkpoints need about {total / 1e9:,.1f} GB ({parts});"
      " make room, use another disk, or bind less to CheckpointConfig.keep"
    )


def _checkpoint_bytes(run: Any) -> int:
  """All checkpoints that a run keeps, one while it is written included."""
  config = run.checkpoints
  count = min(config.keep + 1, -(-run.steps // config.every))
  if config.keep_every:
    count += run.steps // config.keep_every
  return count * run.state_bytes


def _held_bytes(stage: Planned, run_dir: str) -> int:
  path = os.path.join(run_dir, stage.arguments["directory"], "checkpoints")
  found = itertools.chain.from_iterable(
    (os.path.join(folder, name) for name in names) for folder, _, names in os.walk(path)
  )
  return sum(os.path.getsize(file) for file in found if os.path.isfile(file))
