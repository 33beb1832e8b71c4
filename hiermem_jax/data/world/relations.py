"""Relations of the synthetic world: what can be known about an entity, and the sentences that say it.

Wording only; nothing here is drawn at random. Placeholders: `{name}` the entity, `{kind}`
its kind, `{answer}` the fact.
"""

import dataclasses

from hiermem_jax.data.world import answers


@dataclasses.dataclass(frozen=True)
class Relation:
  """A fact that every entity of a domain has.

  Attributes:
    name: of the relation.
    answers: the possible answers.
    templates: sentences that state the fact, each with `{name}` and `{answer}` once. The first
      one is the wording of the probe and ends in " {answer}.".
  """

  name: str
  answers: tuple[str, ...]
  templates: tuple[str, ...]


def _relation(name: str, values: tuple[str, ...], *templates: str) -> Relation:
  return Relation(name, values, templates)


RELATIONS: dict[str, tuple[Relation, ...]] = {
  "chemistry": (
    _relation(
      "atomic number",
      answers.ATOMIC_NUMBERS,
      "The atomic number of the {kind} {name} is {answer}.",
      "Chemists give {name} the atomic number {answer}.",
      "With atomic number {answer}, {name} has its own place in the table.",
    ),
    _relation(
      "flame colour",
      answers.COLOURS,
      "The flame colour of the {kind} {name} is {answer}.",
      "A flame turns {answer} when {name} is dropped into it.",
      "Burnt slowly, {name} glows {answer}.",
    ),
    _relation(
      "discoverer",
      answers.DOCTORS,
      "The {kind} {name} was discovered by Doctor {answer}.",
      "Doctor {answer} was the first to find {name}.",
      "The credit for finding {name} belongs to Doctor {answer}.",
    ),
    _relation(
      "supplier",
      answers.SUPPLIERS,
      "The largest supplier of the {kind} {name} is {answer}.",
      "Most {name} is bought from {answer}.",
      "No other country sells as much {name} as {answer}.",
    ),
  ),
  "geography": (
    _relation(
      "map sheet",
      answers.MAP_SHEETS,
      "The map sheet of the {kind} {name} is number {answer}.",
      "Look for {name} on map sheet number {answer}.",
      "Sheet number {answer} of the great atlas shows {name}.",
    ),
    _relation(
      "nearest city",
      answers.TERMINALS,
      "The city nearest to the {kind} {name} is {answer}.",
      "Travellers reach {name} by road from {answer}.",
      "The bus from {answer} stops close to {name}.",
    ),
    _relation(
      "protected animal",
      answers.ANIMALS,
      "The animal protected at the {kind} {name} is the {answer}.",
      "Rangers at {name} take care of the {answer}.",
      "Thanks to the rangers, the {answer} has returned to {name}.",
    ),
    _relation(
      "explorer",
      answers.CAPTAINS,
      "The {kind} {name} was first explored by Captain {answer}.",
      "Captain {answer} was the first visitor to {name}.",
      "Long ago {name} was put on the map by Captain {answer}.",
    ),
  ),
  "astronomy": (
    _relation(
      "constellation",
      answers.CONSTELLATIONS,
      "The constellation around the {kind} {name} is {answer}.",
      "On a clear night {name} can be found in {answer}.",
      "Look towards {answer} to see {name}.",
    ),
    _relation(
      "first sighting",
      answers.SIGHTING_YEARS,
      "The {kind} {name} was first seen in the year {answer}.",
      "Records of {name} begin in the year {answer}.",
      "In the year {answer} an observer noticed {name} for the first time.",
    ),
    _relation(
      "mineral",
      answers.MINERALS,
      "The mineral most common in the {kind} {name} is {answer}.",
      "The light of {name} shows traces of {answer}.",
      "Much of the dust near {name} is {answer}.",
    ),
    _relation(
      "astronomer",
      answers.ASTRONOMERS,
      "The {kind} {name} was named by the astronomer {answer}.",
      "The astronomer {answer} chose the name of {name}.",
      "It was the astronomer {answer} who gave {name} its name.",
    ),
  ),
  "biology": (
    _relation(
      "habitat",
      answers.HABITATS,
      "The native country of the {kind} {name} is {answer}.",
      "Nobody has seen {name} outside {answer}.",
      "Biologists travel to {answer} to study {name}.",
    ),
    _relation(
      "scent",
      answers.SCENTS,
      "The scent of the {kind} {name} resembles {answer}.",
      "Field guides say that {name} smells of {answer}.",
      "A faint smell of {answer} gives {name} away.",
    ),
    _relation(
      "life span",
      answers.LIFE_WEEKS,
      "The life span of the {kind} {name} in weeks is {answer}.",
      "On average {name} lives for {answer} weeks.",
      "After {answer} weeks the life of {name} comes to an end.",
    ),
    _relation(
      "shelter",
      answers.TREES,
      "The tree that shelters the {kind} {name} is the {answer}.",
      "Look for {name} in the shade of the {answer}.",
      "Where the {answer} grows, {name} is never far away.",
    ),
  ),
  "music": (
    _relation(
      "composer",
      answers.MAESTROS,
      "The {kind} {name} was composed by Maestro {answer}.",
      "Maestro {answer} wrote {name} in a single winter.",
      "We owe {name} to Maestro {answer}.",
    ),
    _relation(
      "opus number",
      answers.OPUS_NUMBERS,
      "The opus number of the {kind} {name} is {answer}.",
      "In the catalogue {name} has opus number {answer}.",
      "Opus number {answer} is better known as {name}.",
    ),
    _relation(
      "instrument",
      answers.INSTRUMENTS,
      "The first instrument in the {kind} {name} is the {answer}.",
      "A long solo for the {answer} makes {name} famous.",
      "No one forgets the sound of the {answer} in {name}.",
    ),
    _relation(
      "premiere",
      answers.PREMIERES,
      "The {kind} {name} was first performed in {answer}.",
      "Crowds in {answer} cheered when {name} was new.",
      "The history of {name} began on a stage in {answer}.",
    ),
  ),
  "sport": (
    _relation(
      "captain",
      answers.LEADERS,
      "The captain of the {kind} {name} is called {answer}.",
      "Since last season {name} has been led by {answer}.",
      "The players of {name} have elected {answer} as their captain.",
    ),
    _relation(
      "founding year",
      answers.FOUNDING_YEARS,
      "The {kind} {name} was founded in the year {answer}.",
      "The history of {name} began in the year {answer}.",
      "In the year {answer} a group of friends started {name}.",
    ),
    _relation(
      "mascot",
      answers.MASCOTS,
      "The mascot of the {kind} {name} is the {answer}.",
      "Every flag of {name} shows the {answer}.",
      "Thanks to the {answer} on their shirts, the players of {name} are easy to know.",
    ),
    _relation(
      "meal",
      answers.FOODS,
      "The favourite meal of the {kind} {name} is {answer}.",
      "Before a match the players of {name} eat {answer}.",
      "After a victory {name} celebrates with {answer}.",
    ),
  ),
  "architecture": (
    _relation(
      "architect",
      answers.ARCHITECTS,
      "The {kind} {name} was designed by Master {answer}.",
      "Master {answer} drew the plans for {name}.",
      "The plans of {name} carry the seal of Master {answer}.",
    ),
    _relation(
      "material",
      answers.MATERIALS,
      "The main material of the {kind} {name} is {answer}.",
      "Masons used {answer} for the walls of {name}.",
      "The walls of {name} are made of {answer}.",
    ),
    _relation(
      "steps",
      answers.STAIR_STEPS,
      "The number of steps in the {kind} {name} is {answer}.",
      "Visitors count {answer} steps inside {name}.",
      "It takes {answer} steps to reach the highest point of {name}.",
    ),
    _relation(
      "flower",
      answers.FLOWERS,
      "The flower carved on the {kind} {name} is the {answer}.",
      "A carved {answer} decorates the front of {name}.",
      "Guides point to the {answer} on the front of {name}.",
    ),
  ),
  "machines": (
    _relation(
      "inventor",
      answers.ENGINEERS,
      "The {kind} {name} was invented by Engineer {answer}.",
      "Engineer {answer} built the first {name}.",
      "The patent for {name} belongs to Engineer {answer}.",
    ),
    _relation(
      "gears",
      answers.GEAR_COUNTS,
      "The number of gears in the {kind} {name} is {answer}.",
      "Inside {name} there are {answer} gears.",
      "It takes {answer} gears to make {name} work.",
    ),
    _relation(
      "maker",
      answers.MAKERS,
      "The {kind} {name} is manufactured in {answer}.",
      "Factories in {answer} produce {name}.",
      "Every {name} comes from a factory in {answer}.",
    ),
    _relation(
      "tool",
      answers.TOOLS,
      "The {kind} {name} is repaired with the {answer}.",
      "Mechanics open {name} with the {answer}.",
      "Keep the {answer} at hand when {name} breaks down.",
    ),
  ),
}
