"""The synthetic world as TFDS datasets: `synthetic_world` (documents) and `synthetic_world_probes`.

Importing this module registers both with TFDS, and imports TensorFlow. TFDS prepares a
world in <data_dir>/synthetic_world/<config>/<version>. The name of a config that is not
one of the presets is the fingerprint of its `WorldConfig`, so every world has a folder of
its own.
"""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from hiermem_jax.data.world import generate as world_lib
from hiermem_jax.data.world.generate import WorldConfig


@dataclasses.dataclass(eq=False)
class WorldBuilderConfig(tfds.core.BuilderConfig):
  """A TFDS config with the settings of the world."""

  world: WorldConfig = dataclasses.field(default_factory=WorldConfig)


_PRESETS = [
  WorldBuilderConfig(name="quickstart", world=world_lib.QUICKSTART, description="1,536 entities."),
  WorldBuilderConfig(name="tiny", world=world_lib.TINY, description="24 entities, for tests."),
]


def custom_config(world: WorldConfig) -> WorldBuilderConfig:
  """The TFDS config of a world, named by the world's fingerprint."""
  return WorldBuilderConfig(name=f"world_{world.fingerprint}", world=world, description=repr(world))


def _text_features(*names: str) -> dict[str, tfds.features.Text]:
  return {name: tfds.features.Text() for name in names}


class SyntheticWorld(tfds.core.GeneratorBasedBuilder):
  """Documents of the world, splits `train` and `validation`, in the order of `World`."""

  VERSION = tfds.core.Version(world_lib.VERSION)
  BUILDER_CONFIGS = _PRESETS

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(_text_features("id", "text", "kind", "domain"))
    return tfds.core.DatasetInfo(
      builder=self,
      description="Invented entities with facts of known, Zipf-distributed frequency.",
      features=features,
      disable_shuffling=True,  # they are shuffled already
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    world = world_lib.generate(self.builder_config.world)
    return {"train": enumerate(world.train), "validation": enumerate(world.validation)}

  def _generate_examples(self):
    raise NotImplementedError("_split_generators yields the examples")


class SyntheticWorldProbes(tfds.core.GeneratorBasedBuilder):
  """Probes of the world, split `test`, in the order of `World`."""

  VERSION = tfds.core.Version(world_lib.VERSION)
  BUILDER_CONFIGS = _PRESETS

  def _info(self) -> tfds.core.DatasetInfo:
    texts = _text_features("prompt", "paraphrase", "answer", "relation", "kind", "domain", "entity")
    return tfds.core.DatasetInfo(
      builder=self,
      description="Prompts for the facts of `synthetic_world`, and how often its training split states each.",
      features=tfds.features.FeaturesDict({**texts, "count": tfds.features.Scalar(np.int64)}),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {"test": enumerate(world_lib.generate(self.builder_config.world).probes)}

  def _generate_examples(self):
    raise NotImplementedError("_split_generators yields the examples")
