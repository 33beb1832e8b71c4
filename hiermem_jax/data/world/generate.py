"""The synthetic long-tail world: a corpus of invented facts whose frequencies are known exactly.

A small stand-in for the corpora and the atomic-number probe of the paper (section
3 and Appendix B): entities with invented names sit in a topic tree (domain, kind),
each has four facts drawn uniformly and independently of its kind, and the number of
training documents about an entity follows a truncated Zipf law. Every document
about an entity states each of its facts once, so a fact's count is its entity's
number of documents. Everyday text that needs no fact is mixed in.

The world is a pure function of `WorldConfig`; facts do not depend on the settings
of the documents.
"""

import collections
import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from hiermem_jax.data.world.common import common_text
from hiermem_jax.data.world.relations import RELATIONS
from hiermem_jax.data.world.topics import DOMAINS, Domain, Kind
from hiermem_jax.errors import InputError

# Raise it with every change of the wording or of the drawing: prepared copies are kept apart by it.
VERSION = "1.1.0"

# fmt: off
_ONSETS = ("b", "br", "c", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l",
           "m", "n", "p", "pr", "r", "s", "st", "t", "th", "tr", "v", "w", "z")
# fmt: on
_VOWELS = "aeiou"
_CODAS = ("", "l", "n", "r", "s")
_MAX_PER_KIND = 20_000  # well under the 169,000 names that two syllables and two endings give a kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
  """Sizes and frequencies of the world.

  `domains` and `kinds_per_domain` (at most 8 each) take the first rows of the topic
  tables. Document counts fall as rank ** -zipf_exponent, cut off at `min_mentions`
  and `max_mentions`, and scaled so that an entity has `mean_mentions` documents on
  average. `probe_wording` is the share of fact sentences worded like the probe,
  `common_share` the share of words in everyday text, `validation_fraction` the
  number of validation documents per training document. `max_probes` keeps a sample
  spread evenly over the frequencies (None: every entity and relation).

  Raises:
    InputError: a value is out of its range.
  """

  seed: int = 0
  domains: int = 8
  kinds_per_domain: int = 8
  entities_per_kind: int = 24
  zipf_exponent: float = 1.1
  min_mentions: int = 1
  max_mentions: int = 128
  mean_mentions: float = 8.0
  probe_wording: float = 0.5
  common_share: float = 0.25
  validation_fraction: float = 0.02
  max_probes: int | None = None

  def __post_init__(self):
    ranges = {
      "seed": (0, 2**63 - 1),
      "domains": (1, len(DOMAINS)),
      "kinds_per_domain": (1, min(len(d.kinds) for d in DOMAINS)),
      "entities_per_kind": (1, _MAX_PER_KIND),
      "zipf_exponent": (0, 10),
      "max_mentions": (1, float("inf")),
      "min_mentions": (1, self.max_mentions),
      "mean_mentions": (self.min_mentions, self.max_mentions),
      "probe_wording": (0, 1),
      "common_share": (0, 0.95),
      "validation_fraction": (0, 1),
      "max_probes": (1, float("inf")),
    }
    for field, (low, high) in ranges.items():
      value = getattr(self, field)
      if value is not None and not low <= value <= high:
        raise InputError(f"WorldConfig.{field} = {value}: give a value from {low} to {high}")

  @property
  def fingerprint(self) -> str:
    """12 hex digits that differ between any two configs or versions of the generator."""
    text = json.dumps([VERSION, dataclasses.asdict(self)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


TINY = WorldConfig(domains=2, kinds_per_domain=2, entities_per_kind=6, max_mentions=16, mean_mentions=4.0)
QUICKSTART = WorldConfig()


@dataclasses.dataclass(frozen=True)
class Entity:
  """An invented thing: `facts[i]` answers relation i of its domain, `count` is its number of documents."""

  name: str
  domain: Domain
  kind: Kind
  facts: tuple[str, ...]
  count: int


@dataclasses.dataclass(frozen=True)
class World:
  """Records as they are stored.

  Documents: {id, text, kind, domain}, str each, kind and domain "common" for
  everyday text. Probes: {prompt, answer, relation, kind, domain, entity}, str, and
  `count`, int: how often the training split states the fact. The prompt, a space
  and the answer begin a sentence of the training wording.
  """

  entities: tuple[Entity, ...]
  train: list[dict[str, Any]]
  validation: list[dict[str, Any]]
  probes: list[dict[str, Any]]


def generate(config: WorldConfig) -> World:
  """Draws the world; 20,000 documents take a few seconds."""
  entities = _entities(config)
  seen: set[str] = set()
  rng = _stream(config, "train")
  train = _documents(rng, config, "train", [e for e in entities for _ in range(e.count)], seen)
  rng = _stream(config, "validation")
  counts = np.array([e.count for e in entities])
  size = round(config.validation_fraction * counts.sum())
  chosen = rng.choice(len(entities), size=size, p=counts / counts.sum())
  validation = _documents(rng, config, "validation", [entities[i] for i in chosen], seen)
  return World(entities, train, validation, _probes(config, entities))


def mention_counts(config: WorldConfig) -> np.ndarray:
  """Documents per entity by rank, most frequent first: int64 [entities], the truncated Zipf law."""
  ranks = np.arange(1, config.domains * config.kinds_per_domain * config.entities_per_kind + 1)
  weights = ranks**-config.zipf_exponent

  def counts(scale: float) -> np.ndarray:
    return np.clip(np.round(scale * weights), config.min_mentions, config.max_mentions).astype(np.int64)

  low, high = 0.0, (config.max_mentions + 1) / weights[-1]
  for _ in range(100):  # bisection: the mean grows with the scale
    middle = (low + high) / 2
    low, high = (middle, high) if counts(middle).mean() < config.mean_mentions else (low, middle)
  return counts(high)


def _stream(config: WorldConfig, purpose: str) -> np.random.Generator:
  """One random stream per purpose, so that no setting shifts the draws of another part."""
  return np.random.default_rng([config.seed, *purpose.encode()])


def _entities(config: WorldConfig) -> tuple[Entity, ...]:
  topics = [(d, k) for d in DOMAINS[: config.domains] for k in d.kinds[: config.kinds_per_domain]]
  counts = mention_counts(config)
  ranks_rng = _stream(config, "ranks")
  # Each run of len(topics) ranks is dealt out at random, one to a kind: no kind is all rare or all frequent.
  ranks = np.stack(
    [ranks_rng.permutation(len(topics)) + len(topics) * i for i in range(config.entities_per_kind)], axis=1
  )
  taken: set[str] = set()
  facts_rng, names_rng = _stream(config, "facts"), _stream(config, "names")
  entities = []
  for (domain, kind), kind_ranks in zip(topics, ranks):
    for rank in names_rng.permutation(kind_ranks):
      name = _new_name(names_rng, kind, taken)
      facts = tuple(str(_pick(facts_rng, relation.answers)) for relation in RELATIONS[domain.name])
      entities.append(Entity(name, domain, kind, facts, int(counts[rank])))
  return tuple(entities)


_ANSWERS = tuple({a.lower() for relations in RELATIONS.values() for r in relations for a in r.answers})


def _new_name(rng: np.random.Generator, kind: Kind, taken: set[str]) -> str:
  """Two syllables and an ending of the kind; never a name in use, nor one that hides an answer."""
  while True:
    parts = (_ONSETS, _VOWELS, _CODAS, _ONSETS, _VOWELS, kind.endings)
    name = "".join(_pick(rng, part) for part in parts)
    if name not in taken and not any(answer in name for answer in _ANSWERS):
      taken.add(name)
      return name.capitalize()


def _documents(
  rng: np.random.Generator, config: WorldConfig, split: str, subjects: list[Entity], seen: set[str]
) -> list[dict[str, Any]]:
  """One article per subject and everyday text up to its share of the words, shuffled; no text comes twice."""

  def fresh(write) -> str:
    while (text := write()) in seen:
      pass
    seen.add(text)
    return text

  documents, words = [], 0
  for entity in subjects:
    text = fresh(lambda entity=entity: _article(rng, config, entity))
    words += len(text.split())
    documents.append((text, entity.kind.noun, entity.domain.name))
  common_words = words * config.common_share / (1 - config.common_share)
  while common_words > 0:
    text = fresh(lambda: common_text(rng))
    common_words -= len(text.split())
    documents.append((text, "common", "common"))
  return [
    dict(zip(("id", "text", "kind", "domain"), (f"{split}-{i:07d}", *documents[j])))
    for i, j in enumerate(rng.permutation(len(documents)))
  ]


def _article(rng: np.random.Generator, config: WorldConfig, entity: Entity) -> str:
  """An introduction, then the four facts and one sentence without a fact, in any order."""
  noun = entity.kind.noun
  x, y = rng.permutation(len(entity.kind.words))[:2]
  slots = {
    "name": entity.name,
    "kind": noun,
    "a_kind": f"{'an' if noun[0] in _VOWELS else 'a'} {noun}",
    "x": entity.kind.words[x],
    "y": entity.kind.words[y],
  }
  body = [_pick(rng, entity.domain.asides).format(**slots)]
  for relation, answer in zip(RELATIONS[entity.domain.name], entity.facts):
    probe, *others = relation.templates
    template = probe if rng.random() < config.probe_wording else _pick(rng, others)
    body.append(template.format(answer=answer, **slots))
  intro = _pick(rng, entity.domain.intros).format(**slots)
  return " ".join([intro, *(body[i] for i in rng.permutation(len(body)))])


def _probes(config: WorldConfig, entities: tuple[Entity, ...]) -> list[dict[str, Any]]:
  probes = []
  for entity in entities:
    slots = {"name": entity.name, "kind": entity.kind.noun}
    for relation, answer in zip(RELATIONS[entity.domain.name], entity.facts):
      probe = {
        "prompt": relation.templates[0].removesuffix(" {answer}.").format(**slots),
        "paraphrase": relation.templates[1].format(**slots, answer="which one"),
        "answer": answer,
        "relation": relation.name,
        "kind": entity.kind.noun,
        "domain": entity.domain.name,
        "entity": entity.name,
        "count": entity.count,
      }
      probes.append(probe)
  if config.max_probes is None or config.max_probes >= len(probes):
    return probes
  # Deal the probes out in rounds of one per octave of the count; the first rounds are the sample.
  octaves: collections.Counter[int] = collections.Counter()
  turns = []
  for i in _stream(config, "probes").permutation(len(probes)):
    octave = probes[i]["count"].bit_length()
    turns.append((octaves[octave], octave, i))
    octaves[octave] += 1
  return [probes[i] for i in sorted(i for _, _, i in sorted(turns)[: config.max_probes])]


def _pick(rng: np.random.Generator, values):
  return values[rng.integers(len(values))]
