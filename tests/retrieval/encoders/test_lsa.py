"""The LSA encoder: its contract, its persistence, and whether it brings questions to their documents."""

import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.encoders import FittedLsaEncoder, LsaEncoder, load_encoder

FILLER = (
  "The record of this {} was kept by the office for many years and it is said that the people who "
  "looked after it wrote about it in the books of the time. In the years after that it was known to many. "
)
TOPICS = {
  "metal": ["atomic", "number", "metal", "ore", "alloy", "melting", "furnace", "element"],
  "river": ["river", "valley", "flows", "mouth", "tributary", "basin", "delta", "flood"],
  "poet": ["poet", "verse", "wrote", "sonnet", "rhyme", "stanza", "poem", "ballad"],
  "planet": ["planet", "orbit", "moon", "star", "telescope", "comet", "rings", "gravity"],
}
ENTITIES_PER_TOPIC = 20


def _corpus():
  """80 documents of about sixty words, each about an invented entity of one of four topics."""
  rng = np.random.default_rng(0)
  texts, topics, names = [], [], []
  for topic, words in TOPICS.items():
    for i in range(ENTITIES_PER_TOPIC):
      name = f"{topic[:2].title()}{''.join(rng.choice(list('aeioulmnrst'), 6))}{i}"
      facts = " ".join(f"The {rng.choice(words)} and the {rng.choice(words)} of {name}." for _ in range(4))
      texts.append(f"{name} is a {topic}. {FILLER.format(topic)} {facts}")
      topics.append(topic)
      names.append(name)
  return texts, np.array(topics), names


@pytest.fixture(scope="module")
def corpus():
  return _corpus()


@pytest.fixture(scope="module")
def encoder(corpus):
  return LsaEncoder(dim=32, num_features=2**14).fit(corpus[0])


def test_rows_are_float32_unit_vectors(encoder, corpus):
  embeddings = encoder.encode([*corpus[0], "", "zzzz qqqq", "the of is"])
  assert embeddings.shape == (len(corpus[0]) + 3, 32) and embeddings.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)
  for row in embeddings[-3:]:  # nothing known in them
    np.testing.assert_array_equal(row, np.eye(32, dtype=np.float32)[0])


def test_agrees_with_scikit_learns_exact_decomposition(corpus):
  from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

  hasher = HashingVectorizer(n_features=2**14, stop_words="english", alternate_sign=False, norm=None)
  weighted = TfidfTransformer(sublinear_tf=True).fit_transform(hasher.transform(corpus[0])).toarray()
  # At full rank nothing is cut off, and cosines are those of the TF-IDF vectors themselves.
  full = LsaEncoder(dim=80, num_features=2**14).fit(corpus[0]).encode(corpus[0])
  np.testing.assert_allclose(full @ full.T, weighted @ weighted.T, atol=1e-3)
  # Below it, the directions kept hold nearly all that the best ones could (Eckart-Young).
  cut = LsaEncoder(dim=32, num_features=2**14).fit(corpus[0])
  np.testing.assert_allclose(cut.components @ cut.components.T, np.eye(32), atol=1e-4)
  kept = ((weighted[:, cut.features] @ cut.components.T) ** 2).sum()
  best = (np.linalg.svd(weighted, compute_uv=False)[:32] ** 2).sum()
  assert 0.98 * best < kept < 1.0001 * best


def test_a_question_is_nearest_to_its_topic(encoder, corpus):
  texts, topics, names = corpus
  documents = encoder.encode(texts)
  centers = np.stack([documents[topics == topic].mean(0) for topic in TOPICS])
  templates = {
    "metal": "The atomic number of the metal {} is",
    "river": "The valley through which the river {} flows is called",
    "poet": "The first sonnet that the poet {} wrote is about",
    "planet": "The largest moon of the planet {} has the name",
  }
  questions = encoder.encode([templates[t].format(n) for t, n in zip(topics, names)])
  distances = ((questions[:, None] - centers) ** 2).sum(-1)
  assert (np.array(list(TOPICS))[distances.argmin(1)] == topics).mean() == 1.0


def test_a_question_is_nearest_to_the_documents_of_its_entity():
  texts, _, names = _corpus()
  encoder = LsaEncoder(dim=80, num_features=2**14).fit(texts)
  questions = encoder.encode([f"What is known about {name} today" for name in names])
  nearest = (questions @ encoder.encode(texts).T).argmax(1)
  assert (nearest == np.arange(len(names))).mean() > 0.95


def test_only_the_first_max_words_count(corpus):
  encoder = LsaEncoder(dim=16, num_features=2**14, max_words=10).fit(corpus[0])
  words = ["river", "valley", "delta", "metal", "poem", "moon", "orbit", "flood", "basin", "star"]
  short, long = encoder.encode([" ".join(words), " ".join(words + ["sonnet"] * 50)])
  np.testing.assert_array_equal(short, long)
  assert not np.allclose(*encoder.encode([" ".join(words), " ".join(["planet"] * 5 + words)]))


def test_word_counts_are_exact():
  counts = LsaEncoder(num_features=2**12).count_words(["ore ore metal", "", "the of"])  # the last are stop words
  assert counts.dtype == np.float32 and counts.shape == (3, 2**12)
  assert sorted(counts.toarray()[0][counts.toarray()[0] > 0]) == [1, 2]
  assert counts[1:].nnz == 0


def test_word_ngrams_see_word_order(corpus):
  pair = ["orbit moon river", "river moon orbit"]
  one = LsaEncoder(dim=16).fit([*corpus[0], *pair])
  two = LsaEncoder(dim=16, word_ngrams=2).fit([*corpus[0], *pair])
  np.testing.assert_allclose(*one.encode(pair), atol=1e-6)
  assert not np.allclose(*two.encode(pair), atol=1e-6)


def test_chunks_do_not_change_embeddings(encoder, corpus, monkeypatch):
  whole = encoder.encode(corpus[0])
  monkeypatch.setattr("hiermem_jax.retrieval.encoders.lsa._ENCODE_CHUNK", 7)
  np.testing.assert_allclose(encoder.encode(corpus[0]), whole, atol=1e-6)
  assert encoder.encode([]).shape == (0, 32)


def test_small_corpus_gives_its_rank_and_keeps_all_cosines(caplog):
  texts = ["red apple tree", "green apple", "green tree", "green tree"]
  encoder = LsaEncoder().fit(iter(texts))
  assert encoder.dim == 3  # two documents are equal
  from sklearn.feature_extraction.text import TfidfVectorizer

  exact = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
  ours = encoder.encode(texts)
  np.testing.assert_allclose(ours @ ours.T, (exact @ exact.T).toarray(), atol=1e-5)


def test_same_input_same_fingerprint_and_any_change_another(corpus):
  texts = corpus[0]
  base = LsaEncoder(dim=16, num_features=2**14)
  fingerprint = base.fit(texts).fingerprint
  assert base.fit(iter(texts)).fingerprint == fingerprint
  assert len(fingerprint) == 16
  others = [
    base.fit(texts[:-1]),
    LsaEncoder(dim=15, num_features=2**14).fit(texts),
    LsaEncoder(dim=16, num_features=2**13).fit(texts),
    LsaEncoder(dim=16, num_features=2**14, max_words=255).fit(texts),
  ]
  assert len({fingerprint, *(other.fingerprint for other in others)}) == 5


def test_save_and_load(encoder, corpus, tmp_path):
  encoder.save(str(tmp_path))
  loaded = load_encoder(str(tmp_path))
  assert isinstance(loaded, FittedLsaEncoder)
  assert loaded.config == encoder.config
  assert loaded.fingerprint == encoder.fingerprint
  np.testing.assert_array_equal(loaded.encode(corpus[0]), encoder.encode(corpus[0]))


def test_texts_without_words_are_an_input_error():
  for texts in ([], [""], ["the of", "..."]):
    with pytest.raises(InputError, match="no words"):
      LsaEncoder().fit(texts)


@pytest.mark.parametrize("name", ["dim", "num_features", "word_ngrams", "max_words"])
def test_settings_out_of_range(name):
  with pytest.raises(InputError, match=name):
    LsaEncoder(**{name: 0})
