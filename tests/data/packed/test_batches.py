"""The batch contract against a loop, and the stream's promises: exact resume, host independence, epochs."""

import itertools

import numpy as np
import pytest

from hiermem_jax.data.packed.batches import Batches, in_order, to_batch
from hiermem_jax.data.packed.packing import pack
from hiermem_jax.errors import InputError

S = 8


@pytest.fixture(scope="module", params=[1, 5, 23])
def dataset(request, write_packed, tmp_path_factory):
  """Sequence i holds the token 10 + i, and its leaf is i."""
  count = request.param
  sequences = [(i, np.full(S, 10 + i), np.ones(S, np.int32)) for i in range(count)]
  directory = tmp_path_factory.mktemp("packed") / "set"
  return write_packed(str(directory), sequences, bos_id=1, num_leaves=count, num_shards=3)


def equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])
    assert a[name].dtype == b[name].dtype


@pytest.mark.parametrize("bos_id", [0, 1])
def test_contract_against_a_loop(bos_id):
  rng = np.random.default_rng(0)
  windows = [rng.integers(0, 99, rng.integers(1, 20)) for _ in range(30)]  # 0 is a token like any other
  targets, segments = pack(windows, rng.random(30) < 0.5, length=16, eot_id=2)
  batch = to_batch(np.arange(len(targets)), targets, segments, bos_id=bos_id)
  for row, (target, segment) in enumerate(zip(targets, segments)):
    position = 0
    for i in range(16):
      position = position + 1 if i and segment[i] == segment[i - 1] else 0
      expected = bos_id if position == 0 else target[i - 1]
      if segment[i] == 0:
        position = expected = 0
      assert batch["decoder_input_tokens"][row, i] == expected
      assert batch["decoder_positions"][row, i] == position
      assert batch["decoder_loss_weights"][row, i] == (segment[i] > 0)
  np.testing.assert_array_equal(batch["decoder_target_tokens"], targets)
  np.testing.assert_array_equal(batch["decoder_segment_ids"], segments)
  types = {k: (str(v.dtype), v.shape) for k, v in batch.items()}
  assert types.pop("memory_leaf") == ("int32", (len(targets),))
  assert types.pop("decoder_loss_weights") == ("float32", targets.shape)
  assert len(types) == 4
  assert set(types.values()) == {("int32", targets.shape)}


def test_docstring_example():
  batch = to_batch(np.array([7]), np.array([[5, 6, 2, 8, 2, 0]]), np.array([[1, 1, 1, 2, 2, 0]]))
  assert {k: v[0].tolist() for k, v in batch.items()} == {
    "decoder_target_tokens": [5, 6, 2, 8, 2, 0],
    "decoder_input_tokens": [0, 5, 6, 0, 8, 0],
    "decoder_segment_ids": [1, 1, 1, 2, 2, 0],
    "decoder_positions": [0, 1, 2, 0, 1, 0],
    "decoder_loss_weights": [1, 1, 1, 1, 1, 0],
    "memory_leaf": 7,
  }


@pytest.mark.parametrize("batch_size", [1, 4, 12])
def test_epochs_cover_each_sequence_once(dataset, batch_size):
  stream = Batches(dataset, batch_size=batch_size, seed=1)
  count = len(dataset)
  steps = -(-4 * count // batch_size)
  leaves = np.concatenate([stream.at(step)["memory_leaf"] for step in range(steps)])
  epochs = leaves[: 4 * count].reshape(4, count)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(count), (4, 1)))
  if count > 5:
    assert len({tuple(e) for e in epochs}) == 4


def test_rows_belong_together(dataset):
  batch = Batches(dataset, batch_size=6, seed=0).at(3)
  np.testing.assert_array_equal(batch["decoder_target_tokens"], np.tile(batch["memory_leaf"][:, None] + 10, S))
  assert np.all(batch["decoder_input_tokens"][:, 0] == 1)  # the manifest's bos_id


@pytest.mark.parametrize("start", [0, 1, 5])
def test_resume_is_exact(dataset, start):
  uninterrupted = list(itertools.islice(Batches(dataset, batch_size=4, seed=7).iterate(), 9))
  resumed = list(itertools.islice(Batches(dataset, batch_size=4, seed=7).iterate(start), 9 - start))
  for a, b in zip(uninterrupted[start:], resumed, strict=True):
    equal(a, b)
  equal(Batches(dataset, batch_size=4, seed=7).at(8), uninterrupted[8])


@pytest.mark.parametrize("process_count", [1, 2, 3, 6])
def test_host_slices_join_to_the_global_batch(dataset, process_count):
  whole = Batches(dataset, batch_size=6, seed=3)
  hosts = [Batches(dataset, batch_size=6, seed=3, positions=rows) for rows in np.split(np.arange(6), process_count)]
  for step in (0, 1, 4, 11):
    parts = [host.at(step) for host in hosts]
    equal(whole.at(step), {k: np.concatenate([p[k] for p in parts]) for k in parts[0]})


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_in_order(dataset, batch_size):
  batches = list(in_order(dataset, batch_size))
  count = len(dataset)
  sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
  assert [len(b["memory_leaf"]) for b in batches] == sizes
  equal(
    {k: np.concatenate([b[k] for b in batches]) for k in batches[0]},
    to_batch(*dataset.read(range(count)), bos_id=1),
  )


def test_seed_matters(dataset):
  if len(dataset) == 23:
    a, b = (Batches(dataset, batch_size=23, seed=seed).indices(0) for seed in (0, 1))
    assert not np.array_equal(a, b)


def test_errors_reach_the_reader_and_close_ends_the_thread(dataset):
  class Broken(Batches):
    def at(self, step):
      if step == 2:
        raise InputError("shard is damaged")
      return super().at(step)

  stream = Broken(dataset, batch_size=2, seed=0).iterate()
  next(stream)
  next(stream)
  with pytest.raises(InputError, match="shard is damaged"):
    next(stream)
  closed = Batches(dataset, batch_size=2, seed=0).iterate()
  next(closed)
  closed.close()


def test_rows_in_any_order(dataset):
  """What a process with rows 4, 1 of the batch reads, over the border of epochs too."""
  whole, some = (Batches(dataset, batch_size=6, seed=3, positions=rows) for rows in (None, np.array([4, 1])))
  for step in range(2 * len(dataset) // 6 + 2):
    np.testing.assert_array_equal(some.indices(step), whole.indices(step)[[4, 1]])


def test_empty_batch(dataset):
  with pytest.raises(InputError, match="batch_size 0: must be positive"):
    Batches(dataset, batch_size=0, seed=0)
