"""A toy run with tokenizer, tree and checkpoint, for tests of whole evaluations."""

import json

import jax
import numpy as np
import pytest

from hiermem_jax.data.text.tokenizer import train_sentencepiece
from hiermem_jax.models import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.bank import table_shapes
from hiermem_jax.parallel import make_mesh
from hiermem_jax.retrieval.build import TreeConfig, build_tree
from hiermem_jax.retrieval.encoders import LsaEncoder
from hiermem_jax.retrieval.retriever import save_retriever
from hiermem_jax.training.checkpoint import CheckpointStore

ANIMALS = ("owl", "fox", "cat", "dog", "elk", "bee", "ant", "hen", "pig", "ram", "yak", "cod")
FOODS = ("plum", "corn", "rice", "kale", "figs", "nuts", "eggs", "hay", "moss", "bran", "leek", "peas")


def _write_jsonl(path, records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return str(path)


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory, random_anchor):
  """A run directory with a model of random numbers: its answers are arbitrary and not all alike."""
  run_dir = tmp_path_factory.mktemp("toy_run")
  rng = np.random.default_rng(0)
  texts = [f"The {a} likes {b}. Ask the {a} for {c}." for a in ANIMALS for b, c in zip(FOODS, rng.permutation(FOODS))]
  tokenizer = train_sentencepiece(texts, str(run_dir / "tokenizer.model"), vocab_size=360)
  encoder = LsaEncoder(dim=8).fit(texts)
  embeddings = encoder.encode(texts)
  tree = build_tree(embeddings, config=TreeConfig(branching=2, depth=2), encoder_fingerprint=encoder.fingerprint)
  save_retriever(str(run_dir / "tree"), encoder, tree)
  anchor = AnchorConfig(
    num_layers=2, width=16, num_heads=2, head_dim=8, mlp_width=24, vocab_size=tokenizer.vocab_size, dtype="float32"
  )
  memory = MemoryConfig(rows=(3, 2), branching=2)
  bank = {
    name: (0.5 * rng.standard_normal(shape)).astype(np.float32)
    for name, shape in table_shapes(ModelConfig(anchor=anchor, memory=memory)).items()
  }
  params = jax.tree.map(jax.numpy.asarray, {"anchor": random_anchor(anchor), "bank": bank})
  metadata = {"tree_fingerprint": tree.fingerprint, "tokenizer_fingerprint": tokenizer.fingerprint}
  for name, held, config in (("model", params, memory), ("plain", {"anchor": params["anchor"]}, None)):
    store = CheckpointStore(str(run_dir / name))
    store.save_model(7, held, ModelConfig(anchor=anchor, memory=config).to_json() | metadata | {"step": 7})
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
  _write_jsonl(
    run_dir / "nq_open_dev.jsonl", [{"question": f"Who likes {f}?", "answer": ["owl", "the"]} for f in FOODS]
  )
  _write_jsonl(run_dir / "mine.jsonl", [{"context": f"The {a} likes", "continuation": "corn"} for a in ANIMALS])
  (run_dir / "elements.csv").write_text(
    "atomic_number,name,symbol\n" + "".join(f"{i},{a},X\n" for i, a in enumerate(ANIMALS, 1))
  )
  _write_jsonl(run_dir / "corpus.jsonl", [{"text": " ".join([a] * i)} for i, a in enumerate(ANIMALS)])
  _write_jsonl(run_dir / "articles.jsonl", [{"text": text} for text in texts[:9]])
  return run_dir


@pytest.fixture(scope="session")
def mesh():
  return make_mesh(devices=jax.devices()[:1])
