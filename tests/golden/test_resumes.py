"""Runs of earlier versions go on with this one: what `make_resumes.py` wrote with each of them, in resumes/VERSION.

A release adds its own:

  python tests/make_resumes.py tests/golden/resumes/VERSION
"""

import json
import pathlib
import re
import shutil

import make_resumes
import pytest

from hiermem_jax import configuration
from hiermem_jax.plan import Record

_RESUMES = pathlib.Path(__file__).parent / "resumes"
_VERSIONS = sorted(path.name for path in _RESUMES.iterdir() if path.is_dir())


def lines(text: str) -> list[str]:
  """The bindings of a resolved configuration, one each."""
  return [line for line in re.sub(r"\\\n\s*|\n\s+", " ", text).splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("version", _VERSIONS)
@pytest.mark.parametrize("kind, verb", [("everything", "run"), ("finished", "run"), ("interrupted", "train")])
def test_a_configuration_keeps_its_lines_and_its_stages_their_results(tmp_path, version, kind, verb):
  """New lines, of what this version adds, may stand beside the old ones. Every result is there, and none is refused."""
  shutil.copytree(_RESUMES / version / kind, tmp_path, dirs_exist_ok=True)
  configuration.load([str(tmp_path / "config.gin")], [])
  text = configuration.dry_run(verb, run_dir="")
  assert set(lines((tmp_path / "config.gin").read_text())) - set(lines(text)) == set()
  record, planned = Record(str(tmp_path)), configuration.planned()
  for stage in planned:
    made = tmp_path / stage.outputs()[0]
    made.mkdir(parents=True, exist_ok=True)
    (made / "100").touch()
    record.finish(stage.key)
  record.check(planned)
  assert record.covers(planned) and record.changes(planned) == {}
  record.begin(planned)
  assert all(stage["finished"] for stage in json.loads((tmp_path / "stages.json").read_text()).values())


@pytest.mark.parametrize("version", _VERSIONS)
def test_an_interrupted_training_goes_on_elsewhere_and_otherwise(tmp_path, version, write_packed, capsys):
  """Its dataset has moved, and what only says how it is done is another; then other data are refused."""
  run_dir, moved = tmp_path / "run", tmp_path / "moved"
  shutil.copytree(_RESUMES / version / "interrupted", run_dir)
  make_resumes.pack(moved, write_packed)
  before = (run_dir / "config.gin").read_text()
  operation = ("train.log_every = 2", "AnchorConfig.remat = 'full'", "AnchorConfig.logits_chunk = 4")
  command = ["train", f"--gin_file={run_dir}/config.gin", f"--run_dir={run_dir}"]
  command += [f"--gin_bindings={binding}" for binding in (f"train.dataset = '{moved}'", *operation)]
  assert make_resumes.call(*command) == 0
  assert (run_dir / "checkpoints/6").is_dir()
  losses = [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
  assert losses and all(0 < loss < 5 for loss in losses)
  after = lines((run_dir / "config.gin").read_text())
  assert set(operation) <= set(after)
  changed = {line.partition(" = ")[0] for line in set(lines(before)) - set(after)}
  assert changed == {"train.dataset", "train.log_every", "AnchorConfig.remat", "AnchorConfig.logits_chunk"}
  starts = [json.loads(line) for line in (run_dir / "runs.jsonl").read_text().splitlines()]
  assert starts[1]["changed"]["train"]["train.log_every"] == ["1", "2"]

  make_resumes.pack(moved, write_packed, seed=1)
  assert make_resumes.call(*command) == 2
  assert "its checkpoints have dataset_fingerprint" in capsys.readouterr().err
