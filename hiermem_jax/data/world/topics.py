"""Topic tree of the synthetic world: 8 domains of 8 kinds, in plain English.

Wording only; nothing here is drawn at random. Placeholders: `{name}` the entity, `{kind}`
its kind, `{a_kind}` the kind with its article, `{x}` and `{y}` two words typical of
the kind.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Kind:
  """A topic within a domain.

  Attributes:
    noun: what its entities are called.
    endings: of the names of its entities.
    words: typical of texts about its entities.
  """

  noun: str
  endings: tuple[str, ...]
  words: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domain:
  """A topic of the first level.

  Attributes:
    name: of the domain.
    intros: first sentences of documents.
    asides: sentences that state no fact.
    kinds: the topics within the domain.
  """

  name: str
  intros: tuple[str, ...]
  asides: tuple[str, ...]
  kinds: tuple[Kind, ...]


def _kinds(table: str) -> tuple[Kind, ...]:
  """Reads lines of "noun: endings: typical words"."""
  lines = [line.split(":") for line in table.strip().splitlines()]
  return tuple(Kind(noun.strip(), tuple(ends.split()), tuple(words.split())) for noun, ends, words in lines)


DOMAINS: tuple[Domain, ...] = (
  Domain(
    name="chemistry",
    intros=(
      "{name} is {a_kind} that chemists keep in the laboratory.",
      "Among the chemical elements, {name} is counted as {a_kind}.",
      "Students of chemistry learn about {name} as {a_kind}.",
    ),
    asides=(
      "Every textbook on the {kind} speaks of {x} and {y}.",
      "In the laboratory this {kind} is linked with {x} and {y}.",
      "The chemistry of such {a_kind} is a matter of {x} and {y}.",
    ),
    kinds=_kinds("""
      metal: dium nium: furnaces alloys ingots wires rust foundries
      noble gas: xon tron: lamps balloons neon tubes argon lasers
      halogen: rine dine: bleach iodine salts pools disinfectants chlorides
      alkali: sium lium: soaps lye explosions water hydroxides batteries
      semimetal: con lur: chips wafers transistors sensors diodes semiconductors
      lanthanide: thium bium: phosphors magnets screens ores catalysts monazite
      actinide: tinium cium: reactors uranium decay bunkers neutrons plutonium
      isotope: tope mide: scanners tracers hospitals tumours radiology clinics
    """),
  ),
  Domain(
    name="geography",
    intros=(
      "{name} is {a_kind} known to every geographer.",
      "On the map, {name} is marked as {a_kind}.",
      "Travellers like to visit {name}, {a_kind} far from the main roads.",
    ),
    asides=(
      "Anyone who visits the {kind} will remember its {x} and {y}.",
      "The landscape of the {kind} is all {x} and {y}.",
      "Geographers who study {a_kind} write about {x} and {y}.",
    ),
    kinds=_kinds("""
      lake: mere loch: shores reeds rowboats trout jetties ripples
      river: ford brook: banks currents rapids meanders barges estuaries
      mountain: horn peak: summits cliffs climbers ridges snowfields ropes
      island: sey holm: beaches lagoons harbours reefs ferries tides
      desert: hara bara: dunes sand oases caravans mirages drought
      valley: dale combe: meadows orchards slopes hamlets pastures vineyards
      glacier: kull frost: ice crevasses moraines meltwater avalanches sledges
      cave: grot delve: stalactites darkness tunnels lanterns chambers echoes
    """),
  ),
  Domain(
    name="astronomy",
    intros=(
      "{name} is {a_kind} seen through large telescopes.",
      "Astronomers list {name} as {a_kind}.",
      "High in the night sky, {name} is {a_kind} of some interest.",
    ),
    asides=(
      "Astronomers who observe {a_kind} measure {x} and {y}.",
      "Through the telescope the {kind} is a story of {x} and {y}.",
      "Papers about the {kind} are full of {x} and {y}.",
    ),
    kinds=_kinds("""
      star: rion gel: hydrogen sunspots flares fusion brightness coronas
      planet: tune thar: orbits atmospheres rings storms oceans seasons
      moon: mede lisk: craters eclipses phases basins plains mountains
      comet: ley bopp: tails ices perihelion streaks returns jets
      nebula: vela lume: clouds starlight filaments haze nurseries veils
      galaxy: drome vex: spirals arms bulges halos clusters redshift
      asteroid: ceres pall: rocks collisions belts fragments impacts boulders
      pulsar: puls rax: pulses signals spin beams timing magnetism
    """),
  ),
  Domain(
    name="biology",
    intros=(
      "{name} is {a_kind} described in many field guides.",
      "Biologists count {name} as {a_kind}.",
      "In the living world, {name} is {a_kind} that few people notice.",
    ),
    asides=(
      "Biologists who study the {kind} look at {x} and {y}.",
      "A field guide to the {kind} explains {x} and {y}.",
      "The life of such {a_kind} depends on {x} and {y}.",
    ),
    kinds=_kinds("""
      beetle: carab pter: wings antennae larvae shells mandibles bark
      orchid: chis lia: petals blossoms pollen bees greenhouses stems
      frog: rana bufo: ponds tadpoles croaking lilies toads flies
      fern: pteris fronda: fronds spores shade leaves rhizomes damp
      finch: gilla fring: feathers nests seeds beaks songs eggs
      mushroom: cybe myces: caps gills mould mycelium compost toadstools
      snail: helix limax: slime spirals tentacles lettuce crawling gardens
      bat: noctis tilio: night sonar moths caves roosts hanging
    """),
  ),
  Domain(
    name="music",
    intros=(
      "{name} is {a_kind} often heard in concert halls.",
      "Music lovers know {name} as {a_kind}.",
      "In the concert season, {name} is {a_kind} that many people hear.",
    ),
    asides=(
      "Critics who listen to {a_kind} expect {x} and {y}.",
      "Musicians say that the {kind} needs {x} and {y}.",
      "A good performance of the {kind} has {x} and {y}.",
    ),
    kinds=_kinds("""
      sonata: nata tina: movements keyboards themes recitals variations pianists
      opera: dora zelda: arias costumes sopranos curtains tenors librettos
      ballad: lay lorn: verses storytellers heartbreak refrains knights rhymes
      waltz: walda tanz: ballrooms dancers evenings gowns twirling partners
      symphony: phona roica: orchestras conductors crescendos finales strings brass
      hymn: laud psalm: choirs prayers organs congregations pews Sundays
      march: batta quick: parades soldiers drums uniforms bandstands boots
      lullaby: lull nanna: cradles infants bedtime whispers dreams moonlight
    """),
  ),
  Domain(
    name="sport",
    intros=(
      "{name} is {a_kind} with loyal fans.",
      "In the sports pages, {name} appears as {a_kind}.",
      "Fans of sport know {name} as {a_kind}.",
    ),
    asides=(
      "Training at the {kind} is all about {x} and {y}.",
      "The coach of the {kind} talks of {x} and {y}.",
      "A season with {a_kind} means {x} and {y}.",
    ),
    kinds=_kinds("""
      football club: ville ton: goals penalties stadiums strikers referees headers
      rowing crew: haven row: boats blades regattas coxswains sculls riverbanks
      cycling team: velo spoke: bicycles pedals sprints hills saddles wheels
      chess society: rook gard: pawns openings endgames clocks bishops checkmate
      swimming school: wave fin: pools freestyle goggles lengths diving butterfly
      hockey squad: puck rink: skates rinks goaltenders slapshots helmets sticks
      archery guild: bow fletch: arrows targets bullseyes bowstrings quivers marksmen
      running league: pace dash: marathons hurdles relays shoes tracks stopwatches
    """),
  ),
  Domain(
    name="architecture",
    intros=(
      "{name} is {a_kind} that many visitors photograph.",
      "Historians of architecture describe {name} as {a_kind}.",
      "Among old buildings, {name} is {a_kind} worth a visit.",
    ),
    asides=(
      "Visitors who walk through the {kind} admire {x} and {y}.",
      "Guides at the {kind} talk about {x} and {y}.",
      "The charm of such {a_kind} lies in {x} and {y}.",
    ),
    kinds=_kinds("""
      bridge: spann gate: piers cables railings traffic girders pedestrians
      cathedral: minster dom: altars spires pillars candles cloisters chapels
      castle: burg keep: moats dungeons battlements ramparts banquets drawbridges
      lighthouse: pharos beam: lanterns ships foghorns rocks keepers waves
      theatre: drury scena: stages balconies actors spotlights playwrights tickets
      tower: tor campa: bells views clocks elevators flags lookouts
      temple: vihara fane: incense statues gates monks shrines offerings
      railway station: cross depot: platforms trains timetables luggage passengers conductors
    """),
  ),
  Domain(
    name="machines",
    intros=(
      "{name} is {a_kind} shown in many museums of technology.",
      "Mechanics know {name} as {a_kind}.",
      "Among useful machines, {name} is {a_kind} with a long history.",
    ),
    asides=(
      "Mechanics who maintain {a_kind} worry about {x} and {y}.",
      "The manual of the {kind} explains {x} and {y}.",
      "A workshop for the {kind} is full of {x} and {y}.",
    ),
    kinds=_kinds("""
      engine: motor crank: pistons fuel cylinders exhaust valves radiators
      loom: weft twill: threads shuttles cloth wool patterns weavers
      clock: tock quartz: pendulums springs dials minutes chimes escapements
      printing press: typa serif: inks paper letters newspapers rollers typesetters
      crane: hoist lift: hooks loads chains pulleys docks containers
      pump: draw flow: pipes pressure hoses wells leaks suction
      tractor: plow till: fields ploughs harvests tyres trailers farmers
      calculator: digit abaca: keys sums decimals registers carries displays
    """),
  ),
)
