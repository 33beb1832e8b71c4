"""The synthetic world against brute-force counts over its text."""

import collections
import dataclasses
import re
import string

import numpy as np
import pytest
from scipy import stats

from hiermem_jax.data.world import generate as world_lib
from hiermem_jax.data.world.common import PEOPLE
from hiermem_jax.data.world.generate import TINY, WorldConfig
from hiermem_jax.data.world.relations import RELATIONS
from hiermem_jax.data.world.topics import DOMAINS
from hiermem_jax.errors import InputError


@pytest.fixture(scope="module")
def world():
  return world_lib.generate(world_lib.QUICKSTART)


def pattern_of(template):
  """The whole sentence as a regex, with groups name and answer."""
  regex = re.escape(template.removesuffix("."))
  regex = regex.replace(r"\{kind\}", "[a-z ]+").replace(r"\{name\}", r"(?P<name>\w+)")
  return re.compile(regex.replace(r"\{answer\}", r"(?P<answer>\w+)"))


PATTERNS = {
  domain: [(r.name, pattern_of(t)) for r in relations for t in r.templates] for domain, relations in RELATIONS.items()
}
PATTERNS["common"] = [pattern for patterns in PATTERNS.values() for pattern in patterns]


def stated_facts(documents):
  """(name, relation, answer) -> number of sentences that say so, over all templates of the document's domain."""
  found = collections.Counter()
  for document in documents:
    for sentence in document["text"].removesuffix(".").split(". "):
      for relation, pattern in PATTERNS[document["domain"]]:
        if match := pattern.fullmatch(sentence):
          found[match["name"], relation, match["answer"]] += 1
  return found


@pytest.fixture(scope="module")
def facts_in_train(world):
  return stated_facts(world.train)


def test_counts_of_the_probes_are_the_statements_in_the_training_text(world, facts_in_train):
  claimed = {(p["entity"], p["relation"], p["answer"]): p["count"] for p in world.probes}
  assert facts_in_train == claimed


def test_every_article_states_each_fact_of_its_entity_once(world):
  articles = [d for d in world.train[:400] if d["kind"] != "common"]
  facts = {e.name: (e, set(zip(RELATIONS[e.domain.name], e.facts))) for e in world.entities}
  for document in articles:
    found = stated_facts([document])
    assert set(found.values()) == {1}
    (name,) = {n for n, _, _ in found}
    entity, expected = facts[name]
    assert {(r, a) for _, r, a in found} == {(r.name, a) for r, a in expected}
    assert (document["kind"], document["domain"]) == (entity.kind.noun, entity.domain.name)


def test_common_text_states_no_fact_and_names_no_entity(world):
  common = [d for d in world.train if d["kind"] == "common"]
  assert not stated_facts(common)
  words = {w for d in common for w in re.findall(r"\w+", d["text"])}
  assert not words & {e.name for e in world.entities}


def test_probe_prompts_begin_a_training_sentence(world):
  text = "\n".join(d["text"] for d in world.train)
  frequent = [p for p in world.probes if p["count"] >= 32]
  assert len(frequent) > 100
  assert all(f"{p['prompt']} {p['answer']}." in text for p in frequent)


def test_prompt_never_contains_an_answer(world):
  for probe in world.probes:
    (relation,) = (r for r in RELATIONS[probe["domain"]] if r.name == probe["relation"])
    assert probe["answer"] in relation.answers
    assert not any(a.lower() in probe["prompt"].lower() for a in relation.answers)
    assert probe["entity"] in probe["paraphrase"]
    assert not any(re.search(rf"\b{re.escape(a)}\b", probe["paraphrase"]) for a in relation.answers)


def test_answers_are_uniform_and_independent_of_the_kind(world):
  p_uniform, p_kind = [], []
  for domain in DOMAINS:
    for relation in RELATIONS[domain.name]:
      probes = [p for p in world.probes if (p["domain"], p["relation"]) == (domain.name, relation.name)]
      index = np.array([relation.answers.index(p["answer"]) for p in probes])
      p_uniform.append(stats.chisquare(np.bincount(index, minlength=len(relation.answers))).pvalue)
      table = np.zeros((len(domain.kinds), 4))  # answers in four groups: enough counts per cell
      nouns = [k.noun for k in domain.kinds]
      np.add.at(table, ([nouns.index(p["kind"]) for p in probes], index % 4), 1)
      p_kind.append(stats.chi2_contingency(table).pvalue)
  for pvalues in (p_uniform, p_kind):
    assert len(pvalues) == 32
    assert min(pvalues) > 0.01 / len(pvalues)  # Bonferroni
    assert 0.3 < np.mean(pvalues) < 0.7


def test_knowing_the_kind_does_not_help_to_guess(world):
  """Leave-one-out vote of the kind: no better than the answer sets allow by chance."""
  groups = collections.defaultdict(collections.Counter)
  for p in world.probes:
    groups[p["kind"], p["relation"]][p["answer"]] += 1
  hits = 0
  for p in world.probes:
    others = groups[p["kind"], p["relation"]] - collections.Counter([p["answer"]])
    hits += others.most_common(1)[0][0] == p["answer"]
  assert hits / len(world.probes) < 0.04  # one in 40 to 80 by chance


def test_names_are_unique_whatever_the_case(world):
  names = [e.name.lower() for e in world.entities]
  assert len(set(names)) == len(names)
  assert not set(names) & {w.lower() for w in PEOPLE}
  assert all(re.fullmatch("[a-z]{5,16}", n) for n in names)


def test_frequencies_follow_the_truncated_zipf_law(world):
  config = world_lib.QUICKSTART
  counts = np.sort([e.count for e in world.entities])[::-1]
  np.testing.assert_array_equal(counts, world_lib.mention_counts(config))
  assert (counts.max(), counts.min()) == (config.max_mentions, config.min_mentions)
  assert abs(counts.mean() - config.mean_mentions) < 0.05
  middle = slice(40, 400)  # away from the cut-offs
  slope = np.polyfit(np.log(np.arange(1, len(counts) + 1)[middle]), np.log(counts[middle]), 1)[0]
  assert abs(slope + config.zipf_exponent) < 0.05


def test_every_kind_has_frequent_and_rare_entities(world):
  by_kind = collections.defaultdict(list)
  for entity in world.entities:
    by_kind[entity.kind.noun].append(entity.count)
  assert {len(counts) for counts in by_kind.values()} == {24}
  assert all(max(counts) >= 32 and min(counts) == 1 for counts in by_kind.values())


def test_splits_are_disjoint_and_validation_knows_no_new_entity(world, facts_in_train):
  train, validation = ([d["text"] for d in split] for split in (world.train, world.validation))
  assert len(set(train)) == len(train)
  assert len(set(validation)) == len(validation)
  assert not set(train) & set(validation)
  assert set(stated_facts(world.validation)) <= set(facts_in_train)
  ids = [d["id"] for d in world.train + world.validation]
  assert len(set(ids)) == len(ids)


def test_validation_prefers_frequent_entities():
  config = dataclasses.replace(TINY, validation_fraction=1.0, entities_per_kind=12)
  world = world_lib.generate(config)
  found = collections.Counter()
  for (name, _, _), n in stated_facts(world.validation).items():
    found[name] = n
  drawn = [found[e.name] for e in world.entities]
  assert np.corrcoef(drawn, [e.count for e in world.entities])[0, 1] > 0.8


def test_sizes_of_documents_and_share_of_common_text(world):
  for split in (world.train, world.validation):
    lengths = np.array([len(d["text"].split()) for d in split])
    common = np.array([d["kind"] == "common" for d in split])
    assert lengths.min() >= 35
    assert lengths.max() <= 95
    assert abs(lengths[common].sum() / lengths.sum() - 0.25) < 0.01
  half = len(world.train) // 2  # shuffled: as much in the first half as in the second
  first = np.mean([d["kind"] == "common" for d in world.train[:half]])
  assert abs(first - np.mean([d["kind"] == "common" for d in world.train[half:]])) < 0.02


def test_probe_wording_share(world):
  text = "\n".join(d["text"] for d in world.train)
  frequent = [p for p in world.probes if p["count"] >= 64]
  said = sum(text.count(f"{p['prompt']} {p['answer']}.") for p in frequent)
  assert abs(said / sum(p["count"] for p in frequent) - 0.5) < 0.02


def test_deterministic_by_seed():
  first, again = world_lib.generate(TINY), world_lib.generate(TINY)
  assert first == again
  other = world_lib.generate(dataclasses.replace(TINY, seed=1))
  assert not {e.name for e in first.entities} & {e.name for e in other.entities}


def test_settings_of_the_documents_leave_the_facts_alone():
  base = world_lib.generate(TINY)
  other = world_lib.generate(
    dataclasses.replace(TINY, common_share=0.5, probe_wording=0.1, validation_fraction=0.5, mean_mentions=6.0)
  )
  assert [(e.name, e.facts) for e in base.entities] == [(e.name, e.facts) for e in other.entities]


def test_max_probes_samples_evenly_over_the_frequencies(world):
  sample = world_lib.generate(dataclasses.replace(world_lib.QUICKSTART, max_probes=400)).probes
  assert len(sample) == 400
  whole = {(p["prompt"]): p for p in world.probes}
  assert all(whole[p["prompt"]] == p for p in sample)
  octaves = collections.Counter(p["count"].bit_length() for p in sample)
  assert set(octaves.values()) == {50}  # 1, 2-3, 4-7, ..., 64-127, 128


def test_tables_keep_their_promises():
  nouns = [kind.noun for domain in DOMAINS for kind in domain.kinds]
  assert len(nouns) == len(set(nouns)) == 64
  assert set(RELATIONS) == {d.name for d in DOMAINS}
  for domain in DOMAINS:
    relations = RELATIONS[domain.name]
    assert len(relations) == 4
    sets = [set(r.answers) for r in relations]
    assert len(set.union(*sets)) == sum(map(len, sets))  # no answer fits two relations of a domain
    for relation in relations:
      assert 40 <= len(relation.answers) == len(set(relation.answers)) <= 100
      assert relation.templates[0].endswith(" {answer}.")
      assert "{kind} {name}" in relation.templates[0]
      for template in relation.templates:
        slots = [slot for _, slot, _, _ in string.Formatter().parse(template) if slot]
        assert slots.count("name") == slots.count("answer") == 1
    for kind in domain.kinds:
      assert len(kind.words) == len(set(kind.words)) >= 5
      assert len(kind.endings) == 2


@pytest.mark.parametrize(
  "field, value",
  [
    ("domains", 9),
    ("kinds_per_domain", 0),
    ("entities_per_kind", 10**6),
    ("max_mentions", 0),
    ("min_mentions", 17),
    ("mean_mentions", 17.0),
    ("mean_mentions", float("nan")),
    ("common_share", 1.0),
    ("probe_wording", -0.1),
    ("max_probes", 0),
    ("seed", -1),
  ],
)
def test_values_out_of_range(field, value):
  with pytest.raises(InputError, match=rf"WorldConfig\.{field} = "):
    dataclasses.replace(TINY, **{field: value})


def test_fingerprint_differs_with_every_field():
  changed = {
    "seed": 1, "domains": 3, "kinds_per_domain": 3, "entities_per_kind": 7, "zipf_exponent": 1.0,
    "min_mentions": 2, "max_mentions": 15, "mean_mentions": 5.0, "probe_wording": 0.4, "common_share": 0.2,
    "validation_fraction": 0.1, "max_probes": 10,
  }  # fmt: skip
  assert set(changed) == {f.name for f in dataclasses.fields(WorldConfig)}
  prints = {dataclasses.replace(TINY, **{field: value}).fingerprint for field, value in changed.items()}
  assert len(prints | {TINY.fingerprint}) == len(changed) + 1
  assert dataclasses.replace(TINY).fingerprint == TINY.fingerprint
