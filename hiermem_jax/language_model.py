r"""A trained model in a notebook: no gin, no flags, no TensorFlow.

  import hiermem_jax as hm

  model = hm.load("runs/quickstart/cotrain")
  text = "The city nearest to the island Prosstesey is"
  route = model.route(text)                       # the leaf, and the path to it
  model.topics(route)                             # terms and titles of the clusters on the path
  model.logits(text), model.logits(text, "none")  # with fetched memory, and without
  model.generate(text, max_new_tokens=8)
  model.block(text)["m1"].shape                   # the fetched arrays

Everywhere `mode` is one of those in evaluation/modes.py, such as 'none', 'generic', 'fetched', 'levels 1' or 'rank 2'.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.data.text.pairs import encode_pairs
from hiermem_jax.data.text.tokenizer import Tokenizer
from hiermem_jax.errors import InputError
from hiermem_jax.evaluation import loading, topics
from hiermem_jax.evaluation.config import ModelFiles, ScoringConfig
from hiermem_jax.evaluation.loading import LoadedModel, require_same
from hiermem_jax.evaluation.modes import Mode
from hiermem_jax.evaluation.scoring import Scorer
from hiermem_jax.evaluation.topics import Topic
from hiermem_jax.models.bank import gather_rows, row_indices, rows_to_block
from hiermem_jax.models.config import ModelConfig
from hiermem_jax.retrieval.retriever import Retriever
from hiermem_jax.retrieval.tree import ClusterTree

_PACKED = os.path.join("packed", "train")  # where runs keep their packed training text


@dataclasses.dataclass(frozen=True)
class Route:
  """Where a text is in the cluster tree.

  Attributes:
    leaf: number of the leaf.
    path: numbers of the clusters from level 1 down to the leaf, which is the last.
  """

  leaf: int
  path: tuple[int, ...]


class LanguageModel:
  """A trained model with its tokenizer and, where it has a bank, its cluster tree; `load` makes one.

  Attributes:
    config: shapes of the anchor and of the memory.
    tokenizer: of the model.
    metadata: what the checkpoint says beside the arrays, such as the step.
  """

  config: ModelConfig
  tokenizer: Tokenizer

  def __init__(self, loaded: LoadedModel, run_dir: str, max_length: int = 2048):
    """Prepares the model.

    Args:
      loaded: the checkpoint, tokenizer and tree.
      run_dir: where its packed training text is looked for.
      max_length: tokens of a prompt and what follows it, together.
    """
    self.config, self.tokenizer, self.metadata = loaded.model.config, loaded.tokenizer, loaded.model.metadata
    self._loaded, self._run_dir = loaded, run_dir
    self._modes = loaded.in_modes(ScoringConfig(batch_size=1, max_length=max_length))

  def __repr__(self) -> str:
    memory = self.config.memory
    what = f"{self.config.anchor.params:,} parameters"
    if memory is not None:
      what += f", a bank of {self.config.bank_params:,} over {memory.num_leaves:,} leaves"
    return f"LanguageModel({what}; step {self.metadata['step']:,})"

  @property
  def tree(self) -> ClusterTree:
    """The cluster tree.

    Raises:
      InputError: the model has no bank, and so no tree.
    """
    return self._retriever.tree

  def route(self, text: str) -> Route:
    """The leaf whose memory a text fetches, and the path to it.

    Raises:
      InputError: the model has no bank.
    """
    leaf = int(self._retriever.route([text])[0])
    return Route(leaf, tuple(self.tree.ancestors(leaf).tolist()))

  def topics(
    self,
    route: Route | str,
    texts: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    *,
    packed: str | None = None,
  ) -> list[Topic]:
    """What the clusters on a path are about: their top terms, and titles of documents in them.

    Args:
      route: where to look, or a text to route.
      texts: documents to look at, some hundreds at least; by default a sample of the training text.
      titles: of these documents; by default their first words.
      packed: packed dataset to take the sample from; by default `packed/train` of the run.

    Returns:
      One topic per level, level 1 first.

    Raises:
      InputError: the model has no bank, or there are neither texts nor packed text of its tree.
    """
    route = self.route(route) if isinstance(route, str) else route
    if texts is None:
      texts, leaf = self._packed_documents(route, packed)
    else:
      leaf = self._retriever.route(texts)
    titles = list(map(topics.title, texts)) if titles is None else titles
    return topics.path_topics(self.tree, route.path, texts, titles, leaf)

  def logits(self, text: str, mode: str | None = None) -> np.ndarray:
    """Logits of the token that follows each beginning of a text, in a mode of the memory.

    Args:
      text: what the retriever sees, too.
      mode: by default 'fetched', of a model without a bank 'none'.

    Returns:
      float32 [S + 1, V] for a text of S tokens; the last row is of the token behind the text.
    """
    scorer, leaf = self._in_mode(text, mode)
    return scorer.logits(self.tokenizer.encode(text), int(leaf[0]))

  def log_likelihood(self, context: str, continuation: str, mode: str | None = None) -> float:
    """Log-likelihood (nats) of a continuation; the retriever sees the context alone."""
    scorer, leaf = self._in_mode(context, mode)
    ((prompt, ids),) = encode_pairs(self.tokenizer, [(context, continuation)])
    return float(scorer.score_continuations([prompt], [ids], leaf)[0][0])

  def generate(self, text: str, mode: str | None = None, *, max_new_tokens: int = 32) -> str:
    """Greedy continuation of a text, up to the end of the document or `max_new_tokens` tokens."""
    scorer, leaf = self._in_mode(text, mode)
    (ids,) = scorer.generate([self.tokenizer.encode(text)], leaf, max_new_tokens, [self.tokenizer.eot_id])
    return self.tokenizer.decode(ids)

  def block(self, text: str, mode: str | None = None) -> dict[str, np.ndarray]:
    """The memory that a text fetches.

    Returns:
      By name of the vector (of FFN memory m1, m2, m3): float32 [L, R, width], for the layers that have memory and the
      units of all levels, level 1 first. Zeros where the mode fetches nothing.

    Raises:
      InputError: the model has no bank.
    """
    self._require_bank()
    scorer, leaf = self._in_mode(text, mode)
    model, memory = scorer.model, scorer.model.config.required_memory

    indices = row_indices(jnp.asarray(leaf), memory)
    rows = {name: gather_rows(table, indices[name]) for name, table in model.params["bank"].items()}
    vectors = rows_to_block(rows, model.config).vectors
    return {name: np.asarray(vector[0], np.float32) for name, vector in vectors.items()}

  @property
  def _retriever(self) -> Retriever:
    self._require_bank()
    assert self._loaded.retriever is not None  # the loader reads that of a model with a bank
    return self._loaded.retriever

  def _require_bank(self) -> None:
    if self.config.memory is None:
      raise InputError(f"{self._loaded.files.directory}: a model without a bank, which routes and fetches nothing")

  def _in_mode(self, text: str, name: str | None) -> tuple[Scorer, np.ndarray]:
    """The scorer of a mode, and the leaf ids int32 [1] of a text."""
    mode = Mode.parse(name or ("none" if self.config.memory is None else "fetched"))
    if mode.document:
      raise InputError(f"mode {mode.name!r}: there are no documents here; choose {mode.name.removeprefix('rag ')!r}")
    mode.check(self.config.memory)
    return self._modes.scorer(mode), self._modes.leaves(mode, [text])

  def _packed_documents(self, route: Route, packed: str | None) -> tuple[list[str], np.ndarray]:
    directory = packed or os.path.join(self._run_dir, _PACKED)
    if not os.path.isfile(os.path.join(directory, "manifest.json")):
      raise InputError(f"{directory}: no packed text there; give texts = [...], or packed = its directory")
    dataset = PackedDataset(directory)
    require_same("the tree", self.tree.fingerprint, directory, dataset.manifest.tree_fingerprint)
    return topics.packed_documents(dataset, self.tokenizer, self.tree, route.path)


def load(
  directory: str,
  *,
  tree: str | None = None,
  tokenizer: str | None = None,
  max_length: int = 2048,
  mesh: Mesh | None = None,
) -> LanguageModel:
  """Loads a trained model.

  Args:
    directory: of its training, e.g. runs/a2 or runs/quickstart/cotrain.
    tree: directory of its cluster tree; by default `tree` in `directory` or in the directory above.
    tokenizer: its tokenizer; by default `tokenizer.model` or `tokenizer.json` in one of the two.
    max_length: tokens of a prompt and what follows it, together.
    mesh: where to put the parameters; by default over all devices.

  Raises:
    InputError: something is missing or damaged, or does not belong together.
  """
  directory = os.path.abspath(directory)
  if not os.path.isdir(os.path.join(directory, "checkpoints")):
    inside = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    trained = [name for name in inside if os.path.isdir(os.path.join(directory, name, "checkpoints"))]
    remedy = f"load {directory}/{{{','.join(trained)}}}" if trained else "give the directory of a training"
    raise InputError(f"{directory}: no checkpoints there; {remedy}")
  find = functools.partial(_find, directory)
  files = ModelFiles(
    directory=directory,
    tree=tree and os.path.abspath(tree) or find("tree"),
    tokenizer=tokenizer and os.path.abspath(tokenizer) or find("tokenizer.model", "tokenizer.json"),
  )
  return LanguageModel(loading.load("", files, mesh=mesh), os.path.dirname(files.tree), max_length)


def _find(directory: str, *names: str) -> str:
  """The first of some names that is in a directory or in the one above; where none is, the first one's path."""
  places = [os.path.join(start, name) for start in (directory, os.path.dirname(directory)) for name in names]
  return next(filter(os.path.exists, places), places[0])
