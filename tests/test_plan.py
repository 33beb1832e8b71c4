"""The record of a run directory's stages: which settings are kept, which may change, and what would be made again."""

import json

import pytest

from hiermem_jax import configuration
from hiermem_jax.errors import InputError
from hiermem_jax.plan import NAME, Record, makes
from hiermem_jax.run_identity import short

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
      path.mkdir(parents=True, exist_ok=True)
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
  settings, prepare = ({name: setting.value for name, setting in planned[n].settings().items()} for n in (4, 1))
  assert settings["train.steps"] == "5" and settings["MemoryConfig.rows"] == "(8, 8)"
  assert settings["Objective.z_loss"] == "0.0"  # a default
  assert prepare["WorldSource.split"] == "'train'"
  assert prepare["prepare.validation: WorldSource.split"] == "'validation'"
  assert prepare["prepare.beam"] == "@BeamConfig()" and "prepare.run_dir" not in prepare


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
      [
        "anchor/train has",
        "'train.steps = 5'",
        "'train.steps = 6'",
        "step 3 had the learning rate 0.000",
        "delete anchor",
      ],
    ),
    ("anchor/train.steps = 4", ["'train.steps = 4'", "5 steps are done"]),
    ("OptimizerConfig.peak_learning_rate = 0.1", ["peak_learning_rate = 0.001'", "step 1 had", "would have 0.1"]),
    ("anchor/train.seed = 1", ["'train.seed = 0'", "'train.seed = 1'", "train.seed decides what it makes"]),
    ("WorldConfig.seed = 1", ["cluster has", "'WorldConfig.seed = 0'", "'WorldConfig.seed = 1'"]),
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


OPERATION = (
  "train.log_every = 7",
  "train.max_skipped = 3",
  "CheckpointConfig.every = 2",
  "CheckpointConfig.keep = 9",
  "AnchorConfig.remat = 'full'",
  "AnchorConfig.attention = 'splash'",
  "AnchorConfig.logits_chunk = 16",
  "MeshConfig.model = 2",
  "train.profile_steps = (2, 4)",
  "train.wandb_project = 'memories'",
  "anchor/train.validation = @ValidationConfig()\nValidationConfig.dataset = 'packed/validation'",
  "train.dataset = '/elsewhere/packed/train'",
  "WorldSource.data_dir = '/elsewhere'",
  "BeamConfig.runner = 'DataflowRunner'",
  "ReadConfig.max_bad_share = 0.5",
  "TreeConfig.seed = 0",
)


def test_what_only_says_how_a_finished_stage_is_done_may_change(tmp_path):
  """Nothing of it is done again, and the record tells what the command changed."""
  begin(tmp_path, planned := stages())
  finish(tmp_path, planned, "cluster", "prepare", "anchor/train")
  now = stages(*OPERATION)
  changes = Record(str(tmp_path)).changes(now)
  assert changes["cluster"]["BeamConfig.runner"] == ("'DirectRunner'", "'DataflowRunner'")
  assert changes["anchor/train"]["train.validation"] == ("None", "@ValidationConfig()")
  assert "ValidationConfig.dataset" not in changes["anchor/train"]  # the object says it all
  assert {short(name) for changed in changes.values() for name in changed} == {
    line.partition(" = ")[0].removeprefix("anchor/") for line in OPERATION[:-1]
  }
  begin(tmp_path, now)
  held = json.loads((tmp_path / NAME).read_text())
  assert held["train anchor"]["finished"] and held["train anchor"]["settings"]["train.log_every"] == "7"
  assert not Record(str(tmp_path)).changes(now)


CONSTANT = "OptimizerConfig.final_learning_rate = 1e-3"  # as the peak: after the warmup all steps have it


def test_a_longer_run_whose_past_is_the_same_may_follow(tmp_path):
  begin(tmp_path, planned := stages(CONSTANT))
  finish(tmp_path, planned, "anchor/train")
  begin(tmp_path, stages(CONSTANT, "anchor/train.steps = 60"))
  assert not json.loads((tmp_path / NAME).read_text())["train anchor"]["finished"]
  begin(tmp_path, stages(CONSTANT, "anchor/train.steps = 5"))  # as many as are done


def test_another_schedule_may_follow_until_the_past_differs(tmp_path):
  """Two of ten steps of warmup are done: what comes after the warmup may change."""
  begin(tmp_path, stages("train.steps = 20", "OptimizerConfig.warmup_steps = 10"))
  (tmp_path / "anchor/checkpoints/2").mkdir(parents=True)
  begin(
    tmp_path,
    stages("train.steps = 30", "OptimizerConfig.warmup_steps = 10", "OptimizerConfig.final_learning_rate = 0.0"),
  )
  with pytest.raises(
    InputError, match="warmup_steps = 11'.*step 1 had the learning rate 0.0001 and would have 9.09091e-05"
  ):
    begin(
      tmp_path,
      stages("train.steps = 30", "OptimizerConfig.warmup_steps = 11", "OptimizerConfig.final_learning_rate = 0.0"),
    )


def test_a_training_that_others_started_from_does_not_go_on(tmp_path):
  begin(tmp_path, planned := stages(CONSTANT))
  finish(tmp_path, planned, "anchor/train", "cotrain/train")
  with pytest.raises(
    InputError, match=r"cotrain/train has begun with what it made;.* delete anchor/checkpoints, cotrain/"
  ):
    begin(tmp_path, stages(CONSTANT, "anchor/train.steps = 60"))
  begin(tmp_path, stages(CONSTANT, "cotrain/train.steps = 60"))  # only `evaluate` reads that, which is done again


def test_a_version_that_adds_a_field_finds_the_stages_of_an_older_one_the_same(tmp_path):
  begin(tmp_path, planned := stages())
  finish(tmp_path, planned, "cluster", "prepare", "anchor/train")
  path = tmp_path / NAME
  held = json.loads(path.read_text())
  added = ("MemoryConfig.layers", "Objective.z_loss", "train.objective", "PackConfig.tails", "TreeConfig.balance")
  for stage in held.values():
    for name in added:
      stage["settings"].pop(name, None)
    stage["settings"]["train.given_up"] = "3"  # and one that drops a field
  path.write_text(json.dumps(held))
  begin(tmp_path, stages())
  path.write_text(json.dumps(held))
  with pytest.raises(InputError, match=r"prepare has .*PackConfig\.tails = 'pad'.*now: .PackConfig\.tails = 'mix'"):
    begin(tmp_path, stages("PackConfig.tails = 'mix'"))


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
