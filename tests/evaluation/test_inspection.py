"""`inspect` on the run of a tiny chain: its numbers against what the files of the run say."""

import json
import os
import pathlib

import numpy as np
import pytest

from hiermem_jax import configuration, saved_run
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.errors import InputError
from hiermem_jax.evaluation import inspection
from hiermem_jax.inspect import inspect
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.parallel import make_mesh
from hiermem_jax.retrieval.retriever import load_retriever
from hiermem_jax.training.checkpoint import load_model
from hiermem_jax.training.config import TrainingRun
from hiermem_jax.training.optimizer import OptimizerConfig

_CONFIG = """
train.dataset = 'packed/train'
train.directory = 'model'
train.steps = 20
train.batch_size = 18
train.optimizer = @OptimizerConfig()
train.model = @ModelConfig()
OptimizerConfig.peak_learning_rate = 1e-3
OptimizerConfig.final_learning_rate = 1e-4
OptimizerConfig.warmup_steps = 1
OptimizerConfig.weight_decay = 0.0
ModelConfig.anchor = @AnchorConfig()
ModelConfig.memory = @MemoryConfig()
MemoryConfig.rows = (3, 2)
MemoryConfig.branching = 2
AnchorConfig.num_layers = 2
AnchorConfig.width = 16
AnchorConfig.num_heads = 2
AnchorConfig.head_dim = 8
AnchorConfig.mlp_width = 24
AnchorConfig.vocab_size = 360
AnchorConfig.dtype = 'float32'
AnchorConfig.tied_embeddings = True
"""


def _files(directory):
  return {str(path): path.stat().st_mtime_ns for path in pathlib.Path(directory).rglob("*")}


@pytest.fixture(scope="module")
def run_dir(toy_run, tmp_path_factory):
  """The toy run beside a saved configuration, as `train` leaves it."""
  directory = tmp_path_factory.mktemp("inspected")
  for path in toy_run.iterdir():
    os.symlink(path, directory / path.name)
  path = directory / "source.gin"
  path.write_text(_CONFIG)
  configuration.load([str(path)], [])
  (directory / "config.gin").write_text(configuration.dry_run("train", run_dir=str(directory)))
  path.unlink()
  return directory


@pytest.fixture(scope="module")
def run(run_dir):
  return saved_run.find(str(run_dir))


@pytest.fixture
def show(run, capsys):
  def call(**asked):
    inspect(run=run, as_json=True, **asked)
    return json.loads(capsys.readouterr().out)

  return call


def test_a_saved_run_is_found_from_its_directory(run, run_dir):
  assert run.packed == str(run_dir / "packed/train") and run.model == str(run_dir / "model")
  assert run.tree == str(run_dir / "tree") and run.tokenizer == str(run_dir / "tokenizer.model")
  assert (run.training.steps, run.training.model.memory.rows) == (20, (3, 2))


def test_tree(show, run):
  about = show(tree=True)["tree"]
  leaves = PackedDataset(run.packed).leaves()
  assert (about["depth"], about["branching"], about["leaves"], about["unit"]) == (2, 2, 4, "sequences")
  for level, divisor in zip(about["levels"], (2, 1)):
    sizes = np.bincount(leaves // divisor, minlength=level["clusters"])
    assert (level["min"], level["max"], level["mean"]) == (sizes.min(), sizes.max(), sizes.mean())
    perplexity = np.prod([(len(leaves) / size) ** (size / len(leaves)) for size in sizes if size])
    assert level["balance"] == pytest.approx(perplexity / len(sizes))


def test_leaf(show, run):
  leaves = PackedDataset(run.packed).leaves()
  top, bottom = show(leaf="1.2")["leaf"]["levels"]
  assert (top["level"], top["cluster"], top["size"]) == (1, 1, int((leaves // 2 == 1).sum()))
  assert (bottom["level"], bottom["cluster"], bottom["size"]) == (2, 2, int((leaves == 2).sum()))
  assert bottom["titles"] and all(title.startswith("The ") for title in bottom["titles"])
  bank = load_model(run.model, make_mesh()).params["bank"]
  norms = np.linalg.norm(np.asarray(bank["level_2"]), axis=1)
  assert bottom["norm"] == pytest.approx(norms[2], rel=1e-5)
  assert bottom["mean_norm"] == pytest.approx(norms[:4].mean(), rel=1e-5)
  assert bottom["generic_norm"] == pytest.approx(norms[4], rel=1e-5)
  (only,) = show(leaf="1")["leaf"]["levels"]
  assert only == top


@pytest.mark.parametrize(
  "path, message",
  [
    ("0.2", "--leaf=0.2: cluster 2 of level 2 is not below 0; write 1.2"),
    ("2", "--leaf=2: level 1 has the clusters 0 to 1; choose one"),
    ("1.2.3", "--leaf=1.2.3: give the numbers of 1 to 2 clusters with points, level 1 first"),
    ("x", "--leaf=x: give the numbers of 1 to 2 clusters with points, level 1 first"),
  ],
)
def test_a_path_that_is_none(run, path, message):
  with pytest.raises(InputError) as error:
    inspect(run=run, leaf=path)
  assert str(error.value) == message


def test_text(show, run):
  about, retriever = show(text="The owl likes plum.")["text"], load_retriever(run.tree)
  leaf = int(retriever.route(["The owl likes plum."])[0])
  assert about["path"] == f"{leaf // 2}.{leaf}"
  embedding = retriever.encoder.encode(["The owl likes plum."])[0].astype(np.float64)
  for level, centroids in zip(about["levels"], retriever.tree.centroids):
    sibling = level["cluster"] ^ 1  # of two ways
    own, other = (np.sqrt(((centroids[number] - embedding) ** 2).sum()) for number in (level["cluster"], sibling))
    assert level["distance"] == pytest.approx(own) and own <= other
    assert level["runners_up"] == [{"cluster": sibling, "distance": pytest.approx(other)}]
    assert level["margin"] == pytest.approx(1 - own / other)
  distances = np.sqrt(((retriever.tree.centroids[-1] - embedding) ** 2).sum(axis=1))
  others = np.delete(distances, leaf)
  assert about["other_leaf"]["distance"] == pytest.approx(others.min())
  assert about["margin"] == pytest.approx(1 - distances[leaf] / others.min())


def test_token_budget(show, run):
  about, dataset = show(token_budget=True)["token_budget"], PackedDataset(run.packed)
  tokens = [0] * 4
  for number in range(len(dataset)):
    (leaf,), _, segments = dataset.read([number])
    tokens[leaf] += int((segments > 0).sum())
  assert about["leaf_tokens"] == tokens and about["tokens"] == dataset.manifest.num_tokens == sum(tokens)
  assert about["passes"] == pytest.approx(20 * 18 / len(dataset)) and about["own_share"] == pytest.approx(16 / 17)
  first, second = about["levels"]
  assert (second["min"], second["max"], second["median"]) == (min(tokens), max(tokens), np.median(tokens))
  assert first["max"] == max(tokens[0] + tokens[1], tokens[2] + tokens[3])
  assert second["block_params"] == 2 * 2 * 3 * 16  # units, layers, vectors of the width
  assert second["trained_tokens_median"] == pytest.approx(second["median"] * about["passes"] * 16 / 17)


def test_empty_and_starved_leaves_are_counted(tmp_path, run, write_packed):
  tree = load_retriever(run.tree).tree
  one, full = np.array([1, 0, 0, 0]), np.ones(4, np.int64)
  sequences = [(0, full, one), *[(1, full, full)] * 20, *[(3, full, full)] * 19]
  write_packed(str(tmp_path), sequences, num_leaves=4, tree_fingerprint=tree.fingerprint)
  about = inspection.token_budget(inspection.SavedRun(directory="", tree=run.tree, packed=str(tmp_path)), tree)
  assert about["leaf_tokens"] == [1, 80, 0, 76]
  assert (about["levels"][1]["empty"], about["levels"][1]["starved"]) == (1, 2)


def test_a_part_of_a_bank_is_about_its_cluster(run):
  """Of a job that trains the blocks below one cluster of level 1."""
  size = {"num_layers": 2, "width": 16, "num_heads": 2, "head_dim": 8, "mlp_width": 24}
  anchor = AnchorConfig(vocab_size=360, dtype="float32", **size)
  model = ModelConfig(anchor=anchor, memory=MemoryConfig(rows=(3, 2), branching=2, part=1))
  optimizer = OptimizerConfig(peak_learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=1, weight_decay=0.0)
  training = TrainingRun(model=model, optimizer=optimizer, steps=3, batch_size=4)
  part = inspection.SavedRun(directory="", tree=run.tree, packed=run.packed, training=training)
  about = inspection.token_budget(part, load_retriever(run.tree).tree)
  leaves = PackedDataset(run.packed).leaves()
  assert about["sequences"] == int((leaves >= 2).sum()) and about["leaf_tokens"][:2] == [0, 0]
  assert [level["clusters"] for level in about["levels"]] == [1, 2]
  assert about["passes"] == pytest.approx(12 / about["sequences"])


def test_pages_name_the_numbers(run, capsys):
  inspect(run=run, tree=True, leaf="1.2", text="The owl", token_budget=True)
  page = capsys.readouterr().out
  assert "2 levels, 2 ways, 4 leaves" in page and "level 2, cluster 2:" in page and "margin" in page
  assert "passes over it 2.50 times; 94.1% of the sequences train their own path" in page


def test_nothing_is_written(run_dir, run, capsys):
  before = _files(run_dir)
  inspect(run=run, tree=True, leaf="1.2", text="The owl", token_budget=True)
  assert _files(run_dir) == before


def test_a_directory_that_is_no_run(tmp_path):
  missing = tmp_path / "mistyped"
  with pytest.raises(InputError, match="no such directory; name the directory of a run"):
    saved_run.find(str(missing))
  assert not missing.exists()
  with pytest.raises(InputError, match="no config.gin and no VERB.config.gin there"):
    saved_run.find(str(tmp_path))


def test_nothing_asked_for(run):
  with pytest.raises(InputError, match="nothing to show; give --tree, --leaf=PATH, --text=TEXT or --token_budget"):
    inspect(run=run)


def test_documents_of_a_clustered_corpus_keep_their_numbers_behind_malformed_records(tmp_path, run):
  """The embeddings of the third line of a file whose second line is broken are those of the second good document."""
  from hiermem_jax.data.corpus.keys import window_keys  # noqa: PLC0415

  retriever = load_retriever(run.tree)
  texts = ["The owl likes plum.", "The yak likes peas."]
  lines = [json.dumps({"text": texts[0]}), "{broken", json.dumps({"text": texts[1], "title": "Yaks"})]
  (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
  (tmp_path / "embeddings").mkdir()
  embeddings = retriever.encoder.encode(texts)
  keys = window_keys(0, np.array([0, 2]))
  np.savez(tmp_path / "embeddings/part-00000.npz", keys=keys[::-1], embeddings=embeddings[::-1])
  source = JsonlSource(pattern=str(tmp_path / "corpus.jsonl"))
  titles, found, arrays, leaf = inspection.clustered_documents(str(tmp_path), source, retriever.tree)
  assert titles == ["The owl likes plum.", "Yaks"] and found == texts
  np.testing.assert_array_equal(arrays, embeddings)
  np.testing.assert_array_equal(leaf, retriever.route(texts))
