"""The loader: what does not belong together is refused, by name."""

import dataclasses
import shutil

import numpy as np
import pytest

from hiermem_jax.data.packed.batches import in_order
from hiermem_jax.data.text.tokenizer import train_sentencepiece
from hiermem_jax.errors import InputError
from hiermem_jax.evaluation.config import ModelFiles, ScoringConfig
from hiermem_jax.evaluation.loading import load, open_held_out
from hiermem_jax.evaluation.scoring import Scorer


def test_what_is_loaded(loaded, toy_run, mesh):
  assert loaded.model.metadata["step"] == 7 and loaded.model.memory.rows == (3, 2)
  assert loaded.retriever.tree.fingerprint == loaded.model.metadata["tree_fingerprint"]
  plain = load(str(toy_run), ModelFiles(directory="plain", tree="nowhere"), mesh=mesh)
  assert plain.model.memory is None and plain.retriever is None
  assert load(str(toy_run), ModelFiles(directory="plain"), mesh=mesh, needs_tree=True).retriever is not None


def test_a_bank_in_bfloat16_is_the_same_to_an_anchor_in_bfloat16(toy_run, loaded, mesh):
  """Rows are fetched in the anchor's type; to an anchor in float32 it is nearly the same."""
  small = load(str(toy_run), ModelFiles(directory="model", bank_dtype="bfloat16"), mesh=mesh)
  assert small.model.memory.dtype == "bfloat16" and loaded.model.memory.dtype == "float32"
  dataset = open_held_out(str(toy_run), "packed/validation", loaded)

  def losses(model, dtype):
    config = dataclasses.replace(model.config, anchor=dataclasses.replace(model.anchor, dtype=dtype))
    scorer = Scorer(dataclasses.replace(model, config=config), mesh, 16)
    return np.concatenate([scorer.score_batch(batch)[0] for batch in in_order(dataset, 16)])

  np.testing.assert_array_equal(losses(small.model, "bfloat16"), losses(loaded.model, "bfloat16"))
  exact, near = losses(loaded.model, "float32"), losses(small.model, "float32")
  assert (exact != near).any()
  np.testing.assert_allclose(near, exact, rtol=0.02)


def test_another_tokenizer_is_refused(toy_run, tmp_path):
  train_sentencepiece(["another text"] * 9, str(tmp_path / "other.model"), vocab_size=270)
  files = ModelFiles(directory="model", tokenizer=str(tmp_path / "other.model"))
  with pytest.raises(
    InputError, match="the tokenizer .*other.model has fingerprint .*, the model in model was made with"
  ):
    load(str(toy_run), files)


@pytest.mark.parametrize("kind", ["tokenizer", "tree"])
def test_held_out_text_of_another_run_is_refused(loaded, toy_run, tmp_path, kind):
  shutil.copytree(toy_run / "packed/validation", tmp_path / "packed")
  manifest = tmp_path / "packed/manifest.json"
  own = loaded.model.metadata[f"{kind}_fingerprint"]
  manifest.write_text(manifest.read_text().replace(own, "feed"))
  with pytest.raises(InputError, match=f"the {kind} {kind}.* has fingerprint {own}, packed was made with feed; use"):
    open_held_out(str(tmp_path), "packed", loaded)


@pytest.mark.parametrize("name", ["batch_size", "max_length"])
def test_sizes_are_positive(name):
  with pytest.raises(InputError, match=f"ScoringConfig.{name} = 0: must be positive"):
    ScoringConfig(**{name: 0})
