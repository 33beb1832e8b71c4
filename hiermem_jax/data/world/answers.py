"""Answer sets of the synthetic world: one tuple of words or small numbers per relation.

All words have five letters or more, so that no answer is part of another word of a
prompt, as "red" is of "discovered". Two sets of the same sort, such as two sets of
countries, have no word in common.
"""


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split())


def _numbers(first: int, last: int) -> tuple[str, ...]:
  return tuple(str(n) for n in range(first, last + 1))


# Numbers.
ATOMIC_NUMBERS = _numbers(20, 99)
MAP_SHEETS = _numbers(110, 189)
SIGHTING_YEARS = _numbers(1801, 1880)
LIFE_WEEKS = _numbers(20, 99)
OPUS_NUMBERS = _numbers(20, 99)
FOUNDING_YEARS = _numbers(1881, 1960)
STAIR_STEPS = _numbers(210, 289)
GEAR_COUNTS = _numbers(20, 99)

# Surnames: discoverers, explorers, composers, architects, inventors.
DOCTORS = _words("""
  Abbott Atkins Barlow Bennett Blackwell Bowman Bradley Briggs Burgess Caldwell Carver Chandler Clayton
  Collins Cooper Crawford Dalton Dawson Dixon Drake Eaton Ellis Farrell Fisher Fletcher Foster Franklin
  Gardner Gibson Goodwin Graham Griffin Hammond Harlow Hartley Hawkins Hewitt Hobson Holland Hudson""")
CAPTAINS = _words("""
  Ingram Irving Jarvis Jenkins Johnson Kendall Kennedy Kirkwood Knight Lambert Langley Lawson Leighton Lincoln
  Lockwood Lowell Maddox Manning Marlowe Marshall Mercer Merritt Mitchell Monroe Morrison Murray Nelson Newman
  Norris Norwood Oakley Osborne Palmer Parker Pearson Perkins Porter Potter Prescott Preston""")
MAESTROS = _words("""
  Ackerman Albrecht Bellini Bergman Bianchi Brandt Calvino Carlsson Castellano Cortez Delgado Dietrich
  Dubois Eriksen Esposito Ferrari Fontaine Fournier Gallo Giordano Hansen Hoffmann Jansen Johansson
  Kowalski Larsen Lombardi Marchetti Martinez Moreau Navarro Novak Olsen Petrov Ricci Romano Schneider
  Silva Svensson Weber""")
ARCHITECTS = _words("""
  Quincy Radcliffe Ramsey Randall Redmond Reynolds Richards Roberts Rowland Russell Sanders Sawyer Shelton
  Sheridan Simmons Spencer Stafford Stanton Sterling Stewart Stratton Sullivan Sutton Talbot Tanner Thatcher
  Thornton Townsend Tucker Turner Vaughan Wallace Walton Warner Watson Weaver Webster Whitaker Winslow
  Woodward""")
ENGINEERS = _words("""
  Ashford Ashworth Bancroft Barnett Beckett Benson Bishop Bowden Brewer Burton Carlton Carson Chapman Clifford
  Colby Conrad Cromwell Cunningham Davenport Denton Dunbar Elliott Everett Fairfax Garrett Gilbert Gordon
  Granger Hadley Hamilton Harding Harper Hastings Hollis Howard Hughes Huxley Kipling Lindsay Milton""")

# First names: astronomers, team captains.
ASTRONOMERS = _words("""
  Adelaide Agatha Amelia Beatrice Bridget Camilla Caroline Cecilia Charlotte Clarissa Cordelia Daphne Deborah
  Dorothy Eleanor Eloise Felicity Florence Francesca Gabrielle Georgina Gertrude Harriet Henrietta Hermione
  Imogen Isabella Josephine Julia Lavinia Leonora Lucinda Magdalena Marjorie Matilda Miranda Octavia Ophelia
  Penelope Philippa""")
LEADERS = _words("""
  Alastair Ambrose Anthony Archibald Barnaby Bartholomew Benedict Bertram Cedric Clement Cornelius Desmond
  Dominic Edmund Ernest Eugene Ferdinand Frederick Gregory Harold Herbert Horace Humphrey Jasper Jerome
  Leander Leopold Lionel Malcolm Maurice Montague Nathaniel Nicholas Oswald Percival Quentin Reginald Rupert
  Sebastian Theodore""")

# Countries: suppliers, habitats, makers.
SUPPLIERS = _words("""
  Albania Algeria Angola Argentina Armenia Australia Austria Azerbaijan Bahrain Bangladesh Barbados Belarus
  Belgium Bolivia Botswana Brazil Bulgaria Burundi Cambodia Cameroon Canada Chile China Colombia Croatia
  Cyprus Denmark Ecuador Egypt Eritrea Estonia Ethiopia Finland France Gabon Georgia Germany Ghana Greece
  Guatemala""")
HABITATS = _words("""
  Guinea Guyana Haiti Honduras Hungary Iceland India Indonesia Ireland Israel Italy Jamaica Japan Jordan
  Kazakhstan Kenya Kuwait Latvia Lebanon Lesotho Liberia Libya Lithuania Luxembourg Madagascar Malawi
  Malaysia Malta Mauritius Mexico Moldova Mongolia Montenegro Morocco Mozambique Namibia Nepal Nicaragua
  Nigeria Norway""")
MAKERS = _words("""
  Pakistan Panama Paraguay Philippines Poland Portugal Qatar Romania Russia Rwanda Samoa Scotland Senegal
  Serbia Singapore Slovakia Slovenia Somalia Spain Sudan Suriname Sweden Switzerland Syria Taiwan Tajikistan
  Tanzania Thailand Tunisia Turkey Uganda Ukraine Uruguay Uzbekistan Vanuatu Venezuela Vietnam Yemen Zambia
  Zimbabwe""")

# Cities: bus terminals, first performances.
TERMINALS = _words("""
  Aberdeen Amsterdam Antwerp Athens Baltimore Bangkok Barcelona Belfast Berlin Birmingham Bogota Boston
  Brisbane Bristol Brussels Bucharest Budapest Calcutta Cambridge Canberra Cardiff Chicago Cologne Copenhagen
  Dallas Damascus Denver Detroit Dresden Dublin Edinburgh Geneva Glasgow Hamburg Havana Helsinki Houston
  Istanbul Jakarta Kingston""")
PREMIERES = _words("""
  Krakow Leeds Leipzig Lisbon Liverpool London Madrid Manchester Manila Marseille Melbourne Memphis Miami
  Milan Montreal Moscow Munich Nairobi Naples Nashville Orleans Oxford Palermo Paris Perth Philadelphia
  Portland Prague Quebec Rotterdam Salzburg Santiago Seattle Seville Shanghai Stockholm Stuttgart Sydney
  Toronto Vienna""")

# Things.
COLOURS = _words("""
  amber apricot auburn azure beige black blond bluish bronze brown burgundy buttery cherry chestnut chocolate
  copper coral cream crimson ebony emerald golden green indigo ivory lavender lemon lilac magenta maroon
  mustard olive orange purple salmon scarlet silver turquoise violet white""")
ANIMALS = _words("""
  alligator antelope baboon badger beaver bison buffalo camel caribou cheetah condor cormorant cougar coyote
  crocodile dolphin eagle falcon flamingo gazelle gibbon giraffe gorilla hedgehog heron hyena iguana jackal
  jaguar kestrel leopard marmot mongoose moose muskrat osprey otter panther pelican porcupine""")
MASCOTS = _words("""
  bulldog cobra crane donkey dragon ferret goose griffon grizzly hamster hippo hornet horse kangaroo koala
  lizard llama lobster monkey mustang octopus ostrich panda parrot peacock penguin piranha poodle puffin
  python rabbit raccoon raven rhino rooster scorpion shark stallion tiger walrus""")
CONSTELLATIONS = _words("""
  Andromeda Aquarius Aquila Aries Auriga Bootes Cancer Canis Capricorn Carina Cassiopeia Centaurus Cepheus
  Chamaeleon Columba Corona Corvus Crater Cygnus Delphinus Dorado Draco Equuleus Eridanus Fornax Gemini
  Hercules Hydra Lacerta Lepus Libra Monoceros Ophiuchus Orion Pegasus Perseus Phoenix Sagittarius Sculptor
  Taurus""")
MINERALS = _words("""
  agate alabaster anhydrite apatite azurite barite bauxite beryl biotite calcite chalcedony chromite cinnabar
  corundum cuprite diopside dolomite epidote feldspar fluorite galena garnet goethite graphite halite hematite
  ilmenite jadeite kaolinite magnetite malachite muscovite olivine pyrite quartz rutile siderite sphalerite
  talcum zircon""")
SCENTS = _words("""
  almond aniseed basil bergamot butter camphor caramel cardamom cedar cinnamon clove coconut coffee coriander
  cucumber cumin eucalyptus fennel garlic ginger grapefruit honey jasmine juniper leather licorice mango melon
  molasses nectar nutmeg onion oregano patchouli pepper peppermint pineapple rosemary saffron vanilla""")
TREES = _words("""
  acacia alder apple aspen balsa bamboo banyan baobab beech birch boxwood buckeye cottonwood cypress dogwood
  elder hawthorn hazel hemlock hickory holly hornbeam laurel linden magnolia mahogany maple mulberry myrtle
  poplar redwood rowan sassafras sequoia spruce sycamore tamarack teakwood walnut willow""")
INSTRUMENTS = _words("""
  accordion bagpipe balalaika banjo baritone bassoon bugle castanet celesta cello clarinet clavichord
  concertina cornet cymbal dulcimer euphonium fiddle flute glockenspiel guitar harmonica harmonium harpsichord
  kettledrum mandolin marimba ocarina piano piccolo recorder saxophone spinet tambourine timpani trombone
  trumpet ukulele viola xylophone""")
FOODS = _words("""
  asparagus bacon beans biscuits bread broccoli cabbage carrots casserole cheese cheesecake chicken chowder
  crackers dumplings fritters goulash gumbo lasagna lentils meatballs muffins mushrooms noodles omelette
  pancakes pasta pastries pickles pizza porridge pretzels pudding ravioli risotto salad sausages spaghetti
  spinach waffles""")
MATERIALS = _words("""
  adobe alumina basalt bluestone bricks cedarwood cement chalk clinker cobbles concrete driftwood fieldstone
  flagstone flint gabbro glass gneiss granite gravel greenstone gypsum ironstone larch limestone marble
  mudbrick pinewood plaster porphyry pumice sandstone schist serpentine shale slate soapstone stucco
  terracotta travertine""")
FLOWERS = _words("""
  amaranth anemone azalea begonia bluebell buttercup camellia carnation clematis cornflower cowslip crocus
  daffodil dahlia daisy dandelion edelweiss foxglove freesia fuchsia gardenia geranium gladiolus hibiscus
  honeysuckle hyacinth hydrangea larkspur lotus marigold narcissus orchis pansy peony petunia poppy primrose
  snowdrop sunflower tulip""")
TOOLS = _words("""
  anvil auger bellows broom calipers chisel clamp crowbar cutter funnel gouge grinder hacksaw hammer hatchet
  jigsaw ladder lathe mallet micrometer nippers pickaxe pincers planer pliers plunger punch ratchet reamer
  sander scraper screwdriver shears shovel spanner stapler tongs trowel tweezers wrench""")
