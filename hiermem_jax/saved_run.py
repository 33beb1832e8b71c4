"""From a run directory to what its saved configuration says: where its tree, text and model are."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from hiermem_jax import configuration
from hiermem_jax.data.sources import resolve_data_dir
from hiermem_jax.errors import InputError
from hiermem_jax.evaluation.inspection import SavedRun
from hiermem_jax.training.config import TrainingRun
from hiermem_jax.verbs import CONFIGURED


def configurations(directory: str) -> list[str]:
  """The complete configurations in a run directory.

  Raises:
    InputError: there are none.
  """
  names = dict.fromkeys(verb.saved_as for verb in CONFIGURED.values() if verb.has_run_dir)
  found = [path for name in names if os.path.isfile(path := os.path.join(directory, name))]
  if not found:
    what = "no config.gin and no VERB.config.gin there" if os.path.isdir(directory) else "no such directory"
    raise InputError(f"--run_dir={directory}: {what}; name the directory of a run")
  return found


def find(directory: str) -> SavedRun:
  """Reads the configurations that a run directory keeps, and finds what they name.

  The model is that of an evaluation, or else that of the last training with a bank.

  Raises:
    InputError: there is no configuration, or no tree.
  """
  calls = [call for path in configurations(directory) for call in _calls(path)]

  def complete(path: str) -> str:
    return os.path.normpath(os.path.join(directory, path))

  def named(*arguments: tuple[str, str]) -> list[str]:
    return [
      complete(given[name]) for verb, given in calls for wanted, name in arguments if verb == wanted and given[name]
    ]

  trainings = [given for verb, given in calls if verb == "train" and given["model"].memory is not None]
  evaluated = [given["model"] for verb, given in calls if verb in ("evaluate", "evaluate_tasks")]
  models = [complete(files.directory) for files in evaluated]
  models += [complete(given["directory"]) for given in reversed(trainings)]
  model = next((path for path in models if os.path.isdir(os.path.join(path, "checkpoints"))), None)
  training = next((given for given in trainings if complete(given["directory"]) == model), None)
  training = training or (trainings[-1] if trainings else None)
  packed = [complete(training["dataset"])] if training else []
  packed += [os.path.join(path, "train") for path in named(("prepare", "directory"))]
  dataset = next((path for path in packed if os.path.isfile(os.path.join(path, "manifest.json"))), None)

  trees = [complete(files.tree) for files in evaluated]
  trees += [*named(("prepare", "tree"), ("cluster", "directory")), complete("tree")]
  # Of a packed dataset elsewhere: where `cluster` and `prepare` put a tree beside it.
  trees += [os.path.normpath(os.path.join(path, up, "tree")) for path in packed for up in ("../..", "..")]
  tree = next((path for path in trees if os.path.isfile(os.path.join(path, "tree.json"))), None)
  if tree is None:
    raise InputError(
      f"--run_dir={directory}: no cluster tree at {' or '.join(dict.fromkeys(trees))}; run cluster first"
    )
  tokenizers = [complete(files.tokenizer) for files in evaluated]
  tokenizers += named(("prepare", "tokenizer"), ("cluster", "tokenizer"))
  tokenizers += [os.path.join(os.path.dirname(tree), name) for name in ("tokenizer.model", "tokenizer.json")]
  sources = [
    given[name] for verb, name in (("prepare", "train"), ("cluster", "corpus")) for v, given in calls if v == verb
  ]
  fields = [field.name for field in dataclasses.fields(TrainingRun)]
  return SavedRun(
    directory=directory,
    tree=tree,
    tokenizer=next(filter(os.path.isfile, tokenizers), None),
    packed=dataset,
    corpus=resolve_data_dir(sources[0], directory) if sources else None,
    model=model,
    training=TrainingRun(**{name: training[name] for name in fields}) if training else None,
  )


def _calls(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """The verbs that a saved configuration calls, each with its arguments."""
  configuration.load([path], [])
  stages = [stage.name for stage in configuration.chain()]
  name = os.path.basename(path).removesuffix(".config.gin")
  for stage in stages or ["train" if name == "config.gin" else name]:
    yield stage.rpartition("/")[2], configuration.all_arguments(stage)
