"""From documents to the packed dataset: what is in it, that it does not depend on how it was made, what is refused."""

import collections
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from hiermem_jax import files
from hiermem_jax.data.corpus import pack as pack_lib
from hiermem_jax.data.corpus import prepare as prepare_lib
from hiermem_jax.data.corpus.config import PackConfig, ReadConfig
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.data.text.tokenizer import train_sentencepiece
from hiermem_jax.errors import InputError

LENGTH = 24
# Another value of every setting of packing. A new setting without one fails a test below.
OTHER_PACKS = {
  "length": 32,
  "buckets": (8, 16),
  "tails": "drop",
  "num_shards": 2,
  "seed": 6,
  "shuffle_leaves": True,
}


@pytest.fixture(scope="module")
def leaves(grown, windows, encoder):
  """Leaf of every window by brute force: the nearest child of the nearest child, in float64, from the arrays on disk."""
  with np.load(f"{grown[0]}/tree.npz") as arrays:
    first, second = (arrays[name].astype(np.float64) for name in ("level_1", "level_2"))
  found = []
  for vector in encoder.encode([w.text for w in windows]).astype(np.float64):
    node = int(np.square(first - vector).sum(axis=1).argmin())
    found.append(node * 3 + int(np.square(second[node * 3 : node * 3 + 3] - vector).sum(axis=1).argmin()))
  return found


@pytest.fixture(scope="module")
def expected_tokens(windows, leaves, tokenizer):
  """Multiset of the tokens of each leaf."""
  expected = collections.defaultdict(collections.Counter)
  for window, leaf in zip(windows, leaves):
    expected[leaf].update(window.ids.tolist() + [tokenizer.eot_id] * window.ends_document)
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


def test_every_window_is_in_its_leaf(built, windows, tokenizer, expected_tokens):
  assert tokens_by_leaf(built) == expected_tokens and len(expected_tokens) == 9
  # Most windows are whole segments; those cut by the end of a sequence are not.
  whole = {tuple(w.ids.tolist() + [tokenizer.eot_id] * w.ends_document) for w in windows}
  assert np.mean([segment in whole for segment in segments_of(built)]) > 0.2
  built.verify()


def test_manifest(built, texts, windows, tokenizer, grown, corpus):
  manifest = built.manifest
  assert manifest.num_documents == 400
  assert manifest.num_characters == sum(map(len, texts))
  assert manifest.num_windows == len(windows)
  assert manifest.input_tokens == manifest.num_tokens == sum(len(w.ids) + w.ends_document for w in windows)
  assert (manifest.dropped_tokens, manifest.bad_records) == ({}, {})
  assert manifest.tokenizer_fingerprint == tokenizer.fingerprint
  assert manifest.tree_fingerprint == grown[1].fingerprint and manifest.num_leaves == 9
  assert manifest.dtype == "uint16"
  assert manifest.inputs["source"] == repr(corpus)
  assert [s.name for s in manifest.shards] == [f"shard-0000{i}.array_record" for i in range(3)]


def test_sequences_are_shuffled_over_leaves_and_shards(built):
  leaves = built.read(range(len(built)))[0]
  assert np.count_nonzero(np.diff(leaves)) > len(leaves) / 2
  records = [shard.records for shard in built.manifest.shards]
  assert min(records) > 0.7 * max(records)


def test_nothing_but_shards_and_manifest_is_left(built):
  names = sorted(path.name for path in pathlib.Path(built.directory).iterdir())
  kinds = ("array_record", "leaves.npy")
  assert names == ["manifest.json", *(f"shard-0000{i}.{kind}" for i in range(3) for kind in kinds)]


def test_another_seed_is_another_order_of_the_same_tokens(built, build, expected_tokens):
  other = build(seed=6)
  assert checksums(other) != checksums(built)
  assert tokens_by_leaf(other) == expected_tokens


def test_tokens_that_are_dropped_are_counted(build, expected_tokens):
  dataset = build(tails="drop")
  manifest = dataset.manifest
  assert manifest.num_tokens == len(dataset) * LENGTH  # no padding
  tails = sum(sum(tokens.values()) % LENGTH for tokens in expected_tokens.values())
  assert manifest.dropped_tokens == {"tails": tails} and manifest.input_tokens == manifest.num_tokens + tails


def test_tails_mixed_with_siblings(built, build, expected_tokens):
  dataset = build(tails="mix")
  _, _, segments = dataset.read(range(len(dataset)))
  by_parent = collections.defaultdict(collections.Counter)
  for leaf, tokens in expected_tokens.items():
    by_parent[leaf // 3] += tokens
  mixed = collections.defaultdict(collections.Counter)
  for leaf, tokens in tokens_by_leaf(dataset).items():
    mixed[leaf // 3] += tokens
  assert mixed == by_parent
  assert np.count_nonzero(segments == 0) < np.count_nonzero(built.read(range(len(built)))[2] == 0)
  assert len(dataset) < len(built)


def test_large_leaves_are_packed_in_pieces(build, built, expected_tokens, monkeypatch):
  monkeypatch.setattr(prepare_lib, "PIECE_TOKENS", 300)
  dataset = build()
  assert tokens_by_leaf(dataset) == expected_tokens
  assert len(dataset) > len(built)  # each piece has a tail


def test_without_a_tree_every_leaf_is_none(build):
  dataset = build(tree=None)
  leaves, _, segments = dataset.read(range(len(dataset)))
  assert set(leaves.tolist()) == {-1} and dataset.manifest.num_leaves == 0
  assert np.count_nonzero(segments[:, -1] == 0) <= 1
  assert sum(tokens_by_leaf(dataset)[-1].values()) == dataset.manifest.input_tokens


def test_decomposition(build, texts, tokenizer):
  dataset = build(tree=None, buckets=(8, 16, 32))
  documents = [[*tokenizer.encode(text), tokenizer.eot_id] for text in texts]
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
  with pytest.raises(InputError, match=r"was made with buckets \[8, 16, 32\], asked for is \[8, 16\]"):
    build(dropped.directory, tree=None, buckets=(8, 16), tails="drop")


def test_shuffled_leaves_keep_their_sizes_but_not_their_texts(build, texts, tokenizer, expected_tokens):
  tokens = tokens_by_leaf(build(shuffle_leaves=True))
  assert sum(tokens.values(), collections.Counter()) == sum(expected_tokens.values(), collections.Counter())
  assert tokens.keys() == expected_tokens.keys() and tokens != expected_tokens
  sizes = {leaf: sum(counts.values()) for leaf, counts in tokens.items()}
  true_sizes = {leaf: sum(counts.values()) for leaf, counts in expected_tokens.items()}
  assert all(0.5 < sizes[leaf] / true_sizes[leaf] < 2 for leaf in sizes)
  everywhere = collections.Counter(tokenizer.encode(" ".join(texts)))
  common = [piece for piece, _ in everywhere.most_common(8)]

  def spread(by_leaf):  # how much the leaves differ in the shares of the commonest pieces
    shares = [[counts[piece] / sum(counts.values()) for piece in common] for counts in by_leaf.values()]
    return np.std(shares, axis=0).mean()

  assert spread(tokens) < spread(expected_tokens) / 2


class Stop(Exception):
  """A crash."""


# What is begun to be written: a chunk and a summary of each of four parts; a shard, its leaves and its summary, three
# times; what was dropped; the manifest.
@pytest.mark.parametrize("crash_at", [2, 10, 11, 19])
def test_a_run_that_crashes_anywhere_is_finished_by_the_next(built, build, tmp_path, monkeypatch, crash_at):
  real, writes = files.replaced, [0]

  def replaced(path):
    if not str(path).endswith("inputs.json"):
      writes[0] += 1
      if writes[0] == crash_at:
        raise Stop("crash")
    return real(path)

  monkeypatch.setattr(files, "replaced", replaced)
  with pytest.raises(Exception, match="crash"):
    build(tmp_path / "set")
  assert writes[0] == crash_at
  with pytest.raises(InputError, match="unfinished"):
    PackedDataset(str(tmp_path / "set"))
  monkeypatch.undo()
  assert checksums(build(tmp_path / "set")) == checksums(built)
  assert writes[0] == crash_at


@pytest.fixture(scope="module")
def unfinished(build, tmp_path_factory):
  """A directory in which all parts have been read, and no shard has been written. Tests do not change it."""
  directory = tmp_path_factory.mktemp("unfinished") / "set"
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(pack_lib, "write_shard", None)
    with pytest.raises(Exception, match="NoneType"):
      build(directory)
  return directory


def test_a_finished_part_is_not_read_again(build, unfinished, tmp_path, monkeypatch):
  shutil.copytree(unfinished, tmp_path / "set")
  monkeypatch.setattr(JsonlSource, "read", None)
  dataset = build(tmp_path / "set")
  assert build(tmp_path / "set").manifest == dataset.manifest  # nor is a finished dataset made again


@pytest.mark.parametrize("finished", [True, False])
def test_every_setting_belongs_to_the_directory(build, built, unfinished, settings, finished):
  """A setting that is left out of the identity would let a dataset of another setting pass for the one asked for."""
  assert OTHER_PACKS.keys() == {field.name for field in dataclasses.fields(PackConfig)}
  directory = built.directory if finished else unfinished
  for name, value in OTHER_PACKS.items():
    tree = {"tree": None} if name == "buckets" else {}
    with pytest.raises(InputError, match=f"was made with {name} .*, asked for is"):
      build(directory, **{name: value}, **tree)
  reads = {field.name: getattr(settings.read, field.name) * 2 for field in dataclasses.fields(ReadConfig)}
  lenient = reads.pop("max_bad_share")
  assert (
    build(built.directory, read=dataclasses.replace(settings.read, max_bad_share=lenient)).manifest == built.manifest
  )
  for name, value in reads.items():
    with pytest.raises(InputError, match=f"was made with {name} .*, asked for is"):
      build(directory, read=dataclasses.replace(settings.read, **{name: value}))


@pytest.mark.parametrize("finished", [True, False])
def test_corpus_tokenizer_and_tree_belong_to_the_directory(build, built, unfinished, corpus, texts, tmp_path, finished):
  directory = built.directory if finished else unfinished
  other = dataclasses.replace(corpus, max_characters=77)
  tokenizer = train_sentencepiece(texts, str(tmp_path / "t.model"), vocab_size=300)
  for name, value in {"source": other, "tokenizer": tokenizer, "tree": None}.items():
    with pytest.raises(InputError, match=f"was made with {name} .*, asked for is"):
      build(directory, **{name: value})


def test_unfinished_work_on_other_files_is_refused(build, unfinished, corpus, monkeypatch):
  real = JsonlSource.parts
  monkeypatch.setattr(JsonlSource, "parts", lambda self: real(self)[:-1])
  with pytest.raises(InputError, match="was made with parts "):
    build(unfinished)


def test_bad_records_are_counted_up_to_a_share(build, settings, texts, tmp_path):
  good = [json.dumps({"text": text}).encode() for text in texts[:90]]
  bad = [b'{"text": "\xff"}', b"{}", b'{"text": ""}', b'{"text": "' + b"x" * 1001 + b'"}', b"nonsense", b"nonsense"]
  (tmp_path / "a.jsonl").write_bytes(b"".join(line + b"\n" for line in (*good, *bad)))
  source = JsonlSource(pattern=str(tmp_path / "a.jsonl"), max_characters=1000)
  with pytest.raises(
    InputError, match=r"6 of 96 records are malformed \(2 malformed JSON, .*\), e\.g\. .*:95 .*: mend"
  ):
    build(tmp_path / "set", source=source)
  lenient = dataclasses.replace(settings.read, max_bad_share=0.1)
  manifest = build(tmp_path / "set", source=source, read=lenient).manifest  # goes on where the other stopped
  assert manifest.num_documents == 90
  assert {kind: entry["count"] for kind, entry in manifest.bad_records.items()} == {
    "not UTF-8": 1, "field 'text' missing": 1, "field 'text' empty": 1, "field 'text' over 1000 characters": 1,
    "malformed JSON": 2,
  }  # fmt: skip
  assert manifest.bad_records["malformed JSON"]["places"][0].startswith(f"{tmp_path}/a.jsonl:95 (")


def test_nothing_to_prepare(build, tmp_path):
  (tmp_path / "a.jsonl").write_text("\n")
  with pytest.raises(InputError, match="empty corpus"):
    build(tmp_path / "set", source=JsonlSource(pattern=str(tmp_path / "a.jsonl")))
  with pytest.raises(InputError, match="no file matches"):
    build(tmp_path / "other", source=JsonlSource(pattern=str(tmp_path / "none*")))


def test_a_directory_with_something_else_is_refused(build, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(InputError, match="is not empty"):
    build(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_damaged_shard_is_found_and_named(build, built, tmp_path):
  shutil.copytree(built.directory, tmp_path / "set")
  shard = tmp_path / "set" / "shard-00001.array_record"
  content = bytearray(shard.read_bytes())
  content[len(content) // 2] ^= 1
  shard.write_bytes(content)
  with pytest.raises(InputError, match=r"shard-00001\.array_record is damaged \(its sha256"):
    build(tmp_path / "set")
  shard.write_bytes(content[:-5])
  with pytest.raises(InputError, match=r"shard-00001\.array_record has \d+ bytes"):
    build(tmp_path / "set")
