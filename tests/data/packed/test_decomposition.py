"""The cuts against binary expansion, and the stream's promises: tokens per step, epochs, cycles, odds, exact resume."""

import collections
import itertools
import types

import numpy as np
import pytest

from hiermem_jax.data.packed.decomposition import DecomposedBatches, DecomposedDataset, decompose, open_dataset
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.errors import InputError

LENGTHS = (4, 8, 16)
COUNTS = {4: 37, 8: 12, 16: 11}
TOKENS = 32  # a batch: 8 sequences of 4, 4 of 8 or 2 of 16; 4 + 3 + 5 batches an epoch
PER_EPOCH = 12


def sequences(length, count):
  """Sequence i has leaf -1 and holds the tokens length + 100 i and on."""
  return [(-1, np.arange(length) + length + 100 * i, np.ones(length, np.int32)) for i in range(count)]


@pytest.fixture(scope="module")
def dataset(write_decomposed, tmp_path_factory):
  directory = tmp_path_factory.mktemp("decomposed") / "set"
  buckets = {length: sequences(length, count) for length, count in COUNTS.items()}
  return write_decomposed(str(directory), buckets, num_shards=2, vocab_size=10_000, bos_id=1)


def counted(counts):
  """A dataset that has numbers of sequences but nothing to read."""
  return types.SimpleNamespace(directory="nowhere", buckets={length: range(count) for length, count in counts.items()})


def equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def test_runs_are_the_binary_expansion():
  lengths = tuple(2**k for k in range(8, 14))
  for num_tokens in [*range(600), 1309, 8191, 8192, 8193, 16_384, 16_383 + 8192, 100_003]:
    runs, rest = decompose(num_tokens, lengths)
    longest, below = divmod(num_tokens, 8192)
    expected = [8192] * longest + [2**k for k in reversed(range(8, 13)) if below >> k & 1]
    assert [length for _, length in runs] == expected
    assert [start for start, _ in runs] + [rest] == list(itertools.accumulate(expected, initial=0))
    assert num_tokens - rest == num_tokens % 256


def test_docstring_example():
  assert decompose(1309, (256, 512, 1024, 2048)) == ([(0, 1024), (1024, 256)], 1280)


def test_each_step_has_one_length_and_the_same_number_of_tokens(dataset):
  stream = DecomposedBatches(dataset, tokens_per_batch=TOKENS, seed=0, cycles=2)
  for step in range(3 * PER_EPOCH):
    length, indices = stream.indices(step)
    batch = stream.at(step)
    targets = batch["decoder_target_tokens"]
    assert targets.shape == (TOKENS // length, length)
    np.testing.assert_array_equal(targets, length + 100 * indices[:, None] + np.arange(length))
    assert batch["decoder_loss_weights"].sum() == TOKENS
    assert np.all(batch["memory_leaf"] == -1)
    assert np.all(batch["decoder_input_tokens"][:, 0] == 1)  # the manifest's bos_id


def test_epochs_visit_sequences_once_but_for_what_fills_no_batch(dataset):
  stream = DecomposedBatches(dataset, tokens_per_batch=TOKENS, seed=1, cycles=3)
  orders = set()
  for epoch in range(4):
    seen = collections.defaultdict(list)
    for step in range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH):
      length, indices = stream.indices(step)
      seen[length] += indices.tolist()
    assert {length: len(set(indices)) for length, indices in seen.items()} == {4: 32, 8: 12, 16: 10}
    assert {length: len(indices) for length, indices in seen.items()} == {4: 32, 8: 12, 16: 10}
    orders.add(tuple(seen[8]))
  assert len(orders) == 4


@pytest.mark.parametrize("cycles", [1, 3, 8])
def test_every_cycle_has_its_share_of_every_length(cycles):
  counts = {4: 1000, 8: 77, 16: 5}
  stream = DecomposedBatches(counted(counts), tokens_per_batch=16, seed=2, cycles=cycles)
  batches = {4: 250, 8: 38, 16: 5}
  order = [stream.indices(step)[0] for step in range(sum(batches.values()))]
  start = 0
  for cycle in range(cycles):
    share = {length: (cycle + 1) * n // cycles - cycle * n // cycles for length, n in batches.items()}
    stop = start + sum(share.values())
    assert collections.Counter(order[start:stop]) == {length: n for length, n in share.items() if n}
    start = stop
  assert start == len(order)


def draw_one_by_one(rng, batches):
  """A cycle as the recipe says it: weights are batches times odds; a length without batches left is removed."""
  weights = np.array([n * 2.0**-k for k, n in enumerate(batches.values())])
  left, order = np.array(list(batches.values())), []
  while left.any():
    bucket = rng.choice(len(left), p=np.where(left > 0, weights, 0) / weights[left > 0].sum())
    left[bucket] -= 1
    order.append(bucket)
  return np.array(order)


def test_lengths_are_drawn_as_one_by_one():
  """Share of each length at every step of a cycle, over many cycles, against drawing step by step."""
  batches, trials = {4: 6, 8: 9, 16: 4}, 3000
  counts = {length: n * trials * TOKENS // length for length, n in batches.items()}
  stream = DecomposedBatches(counted(counts), tokens_per_batch=TOKENS, seed=3, cycles=trials)
  steps = sum(batches.values())
  drawn = np.array([LENGTHS.index(stream.indices(step)[0]) for step in range(steps * trials)]).reshape(trials, steps)
  rng = np.random.default_rng(4)
  expected = np.array([draw_one_by_one(rng, batches) for _ in range(trials)])
  for bucket in range(3):
    difference = (drawn == bucket).mean(axis=0) - (expected == bucket).mean(axis=0)
    assert np.abs(difference).max() < 5 * np.sqrt(0.5 / trials)  # five standard deviations of a difference of shares
  position = [np.nonzero(drawn == bucket)[1].mean() for bucket in range(3)]
  assert position == sorted(position)  # short ones first


@pytest.mark.parametrize("start", [0, 1, 11, 12, 17])
def test_resume_is_exact(dataset, start):
  def stream():
    return DecomposedBatches(dataset, tokens_per_batch=TOKENS, seed=7)

  uninterrupted = list(itertools.islice(stream().iterate(), 20))
  for a, b in zip(uninterrupted[start:], itertools.islice(stream().iterate(start), 20 - start), strict=True):
    equal(a, b)
  equal(stream().at(19), uninterrupted[19])


def test_processes_read_parts_of_the_same_batches(dataset):
  whole = DecomposedBatches(dataset, tokens_per_batch=TOKENS, seed=3)
  halves = [
    DecomposedBatches(dataset, tokens_per_batch=TOKENS, seed=3, positions=lambda n, part=part: np.arange(n)[part::2])
    for part in range(2)
  ]
  for step in range(2 * PER_EPOCH):
    for part, half in enumerate(halves):
      equal(half.at(step), {name: array[part::2] for name, array in whole.at(step).items()})


def test_seed_matters():
  a, b = (DecomposedBatches(counted({4: 800, 8: 400}), tokens_per_batch=16, seed=seed) for seed in (0, 1))
  assert [a.indices(step)[0] for step in range(50)] != [b.indices(step)[0] for step in range(50)]
  assert not np.array_equal(a._order(0, 0), b._order(0, 0))


def test_length_without_a_batch_is_left_out():
  stream = DecomposedBatches(counted({4: 16, 8: 3, 16: 2}), tokens_per_batch=TOKENS, seed=0)
  assert collections.Counter(stream.indices(step)[0] for step in range(3)) == {4: 2, 16: 1}


@pytest.mark.parametrize(
  ("tokens", "message"),
  [
    (0, "0 tokens a batch: must be a positive multiple of 16"),
    (24, "24 tokens a batch: must be a positive multiple of 16"),
    (1600, "nowhere: no length has a batch of 1600 tokens; prepare a larger corpus or bind a smaller"),
  ],
)
def test_batches_that_cannot_be(tokens, message):
  with pytest.raises(InputError, match=message):
    DecomposedBatches(counted(COUNTS), tokens_per_batch=tokens, seed=0)


def test_what_does_not_fit_is_told_of_the_longest_length():
  def rows(size):
    raise InputError(f"batch_size = {size}")

  with pytest.raises(InputError, match="batch_size = 2"):
    DecomposedBatches(counted(COUNTS), tokens_per_batch=TOKENS, seed=0, positions=rows)


def test_open(dataset, tmp_path, write_packed):
  again = open_dataset(dataset.directory)
  assert isinstance(again, DecomposedDataset)
  assert {length: len(bucket) for length, bucket in again.buckets.items()} == COUNTS
  assert len(again) == 60
  assert again.manifest.bos_id == 1
  again.verify()
  assert isinstance(open_dataset(dataset.directory + "/8"), PackedDataset)
  empty = tmp_path / "alone/empty"  # datasets beside it would be named
  empty.mkdir(parents=True)
  with pytest.raises(InputError, match="no packed dataset, or an unfinished one; run prepare"):
    open_dataset(str(empty))
  with pytest.raises(InputError, match="decomposition.json: No such file"):
    DecomposedDataset(str(empty))


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (
      lambda d: (d / "decomposition.json").write_text("{}"),
      "decomposition.json is damaged: delete .* run prepare again",
    ),
    (lambda d: (d / "8" / "manifest.json").unlink(), "8: no packed dataset, or an unfinished one"),
    (lambda d: (d / "4" / "shard-00000.array_record").unlink(), "shard-00000.array_record is missing"),
  ],
)
def test_damage(tmp_path, write_decomposed, damage, message):
  write_decomposed(str(tmp_path), {4: sequences(4, 3), 8: sequences(8, 3)})
  damage(tmp_path)
  with pytest.raises(InputError, match=message) as caught:
    open_dataset(str(tmp_path))
  assert "\n" not in str(caught.value)
