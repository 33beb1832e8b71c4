"""The tree as pipelines: it is the tree that is built in memory, whatever the samples and crashes; other inputs are refused."""

import dataclasses
import json

import numpy as np
import pytest

from hiermem_jax import files
from hiermem_jax.data.corpus.keys import mix
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.data.text.tokenizer import train_sentencepiece
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.build import TreeConfig, build_tree, level_report
from hiermem_jax.retrieval.encoders import FittedLsaEncoder, LsaEncoder
from hiermem_jax.retrieval.retriever import load_retriever

# Another value of each setting, and what the message calls it.
OTHER_TREES = {"branching": 2, "steps": 4, "batch_size": 41, "balance": None, "seed": 5}


def embedded(directory):
  parts = [files.read_arrays(f"{directory}/embeddings/part-{i:05d}.npz") for i in range(4)]
  return np.concatenate([p["keys"] for p in parts]), np.concatenate([p["embeddings"] for p in parts])


def test_it_is_the_tree_that_is_built_in_memory(grown, settings):
  directory, tree = grown
  keys, embeddings = embedded(directory)
  assert settings.tree.steps * settings.tree.batch_size < len(keys)  # the root's k-means sees a part of the windows
  fingerprint = tree.encoder_fingerprint
  expected = build_tree(
    embeddings, mix(keys, settings.tree.seed), config=settings.tree, encoder_fingerprint=fingerprint
  )
  for level, other in zip(tree.centroids, expected.centroids, strict=True):
    np.testing.assert_array_equal(level, other)
  assert load_retriever(directory).tree.fingerprint == tree.fingerprint


def test_report(grown, windows):
  directory, tree = grown
  report = files.read_json(f"{directory}/report.json")
  sizes = np.bincount(tree.assign(embedded(directory)[1]), minlength=9)
  assert report["levels"][1]["max"] == sizes.max() and report["levels"][1]["clusters"] == 9
  assert report["levels"][0]["max"] == sizes.reshape(3, 3).sum(axis=1).max()
  assert report["corpus"]["documents"] == 400 and report["corpus"]["windows"] == len(windows)


@pytest.mark.parametrize("crash_at", [2, 7, 9, 10])
def test_a_crash_costs_what_was_not_finished(grown, grow, tmp_path, monkeypatch, crash_at):
  """Ten files: embeddings and a summary for each of four parts, then a level each."""
  real, writes = files.write_arrays, [0]
  real_json = files.write_json

  def count():
    writes[0] += 1
    if writes[0] == crash_at:
      raise RuntimeError("crash")

  def write_arrays(path, **arrays):
    count()
    real(path, **arrays)

  def write_json(path, value):
    if "part-" in str(path):
      count()
    real_json(path, value)

  monkeypatch.setattr(files, "write_arrays", write_arrays)
  monkeypatch.setattr(files, "write_json", write_json)
  with pytest.raises(RuntimeError, match="crash"):
    grow(tmp_path / "tree")
  monkeypatch.undo()
  before = {path.name for path in (tmp_path / "tree" / "embeddings").glob("*.json")}
  encoded = []
  real_encode = FittedLsaEncoder.encode
  monkeypatch.setattr(FittedLsaEncoder, "encode", lambda self, texts: (encoded.append(1), real_encode(self, texts))[1])
  assert grow(tmp_path / "tree")[1].fingerprint == grown[1].fingerprint
  assert len(encoded) == 4 - len(before - {"inputs.json"})


def test_a_finished_tree_is_not_built_again(grown, grow, monkeypatch):
  monkeypatch.setattr(JsonlSource, "read", None)
  monkeypatch.setattr(FittedLsaEncoder, "encode", None)
  assert grow(grown[0])[1].fingerprint == grown[1].fingerprint


def test_a_sample_is_a_nested_share_of_the_windows(grow, grown, settings):
  directory, _ = grow(sample=0.5, tree=dataclasses.replace(settings.tree, depth=1))
  keys, _ = embedded(directory)
  all_keys, _ = embedded(grown[0])
  assert 0.35 < len(keys) / len(all_keys) < 0.65 and set(keys.tolist()) < set(all_keys.tolist())


@pytest.fixture(scope="module")
def unfinished(grow, tmp_path_factory):
  """A directory with embeddings and the first level."""
  directory = str(tmp_path_factory.mktemp("unfinished") / "tree")
  grow(directory)
  for name in ("report.json", "tree.json", "tree.npz", "levels/level_2.npz"):
    files.as_path(f"{directory}/{name}").unlink()
  return directory


@pytest.mark.parametrize("finished", [True, False])
def test_every_setting_of_the_tree_belongs_to_its_directory(grow, grown, unfinished, settings, finished):
  assert OTHER_TREES.keys() | {"depth"} == {field.name for field in dataclasses.fields(TreeConfig)}
  directory = grown[0] if finished else unfinished
  for name, value in OTHER_TREES.items():
    held = getattr(settings.tree, name)
    with pytest.raises(InputError, match=f"was made with {name} {held}, asked for is {value}"):
      grow(directory, tree=dataclasses.replace(settings.tree, **{name: value}))
  if finished:  # an unfinished tree may still become a deeper one
    with pytest.raises(InputError, match="was made with depth 2, asked for is 1"):
      grow(directory, tree=dataclasses.replace(settings.tree, depth=1))


@pytest.mark.parametrize("finished", [True, False])
def test_everything_that_decides_the_embeddings_belongs_to_the_directory(
  grow, grown, unfinished, corpus, settings, texts, tmp_path, finished
):
  directory = grown[0] if finished else unfinished
  changes = {
    "source": dataclasses.replace(corpus, max_characters=77),
    "tokenizer": train_sentencepiece(texts, str(tmp_path / "t.model"), vocab_size=300),
    "window_tokens": dataclasses.replace(settings.read, window_tokens=32),
    "sample": 0.5,
  }
  for name, value in changes.items():
    with pytest.raises(InputError, match=f"was made with {name} .*, asked for is"):
      grow(directory, **{"read" if name == "window_tokens" else name: value})


def test_another_encoder_is_refused(grow, grown, encoder, texts):
  try:
    with pytest.raises(InputError, match="was made with encoder .*, asked for is"):
      grow(grown[0], encoder=LsaEncoder(dim=7).fit(texts))
  finally:
    encoder.save(f"{grown[0]}/encoder")  # `grow` has saved the other one


def test_too_few_windows(grow, unfinished, settings, windows):
  with pytest.raises(InputError, match=f"{len(windows)} windows of 400 documents cannot fill the 6561 leaves"):
    grow(unfinished, tree=dataclasses.replace(settings.tree, depth=8))


def test_too_many_bad_records(grow, settings, texts, tmp_path):
  (tmp_path / "a.jsonl").write_text("\n".join([*(json.dumps({"text": t}) for t in texts), "nonsense"]))
  given = {
    "source": JsonlSource(pattern=str(tmp_path / "a.jsonl")),
    "tree": dataclasses.replace(settings.tree, depth=1),
  }
  with pytest.raises(InputError, match="1 of 401 records are malformed"):
    grow(tmp_path / "tree", **given)
  lenient = dataclasses.replace(settings.read, max_bad_share=0.01)
  assert grow(tmp_path / "tree", read=lenient, **given)[1].num_leaves == 3  # goes on where the other stopped


def test_nodes_without_examples_pass_on_their_centroid(grow, tmp_path, caplog):
  """Three different texts cannot fill sixteen leaves: the rest repeats, every path has an end, and that is said."""
  (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in ("river", "poet", "moon") * 6))
  source = JsonlSource(pattern=str(tmp_path / "a.jsonl"))
  directory, tree = grow(source=source, tree=TreeConfig(branching=4, depth=2, steps=1, batch_size=16))
  assert np.isfinite(tree.centroids[-1]).all()
  sizes = np.bincount(tree.assign(np.eye(8, dtype=np.float32)), minlength=16)
  assert level_report(sizes, 4)["empty"] >= 8
  small = [level["small_nodes"] for level in files.read_json(f"{directory}/report.json")["levels"]]
  (warning,) = [record.getMessage() for record in caplog.records if "fewer windows" in record.getMessage()]
  assert small[0] == 0 and warning.startswith(f"level 2: {small[1]} nodes hold fewer windows than their 4 children")
