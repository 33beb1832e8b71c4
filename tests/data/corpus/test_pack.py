"""The functions of the packing pipeline on a small chunk of windows, without Beam's runner."""

import collections

import apache_beam as beam
import numpy as np
import pytest

from hiermem_jax import files
from hiermem_jax.data.corpus import pack as pack_lib
from hiermem_jax.data.corpus.config import PackConfig
from hiermem_jax.data.corpus.keys import window_keys
from hiermem_jax.data.corpus.pack import PackJob
from hiermem_jax.data.corpus.route import Chunk
from hiermem_jax.data.packed.format import decode_records

EOT, LENGTH = 2, 6


@pytest.fixture
def chunk():
  """Forty windows of one to nine tokens, all tokens different, in leaves 0 to 3."""
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 10, 40).astype(np.int32)
  return Chunk(
    tokens=np.arange(10, 10 + sizes.sum(), dtype=np.uint16),
    sizes=sizes,
    ends=rng.random(40) < 0.7,
    keys=window_keys(0, np.arange(40)),
    leaves=rng.integers(0, 4, 40).astype(np.int32),
  )


@pytest.fixture
def job(chunk, tmp_path):
  """A function that makes a job over that chunk, named "chunk.npz"."""
  files.write_arrays(tmp_path / "chunk.npz", **vars(chunk))

  def make(pieces=None, random_leaves=None, **config):
    config = PackConfig(**{"length": LENGTH, "num_shards": 3} | config)
    return PackJob(
      work=str(tmp_path),
      directories={length: str(tmp_path / str(length)) for length in config.lengths},
      config=config,
      eot_id=EOT,
      dtype="uint16",
      branching=2,
      pieces=pieces or {},
      random_leaves=random_leaves,
    )

  return make


def windows_of(chunk, numbers):
  """Token tuples of windows, with their end-of-text tokens."""
  parts = np.split(chunk.tokens, chunk.starts[1:])
  return [(*parts[i].tolist(), *[EOT] * int(chunk.ends[i])) for i in numbers]


def grouped(job):
  """What the first step gives, by group: as Beam's GroupByKey would."""
  groups = collections.defaultdict(list)
  for group, part in pack_lib._group_windows("chunk.npz", job):
    groups[group].append(part)
  return groups


def decoded(job, sequences, length=LENGTH):
  """(leaf, tokens of the segments) of each sequence, and the other outputs by tag."""
  tagged, found = collections.defaultdict(list), []
  for item in sequences:
    if isinstance(item, beam.pvalue.TaggedOutput):
      tagged[item.tag].append(item.value)
      continue
    (of_length, shard), (order, record) = item
    assert of_length == length and shard == order * job.config.num_shards >> 64  # shards are ranges of the hashes
    leaf, targets, segments = (a[0] for a in decode_records([record], length, job.dtype))
    found.append((int(leaf), [tuple(targets[segments == s].tolist()) for s in range(1, segments.max() + 1)]))
  return found, tagged


def test_windows_are_grouped_by_leaf(job, chunk):
  groups = grouped(job())
  assert groups.keys() == {(leaf, 0) for leaf in range(4)}
  for (leaf, _), ((hashes, sizes, ends, tokens),) in groups.items():
    members = np.flatnonzero(chunk.leaves == leaf)
    assert sizes.tolist() == chunk.sizes[members].tolist() and ends.tolist() == chunk.ends[members].tolist()
    assert tokens.tolist() == [i for m in members for i in np.split(chunk.tokens, chunk.starts[1:])[m].tolist()]
    assert len(set(hashes.tolist())) == len(members)


def test_a_large_leaf_is_cut_into_pieces(job, chunk):
  groups = grouped(job(pieces={1: 3}))
  assert groups.keys() == {(0, 0), (2, 0), (3, 0), *((1, piece) for piece in range(3))}
  sizes = sorted(s for (leaf, _), ((_, sizes, _, _),) in groups.items() if leaf == 1 for s in sizes.tolist())
  assert sizes == sorted(chunk.sizes[chunk.leaves == 1].tolist())


def test_pieces_are_drawn_by_the_seed(job, chunk):
  """And by nothing that also decides the order within a piece."""
  pieces = [job(pieces=dict.fromkeys(range(4), 2), seed=seed).piece(chunk) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(pieces[0], pieces[1])
  assert 8 < np.count_nonzero(pieces[0] != pieces[2]) < 32
  order = job().mix(chunk.keys, pack_lib._ORDER) >= 2**63
  assert 8 < np.count_nonzero(order != pieces[0]) < 32


def test_a_leaf_is_packed_in_a_random_order_without_loss(job, chunk):
  orders = []
  for seed in (0, 1):
    made = job(seed=seed)
    found, tagged = decoded(made, pack_lib._pack_group(((1, 0), grouped(made)[1, 0]), made, LENGTH))
    assert {leaf for leaf, _ in found} == {1} and not tagged
    tokens = [token for _, segments in found for segment in segments for token in segment]
    expected = windows_of(chunk, np.flatnonzero(chunk.leaves == 1))
    assert sorted(tokens) == sorted(token for window in expected for token in window)
    assert all(sum(map(len, segments)) == LENGTH for _, segments in found[:-1])  # only the last one is padded
    orders.append([token for token in tokens if token != EOT])
    assert orders[-1] != sorted(orders[-1])
  assert orders[0] != orders[1]


def test_the_order_of_the_parts_of_a_group_does_not_count(job):
  made = job()
  hashes, sizes, ends, tokens = grouped(made)[1, 0][0]
  half = len(sizes) // 2
  cut = sizes[:half].sum()
  parts = [
    (hashes[half:], sizes[half:], ends[half:], tokens[cut:]),
    (hashes[:half], sizes[:half], ends[:half], tokens[:cut]),
  ]
  whole = list(pack_lib._pack_group(((1, 0), grouped(made)[1, 0]), made, LENGTH))
  assert list(pack_lib._pack_group(((1, 0), parts), made, LENGTH)) == whole
  other = list(pack_lib._pack_group(((1, 1), parts), made, LENGTH))  # another piece: other places in the shards
  assert {order for _, (order, _) in other}.isdisjoint(order for _, (order, _) in whole)


def test_tails(job, chunk):
  size = sum(map(len, windows_of(chunk, np.flatnonzero(chunk.leaves == 1))))
  rest = size % LENGTH
  assert rest  # otherwise there is no tail
  padded, _ = decoded(job(), pack_lib._pack_group(((1, 0), grouped(job())[1, 0]), job(), LENGTH))
  for tails in ("drop", "mix"):
    made = job(tails=tails)
    found, tagged = decoded(made, pack_lib._pack_group(((1, 0), grouped(made)[1, 0]), made, LENGTH))
    assert found == padded[:-1]
    if tails == "drop":
      assert tagged == {"dropped": [("tails", rest)]}
    else:
      ((parent, (leaf, piece, targets, segments)),) = tagged["tails"]
      assert (parent, leaf, piece) == (1 // 2, 1, 0)
      assert [tuple(targets[segments == s].tolist()) for s in range(1, segments.max() + 1)] == padded[-1][1]


def test_tails_of_siblings_are_packed_in_the_order_of_their_leaves(job):
  made = job(tails="mix")
  ones = np.ones(4, np.int32)
  tails = [(3, 0, np.arange(30, 34), ones), (2, 1, np.arange(24, 28), ones), (2, 0, np.arange(20, 24), ones)]
  found, _ = decoded(made, pack_lib._pack_tails((1, tails), made, LENGTH))
  assert found == [(2, [(20, 21, 22, 23), (24, 25)]), (3, [(26, 27), (30, 31, 32, 33)])]


def test_documents_are_cut_into_runs(job, chunk):
  made = job(buckets=(2, 4))
  chunk_runs, rests = collections.Counter(), collections.Counter()
  for i in range(40):
    document = [*np.split(chunk.tokens, chunk.starts[1:])[i].tolist(), EOT]
    while len(document) >= 2:
      length = 4 if len(document) >= 4 else 2
      chunk_runs[length, tuple(document[:length])] += 1
      document = document[length:]
    rests.update([tuple(document)] if document else [])
  outputs = list(pack_lib._cut_documents("chunk.npz", made))
  groups = [item.value for item in outputs if isinstance(item, beam.pvalue.TaggedOutput)]
  runs = [item for item in outputs if not isinstance(item, beam.pvalue.TaggedOutput)]
  found = collections.Counter()
  for length in (2, 4):
    sequences, _ = decoded(made, [item for item in runs if item[0][0] == length], length)
    found.update((length, segment) for _, (segment,) in sequences)
  assert found == chunk_runs
  assert len({order for _, (order, _) in runs}) == len(runs)
  assert sum(rests.values()) == len(groups) > 5
  for (_, piece), (_, sizes, ends, tokens) in groups:  # a rest is the end-of-text token, which packing puts back
    assert (piece, sizes.tolist(), ends.tolist(), tokens.tolist()) == (0, [0], [True], [])
  dropped = [
    item.value
    for item in pack_lib._cut_documents("chunk.npz", job(buckets=(2, 4), tails="drop"))
    if isinstance(item, beam.pvalue.TaggedOutput)
  ]
  assert dropped == [("short", 1)] * len(groups)


def test_random_leaves_are_drawn_as_often_as_leaves_have_windows(job, chunk, tmp_path):
  many = Chunk(
    tokens=np.ones(4000, np.uint16),
    sizes=np.ones(4000, np.int32),
    ends=np.ones(4000, bool),
    keys=window_keys(1, np.arange(4000)),
    leaves=np.repeat([5, 7, 8], [400, 1200, 2400]).astype(np.int32),
  )
  files.write_arrays(tmp_path / "many.npz", **vars(many))
  made = job(shuffle_leaves=True, random_leaves=(np.array([5, 7, 8]), np.array([400, 1600, 4000])))
  drawn = pack_lib._read_chunk("many.npz", made).leaves
  shares = [np.mean(drawn == leaf) for leaf in (5, 7, 8)]
  np.testing.assert_allclose(shares, [0.1, 0.3, 0.6], atol=0.03)  # four standard deviations
  assert np.mean(drawn == many.leaves) == pytest.approx(0.1**2 + 0.3**2 + 0.6**2, abs=0.04)  # independent of their own


def test_a_shard_is_in_the_order_of_its_hashes(job):
  made = job()
  sequences = [
    made.record(LENGTH, order, leaf, np.full(LENGTH, 9), np.ones(LENGTH)) for order, leaf in ((7, 1), (3, 2), (5, 1))
  ]
  pack_lib._write_shard(((LENGTH, 0), [item for _, item in sequences]), made)
  summary = files.read_json(made.summary_path(LENGTH, 0))
  assert summary["tokens"] == 3 * LENGTH and summary["leaves"] == [[1, 2], [2, 1]]
  assert summary["shard"]["name"] == "shard-00000.array_record" and summary["shard"]["records"] == 3
  leaves = np.load(made.shard_path(LENGTH, 0).replace(".array_record", ".leaves.npy"))
  assert leaves.tolist() == [2, 1, 1]
