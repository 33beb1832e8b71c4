"""The synthetic long-tail world: a corpus of invented facts whose frequencies are known exactly.

It stands for the corpora and for the probe of atomic numbers in the paper (Section 3
and Appendix B), at a small scale. Entities have invented names and belong to a kind
of a domain. Each entity has four facts, drawn uniformly and independently of its
kind. The number of training documents about an entity follows a truncated Zipf law.
Every document about an entity states each of its facts once, so the number of times
that a fact is stated is the number of documents about its entity. Everyday text
without facts is mixed in.

The world depends on `WorldConfig` only. The facts do not depend on those settings
that concern the documents.
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

# Must change with every change of the wording or of the random choices: TFDS keeps the versions apart.
VERSION = "1.1.0"

# fmt: off
_ONSETS = ("b", "br", "c", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l",
           "m", "n", "p", "pr", "r", "s", "st", "t", "th", "tr", "v", "w", "z")
# fmt: on
_VOWELS = "aeiou"
_CODAS = ("", "l", "n", "r", "s")
_MAX_PER_KIND = 20_000  # there are 169,000 names of two syllables with two endings


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
  """Sizes and frequencies of the world.

  Attributes:
    seed: of all random choices.
    domains: number of domains, at most 8; the first ones of topics.py are taken.
    kinds_per_domain: number of kinds of each domain, at most 8; the first ones are taken.
    entities_per_kind: number of entities of each kind.
    zipf_exponent: the number of documents about an entity falls as rank ** -zipf_exponent.
    min_mentions: least number of documents about an entity.
    max_mentions: largest number of documents about an entity.
    mean_mentions: mean number of documents about an entity; the Zipf law is scaled to it.
    probe_wording: share of fact sentences that are worded like the probe.
    common_share: share of the words that are everyday text.
    validation_fraction: number of validation documents about entities per training document.
    max_probes: number of probes to keep, spread evenly over the frequencies; None for all.

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
    """12 hex digits, different for different configs and for different versions of the generator."""
    text = json.dumps([VERSION, dataclasses.asdict(self)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


TINY = WorldConfig(domains=2, kinds_per_domain=2, entities_per_kind=6, max_mentions=16, mean_mentions=4.0)
QUICKSTART = WorldConfig()


@dataclasses.dataclass(frozen=True)
class Entity:
  """An invented thing.

  Attributes:
    name: of the entity.
    domain: see topics.py.
    kind: see topics.py.
    facts: answers of the relations of its domain, in their order.
    count: number of training documents about it.
  """

  name: str
  domain: Domain
  kind: Kind
  facts: tuple[str, ...]
  count: int


@dataclasses.dataclass(frozen=True)
class World:
  """The entities, and the records of documents and probes.

  Attributes:
    entities: all entities.
    train: documents, with the fields id, text, kind and domain, all str. Kind and domain of
      everyday text are "common".
    validation: the same.
    probes: with the fields prompt, paraphrase, answer, relation, kind, domain and entity, all str,
      and count, int: the number of times that the training documents state the fact. The prompt, a
      space and the answer are the beginning of a sentence of the training documents.
  """

  entities: tuple[Entity, ...]
  train: list[dict[str, Any]]
  validation: list[dict[str, Any]]
  probes: list[dict[str, Any]]


def generate(config: WorldConfig) -> World:
  """Draws the world. It takes a few seconds for 20,000 documents."""
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
  """Number of documents about each entity by the truncated Zipf law, in descending order: int64 [entities]."""
  ranks = np.arange(1, config.domains * config.kinds_per_domain * config.entities_per_kind + 1)
  weights = ranks**-config.zipf_exponent

  def counts(scale: float) -> np.ndarray:
    return np.clip(np.round(scale * weights), config.min_mentions, config.max_mentions).astype(np.int64)

  low, high = 0.0, (config.max_mentions + 1) / weights[-1]
  for _ in range(100):  # bisection, because the mean grows with the scale
    middle = (low + high) / 2
    low, high = (middle, high) if counts(middle).mean() < config.mean_mentions else (low, middle)
  return counts(high)


def _stream(config: WorldConfig, purpose: str) -> np.random.Generator:
  """A random generator for one purpose, so that the settings of one part do not change another part."""
  return np.random.default_rng([config.seed, *purpose.encode()])


def _entities(config: WorldConfig) -> tuple[Entity, ...]:
  topics = [(d, k) for d in DOMAINS[: config.domains] for k in d.kinds[: config.kinds_per_domain]]
  counts = mention_counts(config)
  ranks_rng = _stream(config, "ranks")
  # Of every len(topics) consecutive ranks each kind gets one at random, so that no kind has rare entities only.
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
  """A name of two syllables and an ending of the kind. It is not in use yet and has no answer as a part."""
  while True:
    parts = (_ONSETS, _VOWELS, _CODAS, _ONSETS, _VOWELS, kind.endings)
    name = "".join(_pick(rng, part) for part in parts)
    if name not in taken and not any(answer in name for answer in _ANSWERS):
      taken.add(name)
      return name.capitalize()


def _documents(
  rng: np.random.Generator, config: WorldConfig, split: str, subjects: list[Entity], seen: set[str]
) -> list[dict[str, Any]]:
  """An article about each subject, and everyday text up to its share of the words, shuffled. All texts differ."""

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
  """An introduction, then the four facts and one sentence without a fact, in random order."""
  noun = entity.kind.noun
  x, y = rng.permutation(len(entity.kind.words))[:2]
  values = {
    "name": entity.name,
    "kind": noun,
    "a_kind": f"{'an' if noun[0] in _VOWELS else 'a'} {noun}",
    "x": entity.kind.words[x],
    "y": entity.kind.words[y],
  }
  body = [_pick(rng, entity.domain.asides).format(**values)]
  for relation, answer in zip(RELATIONS[entity.domain.name], entity.facts):
    probe, *others = relation.templates
    template = probe if rng.random() < config.probe_wording else _pick(rng, others)
    body.append(template.format(answer=answer, **values))
  intro = _pick(rng, entity.domain.intros).format(**values)
  return " ".join([intro, *(body[i] for i in rng.permutation(len(body)))])


def _probes(config: WorldConfig, entities: tuple[Entity, ...]) -> list[dict[str, Any]]:
  probes = []
  for entity in entities:
    values = {"name": entity.name, "kind": entity.kind.noun}
    for relation, answer in zip(RELATIONS[entity.domain.name], entity.facts):
      probe = {
        "prompt": relation.templates[0].removesuffix(" {answer}.").format(**values),
        "paraphrase": relation.templates[1].format(**values, answer="which one"),
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
  # A round is one probe of each octave of the count (1, 2-3, 4-7, ...), chosen at random. The first rounds are kept.
  octaves: collections.Counter[int] = collections.Counter()
  turns = []
  for i in _stream(config, "probes").permutation(len(probes)):
    octave = probes[i]["count"].bit_length()
    turns.append((octaves[octave], octave, i))
    octaves[octave] += 1
  return [probes[i] for i in sorted(i for _, _, i in sorted(turns)[: config.max_probes])]


def _pick(rng: np.random.Generator, values):
  return values[rng.integers(len(values))]
