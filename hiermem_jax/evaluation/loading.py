"""The one loader of trained models: checkpoint, tokenizer and cluster tree, checked against each other."""

import dataclasses
import os

from jax.sharding import Mesh

from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from hiermem_jax.errors import InputError
from hiermem_jax.evaluation.config import ModelFiles, ScoringConfig
from hiermem_jax.evaluation.modes import MemoryModes
from hiermem_jax.models.model import Model
from hiermem_jax.parallel import make_mesh
from hiermem_jax.retrieval.retriever import Retriever, load_retriever
from hiermem_jax.training.checkpoint import load_model
from hiermem_jax.training.stored_model import load_model_as


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
  """A trained model with what belongs to it.

  Attributes:
    files: where it was loaded from.
    model: the newest checkpoint.
    mesh: where its parameters are.
    tokenizer: the one that it was trained with.
    retriever: the encoder and the tree that it was trained with; None where neither a bank nor the caller needs them.
  """

  files: ModelFiles
  model: Model
  mesh: Mesh
  tokenizer: Tokenizer
  retriever: Retriever | None

  def in_modes(self, config: ScoringConfig) -> MemoryModes:
    """The model, ready to be measured in any mode of its memory."""
    return MemoryModes(self.model, self.mesh, self.retriever, config, bos_id=self.tokenizer.bos_id)


def load(
  run_dir: str,
  files: ModelFiles,
  *,
  mesh: Mesh | None = None,
  needs_tree: bool = False,
  setting: str = "ModelFiles.directory",
) -> LoadedModel:
  """Loads the newest checkpoint of a training, with its tokenizer and its tree.

  Args:
    run_dir: where relative paths start.
    files: where they are.
    mesh: where to put the parameters; by default over all devices.
    needs_tree: whether to load the tree of a model without a bank, too, to retrieve documents with.
    setting: what binds the model's directory, for messages.

  Raises:
    InputError: one of them is missing or damaged, or they do not belong together.
  """
  mesh = make_mesh() if mesh is None else mesh
  directory = os.path.join(run_dir, files.directory)
  if files.bank_dtype is None:
    model = load_model(directory, mesh, setting=setting)
  else:
    model = load_model_as(files.bank_dtype, directory, mesh, setting=setting)
  tokenizer = load_tokenizer(os.path.join(run_dir, files.tokenizer))
  about = f"the model in {files.directory}"
  trained_with = model.metadata["tokenizer_fingerprint"]
  require_same(f"the tokenizer {files.tokenizer}", tokenizer.fingerprint, about, trained_with)
  retriever = None
  if model.memory is not None or needs_tree:
    retriever = load_retriever(os.path.join(run_dir, files.tree))
    trained_with = model.metadata["tree_fingerprint"]
    require_same(f"the tree {files.tree}", retriever.tree.fingerprint, about, trained_with)
  return LoadedModel(files=files, model=model, mesh=mesh, tokenizer=tokenizer, retriever=retriever)


def open_held_out(run_dir: str, directory: str, loaded: LoadedModel) -> PackedDataset:
  """Opens a packed dataset whose perplexity under a model is asked for.

  Raises:
    InputError: it is missing or damaged, or was made with another tokenizer or tree than the model's.
  """
  dataset = PackedDataset(os.path.join(run_dir, directory))
  manifest, files = dataset.manifest, loaded.files
  require_same(
    f"the tokenizer {files.tokenizer}", loaded.tokenizer.fingerprint, directory, manifest.tokenizer_fingerprint
  )
  if loaded.retriever is not None:
    require_same(f"the tree {files.tree}", loaded.retriever.tree.fingerprint, directory, manifest.tree_fingerprint)
  return dataset


def require_same(name: str, fingerprint: str, other: str, other_fingerprint: str) -> None:
  """Raises InputError where `other` was not made with `name`."""
  if fingerprint != other_fingerprint:
    raise InputError(
      f"{name} has fingerprint {fingerprint}, {other} was made with {other_fingerprint}; use the ones of the same run"
    )
