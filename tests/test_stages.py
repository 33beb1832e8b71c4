"""What --stages selects, and what must be there before it runs."""

import pytest

from hiermem_jax import stages
from hiermem_jax.errors import InputError
from hiermem_jax.verbs import Stage

_NAMES = ("cluster", "prepare", "anchor/train", "baseline/train", "cotrain/train", "evaluate")
CHAIN = tuple(Stage(name=name, call=print, number=n, total=6) for n, name in enumerate(_NAMES, start=1))
_TRAIN = {"dataset": "packed/train", "steps": 7}
ARGUMENTS = {
  "cluster": {"directory": "tree"},
  "prepare": {"directory": "packed", "tree": "tree"},
  "anchor/train": _TRAIN | {"directory": "anchor"},
  "baseline/train": _TRAIN | {"directory": "baseline", "run": {"init_from": "anchor"}},
  "cotrain/train": _TRAIN | {"directory": "cotrain", "run": {"init_from": "./anchor/"}},
  "evaluate": {"directory": "evaluation", "validation": "packed/validation", "names": ("cotrain", "tree")},
}


@pytest.mark.parametrize(
  "text, numbers",
  [
    (None, "123456"),
    ("cluster", "1"),
    ("cotrain/train", "5"),
    ("cotrain", "5"),
    ("cotrain..", "56"),
    ("evaluate, prepare", "26"),
    ("prepare,baseline..,evaluate", "2456"),
    ("cluster..", "123456"),
  ],
)
def test_names_and_ranges(text, numbers):
  assert "".join(str(stage.number) for stage in stages.chosen(CHAIN, text)) == numbers


@pytest.mark.parametrize(
  "text, message",
  [
    ("cotrian", "--stages=cotrian: 'cotrian' is no stage of this run; did you mean cotrain? The stages are cluster, "),
    ("cluster,", "--stages=cluster,: '' is no stage of this run; The stages are cluster, prepare, anchor/train, "),
    ("..cluster", "--stages=..cluster: '..cluster' is no stage of this run; did you mean cluster? The stages are "),
    ("train", "--stages=train: train is anchor/train, baseline/train, cotrain/train; name one of them"),
  ],
)
def test_names_that_are_none(text, message):
  with pytest.raises(InputError) as error:
    stages.chosen(CHAIN, text)
  assert str(error.value).startswith(message)


def test_what_left_out_stages_make_must_be_there(tmp_path):
  """A training is finished when it has the checkpoint of its last step."""

  def check(text):
    stages.require_made(CHAIN, stages.chosen(CHAIN, text), str(tmp_path), ARGUMENTS.__getitem__)

  def missing(text):
    with pytest.raises(InputError) as error:
      check(text)
    return str(error.value).removeprefix(str(tmp_path))

  check(None)
  check("cluster,prepare,anchor,cotrain")  # nothing needs the baseline
  line = ": {} reads it, and {}, which makes it, has not finished here; add {} to --stages"
  assert missing("prepare..") == "/tree" + line.format("prepare", "cluster", "cluster")
  assert missing("cluster,anchor") == "/packed" + line.format("anchor/train", "prepare", "prepare")
  for path in ("tree/report.json", "packed/train/manifest.json", "anchor/checkpoints/6"):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
  check("anchor..")
  assert missing("cotrain..") == "/anchor" + line.format("cotrain/train", *["anchor/train"] * 2)
  (tmp_path / "anchor/checkpoints/7").touch()
  check("cotrain..")
  check("prepare,cotrain")
  assert missing("evaluate") == "/cotrain" + line.format("evaluate", *["cotrain/train"] * 2)


def test_titles():
  assert [stage.title for stage in CHAIN[1:3]] == ["2/6 prepare", "3/6 train anchor"]
