"""The BERT sentence encoder against transformers in torch, on a small model with random weights."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file, save_file

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.encoders import Encoder, EncoderConfig, SentenceTransformer, load_encoder
from hiermem_jax.retrieval.encoders.bert import BertConfig, BertEncoder
from hiermem_jax.retrieval.encoders.model_directory import FILES

WORDS = [f"w{i}" for i in range(60)]
POSITIONS = 96
MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
CLS = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}


def make_tokenizer():
  vocabulary = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
  tokenizer.enable_padding()  # as published models have it; the encoder must not mind
  tokenizer.enable_truncation(128)
  return tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """Directory of a sentence-transformers model: 2 layers of width 32, mean pooling."""
  directory = tmp_path_factory.mktemp("model")
  torch.manual_seed(0)
  config = transformers.BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=POSITIONS, initializer_range=0.4,
  )  # fmt: skip
  transformers.BertModel(config).save_pretrained(directory)
  fields = json.loads((directory / "config.json").read_text())
  (directory / "config.json").write_text(json.dumps({"position_embedding_type": "absolute"} | fields))
  make_tokenizer().save(str(directory / "tokenizer.json"))
  (directory / "1_Pooling").mkdir()
  (directory / "1_Pooling" / "config.json").write_text(json.dumps(MEAN))
  kinds = [f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Normalize")]
  (directory / "modules.json").write_text(json.dumps([{"type": kind} for kind in kinds]))
  return str(directory)


@pytest.fixture
def copy(model, tmp_path):
  """A copy that a test may damage."""
  return pathlib.Path(shutil.copytree(model, tmp_path / "copy"))


def make_texts(count=40, seed=0):
  rng = np.random.default_rng(seed)
  return [" ".join(rng.choice(WORDS, rng.integers(1, 90))) for _ in range(count)]


def reference(directory, texts, pooling="mean", max_word_pieces=80):
  """Each text alone, so without padding, through torch."""
  bert = transformers.BertModel.from_pretrained(directory).eval()
  tokenizer = make_tokenizer()
  tokenizer.no_padding()
  tokenizer.enable_truncation(max_word_pieces)
  vectors = []
  for text in texts:
    with torch.inference_mode():
      hidden = bert(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
    pooled = hidden.mean(0) if pooling == "mean" else hidden[0]
    vectors.append((pooled / pooled.norm()).numpy())
  return np.stack(vectors)


def encoder(directory, **settings):
  return SentenceTransformer(model=str(directory), **{"max_word_pieces": 80, "batch_word_pieces": 512} | settings).fit(
    []
  )


def test_vectors_are_those_of_transformers(model):
  texts = [*make_texts(), "", "w1 unknown w2"]
  ours = encoder(model).encode(texts)
  assert ours.dtype == np.float32 and ours.shape == (42, 32)
  np.testing.assert_allclose(ours, reference(model, texts), atol=2e-6)
  np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


def test_cls_pooling(copy):
  (copy / "1_Pooling" / "config.json").write_text(json.dumps(CLS))
  texts = make_texts(10)
  np.testing.assert_allclose(encoder(copy).encode(texts), reference(copy, texts, "cls"), atol=2e-6)


def test_names_of_a_model_with_a_head(copy):
  tensors = load_file(copy / "model.safetensors")
  expected = encoder(copy).encode(make_texts(5))
  save_file({f"bert.{name}": value for name, value in tensors.items()}, copy / "model.safetensors")
  np.testing.assert_array_equal(encoder(copy).encode(make_texts(5)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision(copy, dtype):
  tensors = safetensors.torch.load_file(copy / "model.safetensors")
  rounded = {name: value.to(dtype) for name, value in tensors.items()}
  safetensors.torch.save_file({k: v.float() for k, v in rounded.items()}, copy / "model.safetensors")
  expected = encoder(copy).encode(make_texts(5))
  safetensors.torch.save_file(rounded, copy / "model.safetensors")
  np.testing.assert_array_equal(encoder(copy).encode(make_texts(5)), expected)


def test_bfloat16_is_close(model):
  texts = make_texts()
  errors = np.linalg.norm(encoder(model, dtype="bfloat16").encode(texts) - reference(model, texts), axis=1)
  # bfloat16 rounds by up to 2^-9 of a value; two layers with four rounded products each stay below a few of these.
  assert 2**-10 < errors.mean() < 4 * 2**-9 and errors.max() < 8 * 2**-9


def test_bfloat16_is_not_for_softmax_and_normalisation():
  config = BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=8, type_vocab_size=2, layer_norm_eps=1e-12,
  )  # fmt: skip
  bert, ids, mask = BertEncoder(config, jnp.bfloat16), np.zeros((2, 8), np.int32), np.ones((2, 8), bool)
  params = jax.eval_shape(bert.init, jax.random.key(0), ids, mask)
  text = str(jax.make_jaxpr(bert.apply)(params, ids, mask))
  assert set(re.findall(r":(\w+)\[[\d,]*\] = (exp|rsqrt)\b", text)) == {("f32", "exp"), ("f32", "rsqrt")}
  assert "bf16" in text


def test_what_is_behind_the_truncation_does_not_matter(model):
  texts = make_texts(10)
  short = encoder(model, max_word_pieces=20)
  np.testing.assert_allclose(short.encode(texts), reference(model, texts, max_word_pieces=20), atol=2e-6)
  cut = [" ".join(text.split()[:18]) for text in texts]  # [CLS] and [SEP] count
  np.testing.assert_array_equal(short.encode(texts), short.encode(cut))


def test_company_does_not_matter(model):
  texts = make_texts(30)
  ours = encoder(model)
  together = ours.encode(texts)
  np.testing.assert_array_equal(together, ours.encode(texts))
  alone = np.concatenate([ours.encode([text]) for text in texts])
  np.testing.assert_allclose(together, alone, atol=1e-6)


def test_order_and_company_in_chunks(model, monkeypatch):
  texts = make_texts(30)
  expected = encoder(model).encode(texts)
  monkeypatch.setattr("hiermem_jax.retrieval.encoders.sentence_transformer._CHUNK", 7)
  np.testing.assert_allclose(encoder(model).encode(texts), expected, atol=1e-6)


def test_batches_have_few_shapes_and_constant_work(model):
  rows, shapes = [], set()
  for batch, ids, sizes in encoder(model).batches(make_texts(200)):
    assert len(ids) == len(sizes) and sizes.max() <= ids.shape[1]
    assert not ids[np.arange(ids.shape[1]) >= sizes[:, None]].any()
    rows += list(batch)
    shapes.add(ids.shape)
  assert sorted(rows) == list(range(200))
  assert shapes == {(16, 32), (8, 64), (5, 96)}


def test_strange_texts(model):
  vectors = encoder(model).encode(["", "   ", "\ud800 w1", "w1 " * 10_000])
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
  np.testing.assert_array_equal(vectors[0], vectors[1])
  assert encoder(model).encode([]).shape == (0, 32)


def test_texts_are_not_read_when_fitting(model):
  def explode():
    raise AssertionError("read")
    yield ""

  config = SentenceTransformer(model=model, max_word_pieces=80)
  assert isinstance(config, EncoderConfig) and isinstance(config.fit(explode()), Encoder)


def test_save_and_load(model, tmp_path):
  first = encoder(model)
  first.save(str(tmp_path / "encoder"))
  again = load_encoder(str(tmp_path / "encoder"))
  assert again.fingerprint == first.fingerprint and again.config == first.config
  np.testing.assert_array_equal(again.encode(make_texts(3)), first.encode(make_texts(3)))
  transformers.BertModel.from_pretrained(tmp_path / "encoder")


def test_fingerprint_says_which_vectors(model, copy):
  first = encoder(model).fingerprint
  assert len(first) == 16
  assert encoder(copy, dtype="bfloat16", batch_word_pieces=100).fingerprint == first
  assert encoder(model, max_word_pieces=79).fingerprint != first
  tensors = load_file(copy / "model.safetensors")
  tensors["embeddings.LayerNorm.bias"] = tensors["embeddings.LayerNorm.bias"] + 1e-3
  save_file(tensors, copy / "model.safetensors")
  assert encoder(copy).fingerprint != first


@pytest.mark.parametrize("name", FILES)
def test_damage_to_a_saved_encoder_is_found(model, tmp_path, name):
  encoder(model).save(str(tmp_path))
  content = (tmp_path / name).read_bytes()
  for damaged in (b"", content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1])):
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(InputError, match=rf"{name} is damaged \(another sha256\)"):
      load_encoder(str(tmp_path))
  (tmp_path / name).unlink()
  with pytest.raises(InputError, match=rf"{name}: No such file"):
    load_encoder(str(tmp_path))


@pytest.mark.parametrize(
  "name, change, message",
  [
    ("config.json", {"model_type": "roberta"}, "model_type is 'roberta', only 'bert'"),
    ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ("config.json", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ("config.json", {"num_attention_heads": 5}, "not a multiple of its attention heads"),
    ("config.json", {"num_hidden_layers": 3}, r"tensor encoder\.layer\.2\..* is missing"),
    ("config.json", {"intermediate_size": 65}, "has shape .* config.json says"),
    ("config.json", {"vocab_size": 65}, "tensor embeddings.word_embeddings.weight has shape"),
    ("config.json", {"hidden_size": None}, "hidden_size is None: give a positive int"),
    ("config.json", {"num_hidden_layers": "2"}, "num_hidden_layers is '2': give a positive int"),
    ("config.json", {"num_attention_heads": 0}, "num_attention_heads is 0: give a positive int"),
    ("config.json", {"layer_norm_eps": "1e-12"}, "layer_norm_eps is '1e-12': give a positive float"),
    ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "and pooling_mode_mean_tokens is not supported"),
    ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "no pooling is not supported"),
  ],
)
def test_models_of_another_kind(copy, name, change, message):
  fields = json.loads((copy / name).read_text()) | change
  (copy / name).write_text(json.dumps(fields))
  with pytest.raises(InputError, match=message) as caught:
    encoder(copy)
  assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model(copy):
  other = make_tokenizer()
  other.add_tokens(["one more"])
  other.save(str(copy / "tokenizer.json"))
  with pytest.raises(InputError, match="tokenizer.json has 65 word pieces, config.json says 64"):
    encoder(copy)
  fields = json.loads((copy / "tokenizer.json").read_text()) | {"added_tokens": []}
  fields["model"]["vocab"]["w0"] = 70  # as many pieces as embeddings, but not their numbers
  (copy / "tokenizer.json").write_text(json.dumps(fields))
  with pytest.raises(InputError, match="tokenizer.json has 71 word pieces, config.json says 64"):
    encoder(copy)
  fields["post_processor"] = None
  (copy / "tokenizer.json").write_text(json.dumps(fields))
  with pytest.raises(InputError, match=r"tokenizer.json does not add \[CLS\] and \[SEP\]"):
    encoder(copy)


def test_a_module_that_would_be_left_out(copy):
  modules = json.loads((copy / "modules.json").read_text())
  (copy / "modules.json").write_text(json.dumps([*modules, {"type": "sentence_transformers.models.Dense"}]))
  with pytest.raises(InputError, match="module Dense is not supported"):
    encoder(copy)


@pytest.mark.parametrize(
  "name, content",
  [(name, "nonsense") for name in ("config.json", "tokenizer.json", "model.safetensors", "modules.json")]
  + [("config.json", "[]"), ("modules.json", '["Pooling"]'), ("modules.json", '{"type": "Pooling"}')],
)
def test_files_that_are_none(copy, name, content):
  (copy / name).write_text(content)
  with pytest.raises(InputError, match=rf"{name} is damaged"):
    encoder(copy)


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"dtype": "float16"}, "give one of auto, float32, bfloat16"),
    ({"max_word_pieces": 2}, "give at least 3"),
    ({"max_word_pieces": 97}, "97: .* has 96 positions"),
    ({"batch_word_pieces": 79}, "give at least 80"),
  ],
)
def test_settings_out_of_range(model, settings, message):
  with pytest.raises(InputError, match=message):
    encoder(model, **settings)


def test_a_hub_that_cannot_be_reached(monkeypatch):
  import huggingface_hub

  def fail(*arguments, **kwargs):
    raise ConnectionError("no route\nto host")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
  with pytest.raises(InputError, match=r"'someone/model': no such directory, .* \(no route\); give the path"):
    SentenceTransformer(model="someone/model").fit([])


def test_a_hub_id_is_fetched(model, monkeypatch):
  import huggingface_hub

  monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: model)
  fitted = SentenceTransformer(model="someone/model", max_word_pieces=80).fit([])
  assert fitted.fingerprint == encoder(model).fingerprint


@pytest.mark.slow
def test_eight_devices_give_the_vectors_of_one(model, tmp_path):
  code = (
    "import sys, jax, numpy as np\n"
    "from hiermem_jax.retrieval.encoders import SentenceTransformer\n"
    "encoder = SentenceTransformer(model=sys.argv[1], max_word_pieces=80, batch_word_pieces=512).fit([])\n"
    "assert jax.local_device_count() == 8\n"
    "np.save(sys.argv[2], encoder.encode([f'w{i} w{i + 1} w7' for i in range(50)] + ['w3 ' * 70]))\n"
  )
  env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
  subprocess.run([sys.executable, "-c", code, model, str(tmp_path / "v.npy")], env=env, check=True)
  texts = [f"w{i} w{i + 1} w7" for i in range(50)] + ["w3 " * 70]
  np.testing.assert_allclose(np.load(tmp_path / "v.npy"), encoder(model).encode(texts), atol=1e-6)
