"""From documents to the packed dataset: what is in it, that it does not depend on how it was made, what is refused."""

import collections
import dataclasses
import gzip
import json
import logging
import pathlib

import numpy as np
import pytest

from hiermem_jax.data.corpus import pack as pack_corpus
from hiermem_jax.data.corpus import prepare as prepare_lib
from hiermem_jax.data.corpus.config import PackConfig, ReadConfig
from hiermem_jax.data.corpus.prepare import prepare
from hiermem_jax.data.corpus.runner import BeamConfig
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.data.text.tokenizer import train_sentencepiece
from hiermem_jax.data.text.windows import windows_of
from hiermem_jax.errors import InputError
from hiermem_jax.retrieval.build import TreeConfig, build_tree
from hiermem_jax.retrieval.encoders import LsaEncoder
from hiermem_jax.retrieval.retriever import load_retriever

LENGTH, WINDOW = 24, 16
PACK, READ = PackConfig(length=LENGTH, num_shards=3, seed=5), ReadConfig(window_tokens=WINDOW)
HERE = BeamConfig(options=("--direct_num_workers=1", "--direct_running_mode=in_memory"))
TWO = BeamConfig(options=("--direct_num_workers=2", "--direct_running_mode=multi_processing"))
WORDS = ["apple", "boat", "cat", "dune", "elm", "fog", "gate", "hut"]


def make_texts(count, seed=0):
  rng = np.random.default_rng(seed)
  return [" ".join(rng.choice(WORDS, rng.integers(1, 40))) for _ in range(count)]


TEXTS = make_texts(600)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """Four files of 150 documents."""
  folder = tmp_path_factory.mktemp("corpus")
  for i in range(4):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[150 * i : 150 * (i + 1)])
    (folder / f"{i}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
  return JsonlSource(pattern=str(folder / "*.jsonl.gz"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return train_sentencepiece(TEXTS, str(tmp_path_factory.mktemp("tokenizer") / "t.model"), vocab_size=290)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
  """A tree of 2 x 2 x 2 leaves."""
  directory = str(tmp_path_factory.mktemp("retriever"))
  encoder = LsaEncoder(dim=6).fit(TEXTS)
  encoder.save(f"{directory}/encoder")
  config = TreeConfig(branching=2, depth=3, steps=2, batch_size=64)
  build_tree(encoder.encode(TEXTS), config=config, encoder_fingerprint=encoder.fingerprint).save(directory)
  return directory


@pytest.fixture(scope="module")
def build(corpus, tokenizer, tree, tmp_path_factory):
  def run(directory=None, source=corpus, tree=tree, runner=HERE, read=READ, **pack):
    directory = directory or tmp_path_factory.mktemp("packed") / "set"
    return prepare(
      source=source,
      tokenizer=tokenizer,
      tree=tree,
      directory=str(directory),
      pack=dataclasses.replace(PACK, **pack),
      read=read,
      beam_config=runner,
    )

  return run


@pytest.fixture(scope="module")
def built(build):
  return build()


def windows(tokenizer):
  return [w for d in windows_of(TEXTS, tokenizer, WINDOW) for w in d]


def expected_tokens(tokenizer, tree):
  """Multiset of the tokens of each leaf, by the library's parts put together in the plainest way."""
  expected = collections.defaultdict(collections.Counter)
  all_windows = windows(tokenizer)
  for window, leaf in zip(all_windows, load_retriever(tree).route([w.text for w in all_windows])):
    expected[int(leaf)].update(window.ids.tolist() + [tokenizer.eot_id] * window.ends_document)
  return expected


def tokens_by_leaf(dataset):
  tokens = collections.defaultdict(collections.Counter)
  for leaf, target, segment in zip(*dataset.read(range(len(dataset)))):
    tokens[int(leaf)].update(target[segment > 0].tolist())
  return tokens


def segments_of(dataset):
  _, targets, segments = dataset.read(range(len(dataset)))
  return [tuple(t[s == i].tolist()) for t, s in zip(targets, segments) for i in range(1, s.max() + 1)]


def checksums(dataset):
  return [shard.sha256 for shard in dataset.manifest.shards]


def test_every_window_is_in_its_leaf(built, tokenizer, tree):
  assert tokens_by_leaf(built) == expected_tokens(tokenizer, tree)
  # Most windows are whole segments; those cut by the end of a sequence are not.
  whole = {tuple(w.ids.tolist() + [tokenizer.eot_id] * w.ends_document) for w in windows(tokenizer)}
  assert np.mean([segment in whole for segment in segments_of(built)]) > 0.3
  built.verify()


def test_manifest(built, tokenizer, tree, corpus):
  manifest, all_windows = built.manifest, windows(tokenizer)
  assert manifest.num_documents == 600
  assert manifest.num_characters == sum(map(len, TEXTS))
  assert manifest.num_windows == len(all_windows)
  assert manifest.input_tokens == manifest.num_tokens == sum(len(w.ids) + w.ends_document for w in all_windows)
  assert (manifest.dropped_tokens, manifest.bad_records) == ({}, {})
  assert manifest.tokenizer_fingerprint == tokenizer.fingerprint
  assert manifest.tree_fingerprint == load_retriever(tree).tree.fingerprint and manifest.num_leaves == 8
  assert manifest.dtype == "uint16"
  assert manifest.inputs["source"] == repr(corpus)
  assert [s.name for s in manifest.shards] == [f"shard-0000{i}.array_record" for i in range(3)]


def test_sequences_are_shuffled_over_leaves_and_shards(built):
  leaves = built.read(range(len(built)))[0]
  assert np.count_nonzero(np.diff(leaves)) > len(leaves) / 2
  records = [shard.records for shard in built.manifest.shards]
  assert min(records) > 0.7 * max(records)


def test_nothing_but_shards_and_manifest_is_left(built, tmp_path):
  names = sorted(path.name for path in pathlib.Path(built.directory).iterdir())
  kinds = ("array_record", "leaves.npy")
  assert names == ["manifest.json", *(f"shard-0000{i}.{kind}" for i in range(3) for kind in kinds)]


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(built, build):
  assert checksums(build(runner=TWO)) == checksums(built)


def test_another_seed_is_another_order_of_the_same_tokens(built, build, tokenizer, tree):
  other = build(seed=6)
  assert checksums(other) != checksums(built)
  assert tokens_by_leaf(other) == expected_tokens(tokenizer, tree)


def test_tokens_that_are_dropped_are_counted(build, tokenizer, tree):
  dataset = build(tails="drop")
  manifest = dataset.manifest
  assert manifest.num_tokens == len(dataset) * LENGTH  # no padding
  tails = sum(sum(tokens.values()) % LENGTH for tokens in expected_tokens(tokenizer, tree).values())
  assert manifest.dropped_tokens == {"tails": tails} and manifest.input_tokens == manifest.num_tokens + tails


def test_tails_mixed_with_siblings(built, build, tokenizer, tree):
  dataset = build(tails="mix")
  _, targets, segments = dataset.read(range(len(dataset)))
  by_parent = collections.defaultdict(collections.Counter)
  for leaf, tokens in expected_tokens(tokenizer, tree).items():
    by_parent[leaf // 2] += tokens
  mixed = collections.defaultdict(collections.Counter)
  for leaf, tokens in tokens_by_leaf(dataset).items():
    mixed[leaf // 2] += tokens
  assert mixed == by_parent
  assert np.count_nonzero(segments == 0) < np.count_nonzero(built.read(range(len(built)))[2] == 0)
  assert len(dataset) < len(built)


def test_large_leaves_are_packed_in_pieces(build, tokenizer, tree, monkeypatch):
  monkeypatch.setattr(prepare_lib, "PIECE_TOKENS", 300)
  dataset = build()
  assert tokens_by_leaf(dataset) == expected_tokens(tokenizer, tree)


def test_without_a_tree_every_leaf_is_none(build, tokenizer):
  dataset = build(tree=None)
  leaves, _, segments = dataset.read(range(len(dataset)))
  assert set(leaves.tolist()) == {-1} and dataset.manifest.num_leaves == 0
  assert np.count_nonzero(segments[:, -1] == 0) <= 1
  assert sum(tokens_by_leaf(dataset)[-1].values()) == dataset.manifest.input_tokens


def test_decomposition(build, tokenizer):
  dataset = build(tree=None, buckets=(8, 16, 32))
  documents = [[*tokenizer.encode(text), tokenizer.eot_id] for text in TEXTS]
  runs, rest = collections.Counter(), 0
  for document in documents:
    start = 0
    for length in (32, 16, 8):
      while len(document) - start >= length:
        runs[length, tuple(document[start : start + length])] += 1
        start += length
    rest += len(document) - start
  found = collections.Counter()
  packed_rest = 0
  for length, bucket in dataset.buckets.items():
    _, targets, segments = bucket.read(range(len(bucket)))
    for target, segment in zip(targets, segments):
      if segment.min() == segment.max() == 1:
        found[length, tuple(target.tolist())] += 1
      else:
        assert length == 8
        packed_rest += np.count_nonzero(segment)
  assert not runs - found
  assert sum(length * n for (length, _), n in found.items()) + packed_rest == sum(map(len, documents))
  assert packed_rest <= rest
  dropped = build(tree=None, buckets=(8, 16, 32), tails="drop")  # as the published recipe does
  assert sum(bucket.manifest.num_tokens for bucket in dropped.buckets.values()) == sum(map(len, documents)) - rest
  top = json.loads((pathlib.Path(dropped.directory) / "decomposition.json").read_text())
  assert top["dropped_tokens"] == {"short": rest} and top["input_tokens"] == sum(map(len, documents))


def test_shuffled_leaves_keep_their_sizes_but_not_their_texts(built, build, tokenizer, tree):
  dataset = build(shuffle_leaves=True)
  tokens, true_tokens = tokens_by_leaf(dataset), expected_tokens(tokenizer, tree)
  assert sum(tokens.values(), collections.Counter()) == sum(true_tokens.values(), collections.Counter())
  assert tokens.keys() == true_tokens.keys() and tokens != true_tokens
  sizes = {leaf: sum(counts.values()) for leaf, counts in tokens.items()}
  true_sizes = {leaf: sum(counts.values()) for leaf, counts in true_tokens.items()}
  assert all(0.5 < sizes[leaf] / true_sizes[leaf] < 2 for leaf in sizes)
  everywhere = collections.Counter(tokenizer.encode(" ".join(TEXTS)))
  common = [piece for piece, _ in everywhere.most_common(8)]

  def spread(by_leaf):  # how much the leaves differ in the shares of the commonest pieces
    shares = [[counts[piece] / sum(counts.values()) for piece in common] for counts in by_leaf.values()]
    return np.std(shares, axis=0).mean()

  assert spread(tokens) < spread(true_tokens) / 2


class Stop(Exception):
  """A crash."""


@pytest.mark.parametrize("crash_at", range(1, 9))
def test_a_run_that_crashes_anywhere_is_finished_by_the_next(built, build, tmp_path, monkeypatch, crash_at):
  """Eight files are written in all: a chunk and a summary for each of four parts, then shards and theirs."""
  from hiermem_jax import files

  real_written, real_shard = files.written, pack_corpus.write_shard
  writes = [0]

  def count():
    writes[0] += 1
    if writes[0] == crash_at * 2:
      raise Stop

  def written(path):
    count()
    return real_written(path)

  def write_shard(path, records):
    count()
    return real_shard(path, records)

  monkeypatch.setattr(files, "written", written)
  monkeypatch.setattr(pack_corpus, "write_shard", write_shard)
  with pytest.raises(Exception, match=r"Stop|\[while running"):
    build(tmp_path / "set")
  assert writes[0] == crash_at * 2
  with pytest.raises(InputError, match="unfinished"):
    PackedDataset(str(tmp_path / "set"))
  monkeypatch.undo()
  assert checksums(build(tmp_path / "set")) == checksums(built)


def test_a_finished_part_is_not_read_again(build, tmp_path, monkeypatch):
  real = JsonlSource.read
  monkeypatch.setattr(pack_corpus, "write_shard", None)
  with pytest.raises(Exception, match="NoneType"):
    build(tmp_path / "set")
  monkeypatch.undo()
  monkeypatch.setattr(JsonlSource, "read", None)
  dataset = build(tmp_path / "set")
  assert JsonlSource.read is None and real is not None
  assert build(tmp_path / "set").manifest == dataset.manifest  # nor is a finished dataset made again


@pytest.mark.parametrize(
  "change, message",
  [
    ({"length": 32}, "length 24, asked for is 32"),
    ({"seed": 6}, "seed 5, asked for is 6"),
    ({"tree": None}, "tree .*, asked for is ''"),
    ({"source": JsonlSource(pattern="x")}, "source .* asked for is"),
    ({"tails": "drop"}, "tails 'pad', asked for is 'drop'"),
  ],
)
def test_other_inputs_are_refused(build, built, change, message):
  with pytest.raises(InputError, match=message):
    build(built.directory, **change)


def test_unfinished_work_of_other_inputs_is_refused(build, tmp_path, monkeypatch):
  monkeypatch.setattr(pack_corpus, "write_shard", None)
  with pytest.raises(Exception, match="NoneType"):
    build(tmp_path / "set")
  with pytest.raises(InputError, match="seed 5, asked for is 6"):
    build(tmp_path / "set", seed=6)


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"length": 0}, "PackConfig.length = 0: give at least 1"),
    ({"tails": "keep"}, "one of pad, drop, mix"),
    ({"tree": None, "tails": "mix"}, "no leaf has siblings"),
    ({"buckets": (8, 16)}, "tree = None"),
    ({"tree": None, "buckets": (8, 12)}, "lengths that double"),
  ],
)
def test_settings_out_of_range(build, settings, message):
  with pytest.raises(InputError, match=message):
    build(**settings)


def write_lines(path, lines):
  path.write_bytes(b"".join(line + b"\n" for line in lines))
  return JsonlSource(pattern=str(path), max_characters=1000)


def test_bad_records_are_counted_up_to_a_share(build, tmp_path):
  good = [json.dumps({"text": text}).encode() for text in TEXTS[:90]]
  bad = [b'{"text": "\xff"}', b"{}", b'{"text": ""}', b'{"text": "' + b"x" * 1001 + b'"}', b"nonsense", b"nonsense"]
  source = write_lines(tmp_path / "a.jsonl", [*good, *bad])
  with pytest.raises(InputError, match=r"6 of 96 records are malformed \(2 malformed JSON, .*\), e\.g\. .*:95: mend"):
    build(tmp_path / "set", source=source)
  manifest = build(
    tmp_path / "set", source=source, read=dataclasses.replace(READ, max_bad_share=0.1)
  ).manifest  # goes on where the other stopped
  assert manifest.num_documents == 90
  assert {kind: entry["count"] for kind, entry in manifest.bad_records.items()} == {
    "not UTF-8": 1, "field 'text' missing": 1, "field 'text' empty": 1, "field 'text' over 1000 characters": 1,
    "malformed JSON": 2,
  }  # fmt: skip
  assert manifest.bad_records["malformed JSON"]["places"] == [f"{tmp_path}/a.jsonl:95", f"{tmp_path}/a.jsonl:96"]


def test_nothing_to_prepare(build, tmp_path):
  with pytest.raises(InputError, match="empty corpus"):
    build(tmp_path / "set", source=write_lines(tmp_path / "a.jsonl", []))
  with pytest.raises(InputError, match="no file matches"):
    build(tmp_path / "other", source=JsonlSource(pattern=str(tmp_path / "none*")))


def test_a_directory_with_something_else_is_refused(build, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(InputError, match="is not empty"):
    build(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_truncated_shard_is_found_and_named(build, tmp_path):
  build(tmp_path / "set")
  shard = tmp_path / "set" / "shard-00001.array_record"
  content = bytearray(shard.read_bytes())
  content[len(content) // 2] ^= 1
  shard.write_bytes(content)
  with pytest.raises(InputError, match=r"shard-00001\.array_record is damaged \(its sha256"):
    build(tmp_path / "set")
  shard.write_bytes(content[:-5])
  with pytest.raises(InputError, match=r"shard-00001\.array_record has \d+ bytes"):
    build(tmp_path / "set")


@pytest.mark.slow
def test_bad_input_in_another_process_is_one_line(build, tmp_path):
  for name in "ab":
    (tmp_path / f"{name}.jsonl.gz").write_bytes(b"not gzip")
  source = JsonlSource(pattern=str(tmp_path / "*.jsonl.gz"))
  with pytest.raises(InputError, match=r"[ab]\.jsonl\.gz: not a compressed file") as caught:
    build(tmp_path / "set", source=source, runner=TWO)
  assert "\n" not in str(caught.value)


def test_a_failing_pipeline_says_nothing_but_its_error():
  """Beam's own logger would print the traceback of every try."""
  logger = logging.getLogger("apache_beam")
  before = logger.level

  def build_failing(pipeline):
    assert not logger.isEnabledFor(logging.ERROR)
    raise InputError("a.jsonl: not a compressed file")

  with pytest.raises(InputError, match="^a.jsonl: not a compressed file$"):
    BeamConfig().run(build_failing, 1)
  assert logger.level == before


def test_an_unknown_runner(build):
  with pytest.raises(InputError, match="--runner=Nonsense"):
    build(runner=BeamConfig(runner="Nonsense"))
