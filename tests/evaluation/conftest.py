"""A toy run with tokenizer, tree, checkpoints, packed text and questions, for tests of whole evaluations."""

import json

import jax
import numpy as np
import pytest

from hiermem_jax.data.text.tokenizer import train_sentencepiece
from hiermem_jax.evaluation.config import ModelFiles, ScoringConfig
from hiermem_jax.evaluation.loading import load
from hiermem_jax.models.bank import table_shapes
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.parallel import make_mesh
from hiermem_jax.retrieval.build import TreeConfig, build_tree
from hiermem_jax.retrieval.encoders import LsaEncoder
from hiermem_jax.retrieval.retriever import save_retriever
from hiermem_jax.training.checkpoint import CheckpointStore

ANIMALS = ("owl", "fox", "cat", "dog", "elk", "bee", "ant", "hen", "pig", "ram", "yak", "cod")
FOODS = ("plum", "corn", "rice", "kale", "figs", "nuts", "eggs", "hay", "moss", "bran", "leek", "peas")
LENGTH = 48  # of the packed text


def _write_jsonl(path, records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _write_packed_text(write_packed, directory, texts, tokenizer, retriever_leaf, tree):
  """One document per sequence."""
  sequences = []
  for text, leaf in zip(texts, retriever_leaf):
    ids = [*tokenizer.encode(text), tokenizer.eot_id][:LENGTH]
    padded = np.pad(np.array(ids, np.int32), (0, LENGTH - len(ids)))
    sequences.append((int(leaf), padded, (np.arange(LENGTH) < len(ids)).astype(np.int32)))
  about = {"vocab_size": tokenizer.vocab_size, "eot_id": tokenizer.eot_id, "bos_id": tokenizer.bos_id}
  about |= {"tokenizer_fingerprint": tokenizer.fingerprint, "tree_fingerprint": tree.fingerprint}
  write_packed(str(directory), sequences, num_leaves=tree.num_leaves, **about)


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory, random_anchor, write_packed):
  """A run directory with a model of random numbers: its answers are arbitrary and not all alike.

  The embeddings are tied, and the line break is likely, so that some generated answers end before their time.
  """
  run_dir = tmp_path_factory.mktemp("toy_run")
  rng = np.random.default_rng(0)
  texts = [f"The {a} likes {b}. Ask the {a} for {c}." for a in ANIMALS for b, c in zip(FOODS, rng.permutation(FOODS))]
  tokenizer = train_sentencepiece(texts, str(run_dir / "tokenizer.model"), vocab_size=360)
  encoder = LsaEncoder(dim=8).fit(texts)
  embeddings = encoder.encode(texts)
  tree = build_tree(embeddings, config=TreeConfig(branching=2, depth=2), encoder_fingerprint=encoder.fingerprint)
  save_retriever(str(run_dir / "tree"), encoder, tree)
  leaf = tree.assign(embeddings)
  _write_packed_text(write_packed, run_dir / "packed/train", texts, tokenizer, leaf, tree)
  _write_packed_text(write_packed, run_dir / "packed/validation", texts[::16], tokenizer, leaf[::16], tree)
  size = {"num_layers": 2, "width": 16, "num_heads": 2, "head_dim": 8, "mlp_width": 24}
  anchor = AnchorConfig(vocab_size=tokenizer.vocab_size, dtype="float32", tied_embeddings=True, **size)
  config = ModelConfig(anchor=anchor, memory=MemoryConfig(rows=(3, 2), branching=2))
  bank = {name: (0.5 * rng.standard_normal(shape)).astype(np.float32) for name, shape in table_shapes(config).items()}
  params = {"anchor": random_anchor(anchor), "bank": bank}
  (line_break,) = tokenizer.encode("\n")
  params["anchor"]["embed"]["embedding"][line_break] *= 1.5
  params = jax.tree.map(jax.numpy.asarray, params)
  metadata = {"tree_fingerprint": tree.fingerprint, "tokenizer_fingerprint": tokenizer.fingerprint}
  plain = ModelConfig(anchor=anchor)
  for name, held, model in (("model", params, config), ("plain", {"anchor": params["anchor"]}, plain)):
    store = CheckpointStore(str(run_dir / name))
    store.save_model(7, held, model.to_json() | metadata | {"step": 7})
    store.close()
  questions = [
    {
      "query": f"Question: What does the {a} like?",
      "choices": [str(x) for x in rng.choice(FOODS, 4, replace=False)],
      "gold": int(rng.integers(4)),
    }
    for a in ANIMALS for _ in range(3)
  ]  # fmt: skip
  _write_jsonl(run_dir / "arc_easy.jsonl", questions)
  answers = [["owl", "the"], ["naïve yak", "yak"], ["the fox and the hen"]]
  _write_jsonl(
    run_dir / "nq_open_dev.jsonl",
    [{"question": f"Who likes {f}?", "answer": answers[i % 3]} for i, f in enumerate(FOODS)],
  )
  _write_jsonl(run_dir / "mine.jsonl", [{"context": f"The {a} likes", "continuation": "corn"} for a in ANIMALS])
  (run_dir / "elements.csv").write_text(
    "atomic_number,name,symbol\n" + "".join(f"{i},{a},X\n" for i, a in enumerate(ANIMALS, 1))
  )
  _write_jsonl(run_dir / "corpus.jsonl", [{"text": " ".join([a] * i)} for i, a in enumerate(ANIMALS)])
  _write_jsonl(run_dir / "articles.jsonl", [{"text": text} for text in texts[:9]])
  probes = [
    {"prompt": f"The {a} likes", "answer": f, "count": int(n), "paraphrase": f"What does the {other} like?"}
    for a, other, f, n in zip(ANIMALS, ANIMALS[::-1], FOODS, rng.integers(1, 40, len(ANIMALS)))
  ]
  _write_jsonl(run_dir / "probes.jsonl", probes)
  return run_dir


@pytest.fixture(scope="session")
def mesh():
  return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def loaded(toy_run, mesh):
  """The model with memory of the toy run."""
  return load(str(toy_run), ModelFiles(directory="model"), mesh=mesh)


@pytest.fixture(scope="session")
def in_modes(loaded):
  """The same in the modes of its memory, 16 sequences at once; shared, as most of a test's time is compilation."""
  return loaded.in_modes(ScoringConfig(batch_size=16))
