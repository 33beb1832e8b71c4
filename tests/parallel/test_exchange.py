"""The exchange on eight devices against plain indexing, with and without a model axis and slices.

Table level_1 has 4 rows of 384 parameters, level_3 has 28 of 192; 24 sequences fetch from both. The names of the meshes are
replica x data x model. On the first each device has 3 sequences, on the others 6, more than level_1 has rows.
"""

import pytest

pytestmark = pytest.mark.slow
MESHES = ("1x8x1", "1x4x2", "2x2x2")
PARTS = {"1x8x1": (8, 1, 1), "1x4x2": (4, 2, 1), "2x2x2": (2, 2, 2)}  # data, model, replica
IDS = 24 * 4  # elements of an array with a few integers per sequence


@pytest.fixture(params=MESHES)
def exchange(request, findings):
  return request.param, findings["exchange"][request.param]


def of_kind(found, kind, types=("f32", "bf16")):
  return sorted(elements for operation, dtype, elements, _ in found if operation == kind and dtype in types)


def test_fetch_is_plain_indexing(exchange):
  assert exchange[1]["fetch_error"] == 0


def test_push_adds_duplicates_up_and_drops_no_memory(exchange):
  """Rows that no id names get nothing: an error in them would show like one in those that are named."""
  assert exchange[1]["push_error"] < 5e-6


def test_push_names_each_row_once_and_no_other(exchange):
  named = {"level_1": [0, 1, 2, 3], "level_3": [0, 1, 2, 3, 4, 5, 13, 14, 26, 27]}  # by hand from the batch's leaves
  for name, rows in (("level_1", 4), ("level_3", 28)):
    indices = exchange[1]["indices"][name]
    assert [index for index in indices if index < rows] == named[name]
    assert len(set(indices)) == len(indices)


def test_batch_without_memory_names_no_row(exchange):
  """Of a shallow table either: where its rows travel whether they are wanted or not."""
  for name, rows in (("level_1", 4), ("level_3", 28)):
    first, largest = exchange[1]["without_memory"][name]
    assert first >= rows and largest == 0


def test_layout_of_what_is_fetched_and_pushed(exchange):
  mesh, found = exchange
  batch = ["replica", "data"] if mesh[0] == "2" else "data"
  model = None if mesh[-1] == "1" else "model"
  assert found["fetched_specs"] == [[batch, None, model, None]] * 3
  assert found["pushed_specs"] == [[None, ["model", "data"] if model else "data"]] * 2


def test_fetch_moves_rows_by_all_to_all_alone(exchange):
  """One all-to-all per table, of the fewest rows that can do; the only other traffic is the leaf ids."""
  mesh, found = exchange
  data, model, replica = PARTS[mesh]
  sequences = 24 // (data * replica)
  sent = sorted(min(sequences, rows) * size // model for rows, size in ((4, 384), (28, 192)))
  assert of_kind(found["fetch_collectives"], "all-to-all") == sent
  others = [entry for entry in found["fetch_collectives"] if entry[0] != "all-to-all"]
  assert all(dtype == "s32" and elements <= IDS for _, dtype, elements, _ in others)


def test_push_moves_rows_by_all_to_all_and_only_sums_between_slices(exchange):
  """The mirror image of the fetch. With slices, each device gathers the other slice's sums of its part of the rows."""
  mesh, found = exchange
  data, model, replica = PARTS[mesh]
  sequences = 24 // (data * replica)
  sent = sorted(min(sequences, rows) * size // model for rows, size in ((4, 384), (28, 192)))
  assert of_kind(found["push_collectives"], "all-to-all") == sent
  sums = [min(24 // replica, rows) * replica * size // (data * model) for rows, size in ((4, 384), (28, 192))]
  assert of_kind(found["push_collectives"], "all-gather") == (sorted(sums) if replica > 1 else [])
  others = [entry for entry in found["push_collectives"] if entry[0] not in ("all-to-all", "all-gather")]
  assert all(dtype == "s32" and elements <= IDS for _, dtype, elements, _ in others)


def test_rows_travel_in_the_type_of_the_anchor(findings):
  """Two tables fetched and pushed, and the sums that cross slices; all that is not an id is bfloat16."""
  assert findings["wire"]["all_to_all"] == ["bf16"] * 4
  assert set(findings["wire"]["all_gather"]) == {"i32", "bf16"}
