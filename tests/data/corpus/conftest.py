"""A corpus of four topics in four files, its tokenizer, its tree and its packed dataset: made once for the whole room."""

import dataclasses
import gzip
import json
import types

import numpy as np
import pytest

from hiermem_jax.data.corpus.cluster import cluster_corpus
from hiermem_jax.data.corpus.config import PackConfig, ReadConfig
from hiermem_jax.data.corpus.prepare import prepare
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.data.text.tokenizer import train_sentencepiece
from hiermem_jax.data.text.windows import windows_of
from hiermem_jax.retrieval.build import TreeConfig
from hiermem_jax.retrieval.encoders import LsaEncoder

_TOPICS = ["river valley basin delta", "poet verse sonnet rhyme", "planet orbit moon comet", "metal ore alloy smelter"]


@pytest.fixture(scope="session")
def settings():
  """Settings of all fixtures. `tree` has 3 x 3 leaves, and its k-means does not see all windows."""
  return types.SimpleNamespace(
    tree=TreeConfig(branching=3, depth=2, steps=3, batch_size=40, seed=4),
    read=ReadConfig(window_tokens=16),
    pack=PackConfig(length=24, num_shards=3, seed=5),
    beam=BeamConfig(options=("--direct_num_workers=1", "--direct_running_mode=in_memory")),
  )


@pytest.fixture(scope="session")
def texts():
  rng = np.random.default_rng(0)
  return [" ".join(rng.choice(_TOPICS[i % 4].split(), rng.integers(1, 40))) + f" n{i % 50}" for i in range(400)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, texts):
  folder = tmp_path_factory.mktemp("corpus")
  for i in range(4):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[100 * i : 100 * (i + 1)])
    (folder / f"{i}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
  return JsonlSource(pattern=str(folder / "*.jsonl.gz"))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, texts):
  return train_sentencepiece(texts, str(tmp_path_factory.mktemp("tokenizer") / "t.model"), vocab_size=320)


@pytest.fixture(scope="session")
def windows(texts, tokenizer, settings):
  """All windows of the corpus, in order."""
  return [w for document in windows_of(texts, tokenizer, settings.read.window_tokens) for w in document]


@pytest.fixture(scope="session")
def encoder(texts):
  return LsaEncoder(dim=8).fit(texts)


@pytest.fixture(scope="session")
def grow(corpus, tokenizer, encoder, settings, tmp_path_factory):
  """A function that clusters the corpus; keywords change what it is given."""

  def run(directory=None, **changes):
    directory = str(directory or tmp_path_factory.mktemp("tree") / "tree")
    given = {"source": corpus, "tokenizer": tokenizer, "encoder": encoder, "tree": settings.tree}
    given |= {"read": settings.read, "beam_config": settings.beam} | changes
    given["encoder"].save(f"{directory}/encoder")
    return directory, cluster_corpus(directory=directory, **given)

  return run


@pytest.fixture(scope="session")
def grown(grow):
  """Directory and tree. Tests do not change the directory."""
  return grow()


@pytest.fixture(scope="session")
def build(corpus, tokenizer, grown, settings, tmp_path_factory):
  """A function that packs the corpus; keywords change what it is given, or fields of `settings.pack`."""

  def run(directory=None, **changes):
    directory = str(directory or tmp_path_factory.mktemp("packed") / "set")
    given = {"source": corpus, "tokenizer": tokenizer, "tree": grown[0], "read": settings.read}
    given["beam_config"] = settings.beam
    given |= {name: changes.pop(name) for name in list(changes) if name in given}
    return prepare(directory=directory, pack=dataclasses.replace(settings.pack, **changes), **given)

  return run


@pytest.fixture(scope="session")
def built(build):
  """The packed dataset. Tests do not change its directory."""
  return build()
