"""Modes of the memory: their names, the leaves that they fetch, the levels that they keep."""

import dataclasses

import numpy as np
import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.evaluation.modes import MemoryModes, Mode, QuestionPaths, keep_levels, parse_modes, path_leaves
from hiermem_jax.models.config import MemoryConfig

TEXTS = ["The owl likes plum.", "Ask the fox for corn.", "What does the yak like?", "kale and figs", "moss"]
MEMORY = MemoryConfig(rows=(2, 1), branching=3)


@pytest.mark.parametrize(
  ("name", "fields"),
  [
    ("none", {"path": "none"}),
    ("generic", {"path": "generic"}),
    ("wrong", {"path": "wrong"}),
    ("fetched", {"path": "fetched"}),
    ("paraphrased", {"path": "paraphrased"}),
    ("levels 2", {"path": "fetched", "levels": (2,)}),
    ("levels 3 1", {"path": "fetched", "levels": (1, 3)}),
    ("blocked 3", {"path": "blocked", "level": 3}),
    ("blocked 1:0 2:17", {"path": "blocked", "clusters": ((1, 0), (2, 17))}),
    ("rank 12", {"path": "rank", "rank": 12}),
    ("cut 50", {"path": "cut", "percent": 50}),
    ("rag none", {"path": "none", "document": True}),
    ("rag levels 1 2", {"path": "fetched", "levels": (1, 2), "document": True}),
    ("rag blocked 2", {"path": "blocked", "level": 2, "document": True}),
  ],
)
def test_names(name, fields):
  expected = {"levels": None, "level": None, "clusters": (), "rank": 1, "percent": 100, "document": False} | fields
  mode = Mode.parse(name)
  assert dataclasses.asdict(mode) == {"name": name} | expected
  assert mode.needs_questions == (mode.document or mode.path in ("blocked", "rank", "cut", "paraphrased"))


@pytest.mark.parametrize(
  "name",
  [
    "",
    "best",
    "levels",
    "levels 0",
    "blocked",
    "blocked 0",
    "rank 0",
    "cut 100",
    "cut 0",
    "rag",
    "rag rag none",
    "none ",
  ],
)
def test_unknown_names(name):
  with pytest.raises(
    InputError, match=f"^mode '{name}': choose from none, generic, fetched, wrong, 'levels 1 2', 'blocked 3'"
  ):
    Mode.parse(name)


@pytest.mark.parametrize(
  ("name", "memory", "message"),
  [
    ("fetched", None, "mode 'fetched': the checkpoint has no bank; choose 'none'"),
    ("rag rank 2", None, "mode 'rag rank 2': the checkpoint has no bank"),
    ("levels 1 3", MEMORY, r"mode 'levels 1 3': rows \(2, 1\) has none on levels \[3\]"),
    ("levels 1", MemoryConfig(rows=(0, 1), branching=3), r"mode 'levels 1': rows \(0, 1\) has none on levels \[1\]"),
    ("blocked 3", MEMORY, "mode 'blocked 3': the tree has levels 1 to 2"),
    ("blocked 3:0", MEMORY, "mode 'blocked 3:0': the tree has levels 1 to 2"),
    ("blocked 1:2 2:9", MEMORY, "mode 'blocked 1:2 2:9': level 2 of the tree has clusters 0 to 8"),
    ("rank 10", MEMORY, "mode 'rank 10': the tree has 9 leaves; choose 1 to 9"),
  ],
)
def test_modes_that_a_model_has_no_memory_for(name, memory, message):
  with pytest.raises(InputError, match=message):
    parse_modes([name], memory)


def test_modes_that_a_model_has_memory_for():
  names = ["none", "levels 2", "blocked 2:8", "rank 9", "rag fetched"]
  assert [mode.name for mode in parse_modes(names, MEMORY)] == names
  assert [mode.name for mode in parse_modes(["none", "rag none"], None)] == ["none", "rag none"]
  with pytest.raises(InputError, match="mode 'rank 9': named twice"):
    parse_modes([*names, "rank 9"], MEMORY)


def test_leaves_of_text_without_questions():
  leaf = np.arange(MEMORY.num_leaves, dtype=np.int32)
  for name, expected in (("none", np.full(9, -1)), ("generic", np.full(9, 9)), ("fetched", leaf), ("levels 2", leaf)):
    found = path_leaves(Mode.parse(name), leaf, MEMORY)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32
  with pytest.raises(ValueError, match="needs the text of questions"):
    path_leaves(Mode.parse("rank 2"), leaf, MEMORY)


def test_wrong_path_shares_no_level():
  memory = MemoryConfig(rows=(1, 1, 1), branching=4)
  leaf = np.random.default_rng(1).integers(0, 64, 2000).astype(np.int32)
  wrong = path_leaves(Mode.parse("wrong"), leaf, memory)
  assert wrong.dtype == np.int32
  assert ((wrong >= 0) & (wrong < 64)).all()
  for below in (16, 4, 1):
    assert (wrong // below != leaf // below).all()
  np.testing.assert_array_equal(wrong % 16, leaf % 16)  # the same place in the other subtree
  np.testing.assert_array_equal(path_leaves(Mode.parse("wrong"), leaf, memory), wrong)
  for subtree in range(4):  # every other subtree is used
    assert len(set(wrong[leaf // 16 == subtree] // 16)) == 3


def test_leaves_of_questions(loaded):
  retriever, memory = loaded.retriever, loaded.model.memory
  upper = [text.upper() for text in TEXTS]
  paths = QuestionPaths(retriever, TEXTS, upper)

  def leaves(name):
    return paths.leaves(Mode.parse(name), memory)

  np.testing.assert_array_equal(paths.leaf, retriever.route(TEXTS))
  np.testing.assert_array_equal(leaves("fetched"), paths.leaf)
  np.testing.assert_array_equal(leaves("generic"), [4] * 5)
  assert (leaves("blocked 1") // 2 != paths.leaf // 2).all()
  np.testing.assert_array_equal(leaves("blocked 2"), paths.leaf ^ 1)  # the other child
  shortened = ["The owl", "Ask the", "What does", "kale", "moss"]
  np.testing.assert_array_equal(leaves("cut 50"), retriever.route(shortened))
  np.testing.assert_array_equal(leaves("paraphrased"), retriever.route(upper))
  assert (leaves("blocked 2:0 2:1") >= 2).all()
  for without in ((), [*upper[:4], None]):
    with pytest.raises(InputError, match="no field `paraphrase`"):
      QuestionPaths(retriever, TEXTS, without).leaves(Mode.parse("paraphrased"), memory)


def test_ranks_are_the_leaves_by_distance(loaded):
  """The first rank is the greedy descent's leaf, the others follow by distance to the leaf's centroid."""
  retriever = loaded.retriever
  paths = QuestionPaths(retriever, TEXTS)
  ranks = np.stack([paths.leaves(Mode.parse(f"rank {k}"), loaded.model.memory) for k in (1, 2, 3, 4)], axis=1)
  embeddings, centroids = retriever.encoder.encode(TEXTS), retriever.tree.centroids[-1]
  for own, embedding, found in zip(paths.leaf, embeddings, ranks):
    others = [leaf for leaf in np.argsort(np.linalg.norm(centroids - embedding, axis=1)) if leaf != own]
    np.testing.assert_array_equal(found, [own, *others])


def test_a_model_in_modes(loaded, in_modes, mesh):

  def leaves(name, texts):
    return in_modes.leaves(Mode.parse(name), texts)

  repeated = [*TEXTS, TEXTS[0]]
  np.testing.assert_array_equal(leaves("fetched", repeated), loaded.retriever.route(repeated))
  np.testing.assert_array_equal(leaves("none", TEXTS), [-1] * 5)
  assert leaves("fetched", []).shape == (0,)
  upper = [text.upper() for text in TEXTS]
  np.testing.assert_array_equal(in_modes.leaves(Mode.parse("paraphrased"), TEXTS, upper), loaded.retriever.route(upper))
  whole = in_modes.scorer(Mode.parse("fetched"))
  assert in_modes.scorer(Mode.parse("rank 2")) is whole and in_modes.scorer(Mode.parse("none")) is whole
  assert in_modes.scorer(Mode.parse("levels 2")).model.memory.rows == (0, 2)
  anchor = {"anchor": loaded.model.params["anchor"]}
  plain = dataclasses.replace(loaded.model, config=dataclasses.replace(loaded.model.config, memory=None), params=anchor)
  np.testing.assert_array_equal(MemoryModes(plain, mesh, None).leaves(Mode.parse("none"), TEXTS), [-1] * 5)


def test_keep_levels_keeps_their_tables(loaded):
  kept = keep_levels(loaded.model, (2,))
  assert kept.memory.rows == (0, 2) and set(kept.params["bank"]) == {"level_2"}
  assert kept.params["bank"]["level_2"] is loaded.model.params["bank"]["level_2"]
  assert keep_levels(loaded.model, None) is loaded.model
