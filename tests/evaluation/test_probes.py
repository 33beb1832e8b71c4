"""Facts of known frequency: answers by bucket, against one question at a time and scipy's statistics."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from hiermem_jax.errors import InputError
from hiermem_jax.evaluation.modes import Mode
from hiermem_jax.evaluation.probes import bucket_numbers, by_bucket, read_probes, score_probes

BUCKETS = (2, 16, 1000)


@pytest.fixture(scope="module")
def probes(toy_run, loaded):
  """Some are answered as greedy decoding does, so that some are correct; one is rarer than the first bucket."""
  records = [json.loads(line) for line in (toy_run / "probes.jsonl").read_text().splitlines()]
  records += [record | {"count": count} for record, count in zip(records[:3], (1, 2, 15))]
  records[0]["answer"] = "naïve yaks"
  return read_probes(records, loaded.tokenizer)


@pytest.fixture(scope="module")
def results(in_modes, probes):
  """Mode -> results of the probes."""
  found = {}
  for name in ("none", "fetched"):
    leaf = in_modes.leaves(Mode.parse(name), [probe.text for probe in probes])
    found[name] = score_probes(in_modes.scorer(Mode.parse(name)), probes, leaf)
  return found


def test_probes_are_tokenised_with_a_space_and_a_full_stop(probes, loaded):
  tokenizer = loaded.tokenizer
  for probe in probes:
    assert [*probe.prompt, *probe.answer] == tokenizer.encode(f"{probe.text} {probe.record['answer']}.")
    assert tokenizer.decode(probe.answer) == f" {probe.record['answer']}."
  assert probes[0].answer_bytes == len(" naïve yaks.") + 1  # ï has two bytes
  assert probes[1].paraphrase == "What does the yak like?"


@pytest.mark.parametrize(
  ("change", "shown"), [({"count": "3"}, "'3'"), ({"answer": None}, "None"), ({"prompt": 7}, "7")]
)
def test_bad_records_are_named(loaded, change, shown):
  records = [{"prompt": "The owl likes", "answer": "plum", "count": 3}]
  (field,) = change
  with pytest.raises(InputError, match=f"probe 2: field '{field}' is {shown}, not a"):
    read_probes([*records, records[0] | change], loaded.tokenizer)


def test_each_answer_by_itself(in_modes, probes, results, loaded):
  for name in ("none", "fetched"):
    scorer = in_modes.scorer(Mode.parse(name))
    for probe, result in zip(probes, results[name]):
      leaf = loaded.retriever.route([probe.text]) if name == "fetched" else np.array([-1], np.int32)
      (score,), (greedy,) = scorer.score_continuations([probe.prompt], [probe.answer], leaf)
      assert result["log_likelihood"] == pytest.approx(score, abs=1e-4)
      assert (result["tokens"], result["bytes"]) == (len(probe.answer), probe.answer_bytes)
      assert result["correct"] == greedy


def test_an_answer_is_correct_where_decoding_gives_exactly_it(in_modes, probes, loaded):
  scorer, leaf = in_modes.scorer(Mode.parse("fetched")), loaded.retriever.route([probes[0].text])
  ((first, second),) = scorer.generate([probes[0].prompt], leaf, 2, ())
  answers = ([first, second], [first], [first, second + 1], [first + 1, second])
  found = [score_probes(scorer, [dataclasses.replace(probes[0], answer=answer)], leaf)[0] for answer in answers]
  assert [result["correct"] for result in found] == [True, True, False, False]


def test_buckets(probes, results):
  """Means and errors by bucket; a count below the first bucket is in none."""
  counts = np.array([probe.count for probe in probes])
  bucket = bucket_numbers(probes, BUCKETS)
  assert bucket.tolist() == [-1 if n < 2 else 0 if n < 16 else 1 for n in counts] and -1 in bucket
  # Some are correct, so that accuracies are neither 0 nor 1.
  marked = {name: [r | {"correct": i % 3 == 0} for i, r in enumerate(found)] for name, found in results.items()}
  cells = by_bucket(marked["fetched"], bucket, 3, marked["none"])
  assert [cell["count"] for cell in cells] == [(bucket == i).sum() for i in range(3)] and cells[2]["count"] == 0
  for index in (0, 1):
    chosen = np.flatnonzero(bucket == index)
    correct = [i % 3 == 0 for i in chosen]
    assert cells[index]["accuracy"] == pytest.approx(np.mean(correct)) and 0 < np.mean(correct) < 1
    assert cells[index]["stderr"] == pytest.approx(np.std(correct) / np.sqrt(len(correct)))
    for unit, sizes in (("token", "tokens"), ("byte", "bytes")):
      fetched, none = (
        np.array([marked[name][i]["log_likelihood"] / marked[name][i][sizes] for i in chosen])
        for name in ("fetched", "none")
      )
      name = f"log_likelihood_per_{unit}"
      assert cells[index][name] == pytest.approx(fetched.mean())
      assert cells[index][f"{name}_stderr"] == pytest.approx(scipy.stats.sem(fetched))
      gain = cells[index]["minus_none"]
      assert gain[name] == pytest.approx(fetched.mean() - none.mean())
      assert gain[name] / gain[f"{name}_stderr"] == pytest.approx(scipy.stats.ttest_rel(fetched, none).statistic)
      assert fetched.mean() != pytest.approx(none.mean())
  assert np.isnan([cells[2]["accuracy"], cells[2]["stderr"], cells[2]["log_likelihood_per_byte"]]).all()
  assert "minus_none" not in by_bucket(marked["none"], bucket, 3)[0]
