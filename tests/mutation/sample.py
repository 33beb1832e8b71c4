"""Draws the mutants of a campaign: `SIZES` of each room, by `SEED`, each of a room's mutants as likely as another.

A room's sample is a function of the seed and of the room's files.
"""

import pathlib
import random

from mutants import Mutant, name, places

SEED = 20261125
SIZES = {
  "models": 50,
  "parallel": 30,
  "training": 60,
  "retrieval": 45,
  "data": 75,
  "evaluation": 45,
  "inference": 15,
  "tpu_setup": 40,
}


def draw(root: pathlib.Path, room: str) -> list[Mutant]:
  """The sample of a room."""
  folder = root / (room if room == "tpu_setup" else f"hiermem_jax/{room}")
  files = sorted(str(path.relative_to(root)) for path in folder.rglob("*.py"))
  everywhere = [place for file in files for place in places(root, file)]
  random.Random(f"{SEED} {room}").shuffle(everywhere)
  sample = []
  for place in everywhere:
    mutant = name(root, place)
    if mutant is not None:
      sample.append(mutant)
    if len(sample) == SIZES[room]:
      break
  return sample
