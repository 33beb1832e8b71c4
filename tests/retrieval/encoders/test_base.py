"""The registry of encoders: an encoder from outside the package is bound, fitted, saved, loaded and used like any other."""

import collections
import json
import subprocess
import sys

import gin
import numpy as np
import pytest

from hiermem_jax import configuration
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.encoders import load_encoder
from hiermem_jax.retrieval.retriever import load_retriever

# What a user would write: counts of the letters that occur in the corpus, raised to a power, of unit norm.
_MODULE = """
import dataclasses

import numpy as np

from hiermem_jax.retrieval import storage
from hiermem_jax.retrieval.encoders import Encoder, EncoderConfig, register_encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class LetterEncoder(EncoderConfig):
  power: float = 1.0

  def fit(self, texts):
    return FittedLetterEncoder(self, sorted({letter for text in texts for letter in text}))


class FittedLetterEncoder(Encoder):
  kind = "letter_encoder:FittedLetterEncoder"

  def __init__(self, config, letters):
    self.config, self._letters = config, letters

  dim = property(lambda self: len(self._letters))
  fingerprint = property(lambda self: storage.digest(self._meta(), {}))

  def encode(self, texts):
    counts = np.array([[text.count(letter) for letter in self._letters] for text in texts], np.float32)
    counts = counts**self.config.power
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)

  def save(self, directory):
    storage.write_artifact(directory, "encoder", self._meta(), {})

  @classmethod
  def load(cls, directory):
    meta, _ = storage.read_artifact(directory, "encoder")
    return cls(LetterEncoder(**meta["config"]), meta["letters"])

  def _meta(self):
    return {"kind": self.kind, "config": dataclasses.asdict(self.config), "letters": self._letters}


register_encoder(LetterEncoder, FittedLetterEncoder)
"""
_GIN = """
import letter_encoder
JsonlSource.pattern = '{folder}/corpus.jsonl'
cluster.corpus = @JsonlSource()
cluster.tokenizer_vocab_size = 300
cluster.encoder = @LetterEncoder()
LetterEncoder.power = {power}
TreeConfig.branching = 2
TreeConfig.depth = 2
BeamConfig.options = ('--direct_running_mode=in_memory', '--direct_num_workers=1')
"""


def test_an_encoder_of_ones_own(tmp_path, monkeypatch):
  (tmp_path / "letter_encoder.py").write_text(_MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  rng = np.random.default_rng(0)
  texts = ["".join(rng.choice(list(letters), 40)) for letters in ("abcd", "wxyz") for _ in range(30)]
  (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  (tmp_path / "run.gin").write_text(_GIN.format(folder=tmp_path, power=0.5))
  configuration.load([str(tmp_path / "run.gin")], [])
  configuration.call("cluster", run_dir=str(tmp_path / "run"))

  retriever = load_retriever(str(tmp_path / "run" / "tree"))
  top = retriever.tree.ancestors(retriever.route(texts))[:, 0]
  assert len(set(top[:30])) == len(set(top[30:])) == 1 and top[0] != top[-1]
  counts = collections.Counter(texts[0])
  expected = np.array([counts[letter] for letter in "abcdwxyz"]) ** 0.5
  np.testing.assert_allclose(retriever.encoder.encode(texts[:1])[0], expected / np.linalg.norm(expected), atol=1e-6)

  # Another process, which has not imported the module, finds the class by what is saved.
  script = f"from hiermem_jax.retrieval.encoders import load_encoder; print(load_encoder({str(tmp_path)!r} + '/run/tree/encoder').fingerprint)"  # noqa: E501
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
  assert done.stdout.strip() == retriever.encoder.fingerprint

  configuration.load([str(tmp_path / "run.gin")], ["LetterEncoder.power = 'a'"])
  with pytest.raises(InputError, match=r"LetterEncoder\.power = 'a': must be float"):
    configuration.call("cluster", run_dir=str(tmp_path / "run"))
  configuration.load([str(tmp_path / "run.gin")], ["LetterEncoder.power = 2.0"])
  with pytest.raises(InputError, match=r"holds LetterEncoder\(power=0.5\), asked for is LetterEncoder\(power=2.0\)"):
    configuration.call("cluster", run_dir=str(tmp_path / "run"))
  configuration.load([str(tmp_path / "run.gin")], ["cluster.encoder = @LetterEncoder"])
  with pytest.raises(InputError, match=r"write @LetterEncoder\(\) to construct one"):
    configuration.call("cluster", run_dir=str(tmp_path / "run"))
  gin.clear_config()


@pytest.mark.parametrize(
  "kind, message",
  [
    ("oracle", "has kind 'oracle': known are 'lsa', 'sentence_transformer'"),
    (None, "has kind None"),
    ("no_such_module:Encoder", "No module named 'no_such_module'; install its package or add its folder to PYTHONPATH"),
    ("json:Encoder", "has no attribute 'Encoder'"),
    ("json:JSONDecoder", "has kind 'json:JSONDecoder': known are"),
  ],
)
def test_unknown_kinds(tmp_path, kind, message):
  (tmp_path / "encoder.json").write_text(json.dumps({"format": 1, "digest": "", "kind": kind}))
  with pytest.raises(InputError, match=message):
    load_encoder(str(tmp_path))


def test_no_encoder(tmp_path):
  with pytest.raises(InputError, match=r"no encoder\.json in .*nowhere"):
    load_encoder(str(tmp_path / "nowhere"))
