"""The record of a run directory's stages: which settings are kept, which may change, and what would be made again."""

import json

import pytest

from hiermem_jax import configuration
from hiermem_jax.errors import InputError
from hiermem_jax.plan import NAME, Record, makes

SMOKE = "tests/smoke.gin"


def stages(*bindings, verb="run", gin_file=SMOKE):
  configuration.load([gin_file], list(bindings))
  configuration.dry_run(verb, run_dir="r")
  return configuration.planned()


def begin(run_dir, planned):
  record = Record(str(run_dir))
  record.check(planned)
  record.begin(planned)


def finish(run_dir, planned, *names):
  """What a stage leaves when it has finished, as far as the record looks at it."""
  for stage in planned:
    if stage.name in names:
      path = run_dir / stage.outputs()[0]
      path.mkdir(parents=True)
      (path / ("5" if stage.verb == "train" else "tree.json")).write_text("")
      Record(str(run_dir)).finish(stage.key)


def test_stages_of_a_chain_with_their_scopes():
  planned = stages()
  assert [stage.name for stage in planned] == [
    "cluster", "prepare", "anchor/train", "baseline/train", "cotrain/train", "evaluate",
  ]  # fmt: skip
  assert [stage.key for stage in planned][2:] == [
    "train anchor",
    "train baseline",
    "train cotrain",
    "evaluate evaluation",
  ]
  settings = planned[4].settings()
  assert settings["train.steps"] == "5" and settings["MemoryConfig.rows"] == "(8, 8)"
  assert settings["Objective.z_loss"] == "0.0"  # a default
  prepare = planned[1].settings()
  assert prepare["WorldSource.split"] == "'train'"
  assert prepare["prepare.validation: WorldSource.split"] == "'validation'"
  assert "'run_dir'" not in str(prepare) and not any("Beam" in name for name in prepare)


def test_who_makes_what():
  cluster, prepare, anchor, _, cotrain, _ = stages()
  assert makes(cluster, "tree") and makes(cluster, "./tokenizer.model") and not makes(cluster, "trees")
  assert makes(prepare, "packed/train") and makes(anchor, "anchor") and makes(anchor, "anchor/best")
  assert not makes(cotrain, "anchor")


def test_settings_of_stages_that_have_not_finished_may_change(tmp_path):
  begin(tmp_path, first := stages())
  begin(tmp_path, stages("TreeConfig.branching = 3"))  # nothing is there
  finish(tmp_path, first, "cluster")  # of 3
  begin(tmp_path, planned := stages("TreeConfig.branching = 3", "PackConfig.length = 64", "anchor/train.steps = 6"))
  finish(tmp_path, planned, "prepare", "anchor/train")
  begin(tmp_path, stages("TreeConfig.branching = 3", "PackConfig.length = 64", "anchor/train.steps = 6",
                         "cotrain/train.steps = 7", "evaluate.modes = ('none',)"))  # fmt: skip


@pytest.mark.parametrize(
  "binding, words",
  [
    (
      "TreeConfig.depth = 3",
      ["cluster has", "'TreeConfig.depth = 2'", "'TreeConfig.depth = 3'", "tree, packed, anchor/c"],
    ),
    ("PackConfig.length = 64", ["prepare has", "'PackConfig.length = 128'", "delete packed, anchor/checkpoints there"]),
    (
      "anchor/train.steps = 6",
      ["anchor/train has", "'train.steps = 5'", "'train.steps = 6'", "delete anchor/checkpoints"],
    ),
    (
      "anchor/train.validation = @ValidationConfig()\nValidationConfig.dataset = 'x'",
      ["there: 'train.validation = None'"],
    ),
  ],
)
def test_settings_of_finished_stages_may_not_and_what_follows_is_named(tmp_path, binding, words):
  begin(tmp_path, planned := stages())
  finish(tmp_path, planned, "cluster", "prepare", "anchor/train")
  before = (tmp_path / NAME).read_text()
  with pytest.raises(InputError) as caught:
    begin(tmp_path, stages(binding))
  assert all(word in str(caught.value) for word in words), caught.value
  assert (tmp_path / NAME).read_text() == before


def test_what_was_deleted_may_be_made_with_other_settings(tmp_path):
  begin(tmp_path, planned := stages())
  finish(tmp_path, planned, "anchor/train")
  (tmp_path / "anchor/checkpoints/5").unlink()
  begin(tmp_path, stages("anchor/train.steps = 6"))


def test_a_training_with_a_checkpoint_keeps_its_settings_though_it_has_not_finished(tmp_path):
  begin(tmp_path, stages())
  (tmp_path / "anchor/checkpoints/2").mkdir(parents=True)
  begin(tmp_path, stages(verb="evaluate"))  # another command in between forgets nothing
  with pytest.raises(
    InputError, match=r"OptimizerConfig\.weight_decay = 0\.001.*now: 'OptimizerConfig\.weight_decay = 0\.5"
  ):
    begin(tmp_path, stages("OptimizerConfig.weight_decay = 0.5"))


def test_a_directory_from_before_the_record_is_not_covered(tmp_path):
  planned = stages()
  assert Record(str(tmp_path)).covers(planned)
  (tmp_path / "anchor/checkpoints/2").mkdir(parents=True)
  assert not Record(str(tmp_path)).covers(planned)
  begin(tmp_path, planned)
  assert Record(str(tmp_path)).covers(planned)


def test_a_record_of_nothing_is_discarded(tmp_path):
  begin(tmp_path, planned := stages())
  finish(tmp_path, planned, "cluster")
  Record(str(tmp_path)).discard()
  assert json.loads((tmp_path / NAME).read_text())["cluster tree"]["finished"]
  (tmp_path / "tree/tree.json").unlink()
  Record(str(tmp_path)).discard()
  assert not (tmp_path / NAME).exists()
