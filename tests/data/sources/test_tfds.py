"""TFDS datasets and the synthetic world as sources: parts, limits, and TensorFlow only when they are read."""

import subprocess
import sys

import pytest

from hiermem_jax.data.sources import TfdsSource, WorldSource
from hiermem_jax.data.sources.tfds import without_markers
from hiermem_jax.data.world.generate import TINY
from hiermem_jax.errors import InputError


def test_wiki40b_markers():
  raw = "\n_START_ARTICLE_\nAda\n_START_SECTION_\nLife\n_START_PARAGRAPH_\nBorn._NEWLINE_Died."
  assert without_markers(raw) == "Ada\nLife\nBorn.\nDied."


@pytest.mark.slow
def test_parts_of_a_tfds_split_in_turn_are_the_split(tmp_path):
  source = WorldSource(world=TINY, split="train", data_dir=str(tmp_path))
  parts = source.parts()
  assert [r["text"] for part in parts for r in source.read(part)] == [r["text"] for r in source.records()]
  limited = WorldSource(world=TINY, split="train", data_dir=str(tmp_path), max_records=3)
  assert [r["text"] for r in limited.records()] == [r["text"] for r in source.records()][:3]
  assert "data_dir" not in repr(source)
  named = TfdsSource(name="synthetic_world/tiny", split="train[:10%]", data_dir=str(tmp_path))
  assert named.parts() == ["train[:10%]"]


@pytest.mark.slow
def test_a_dataset_that_another_process_has_just_prepared(tmp_path, monkeypatch):
  """The slower one of two fails to put its own in place; it reads the other's."""
  from hiermem_jax.data.world.tfds import SyntheticWorldProbes

  source = WorldSource(world=TINY, split="probes", data_dir=str(tmp_path / "a"))
  expected = list(source.records())
  prepare = SyntheticWorldProbes.download_and_prepare

  def lose_the_race(self, **settings):
    prepare(type(self)(config=self.builder_config, data_dir=tmp_path / "b"), **settings)
    raise FileExistsError("Cannot rename incomplete.ALWRV3: Destination already exists")

  monkeypatch.setattr(SyntheticWorldProbes, "download_and_prepare", lose_the_race)
  assert list(WorldSource(world=TINY, split="probes", data_dir=str(tmp_path / "b")).records()) == expected


def test_world_source_wants_a_known_split():
  with pytest.raises(InputError, match="give train, validation or probes"):
    WorldSource(world=TINY, split="test")


def test_import_and_construction_do_not_load_tensorflow():
  code = (
    "import sys; from hiermem_jax.data import sources; from hiermem_jax.data.world.generate import TINY;"
    "sources.TfdsSource(name='c4', split='train'); sources.WorldSource(world=TINY, split='train');"
    "sys.exit(any(m.startswith('tensorflow') for m in sys.modules))"
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_tfds_limit():
  with pytest.raises(InputError, match=r"TfdsSource\.max_records"):
    TfdsSource(name="c4", split="train", max_records=0)
