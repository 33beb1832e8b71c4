"""Evaluation sets as SeqIO tasks, and SeqIO's own evaluator on them."""

import json

import numpy as np
import pytest

seqio = pytest.importorskip("seqio")

from hiermem_jax.data.tasks.registry import register  # noqa: E402
from hiermem_jax.data.tasks.requests import read_requests  # noqa: E402
from hiermem_jax.data.text.tokenizer import train_sentencepiece  # noqa: E402

CHOICES = [
  {"query": "Question: Is fog wet?", "choices": ["no", "yes"], "gold": 1},
  {"query": "Question: Is sand wet?", "choices": ["no", "yes, very"], "gold": 0},
  {"query": "Question: Is naïve 日 rain wet?", "choices": ["no", "yes", "perhaps"], "gold": 2},
]
CLOZE = [{"context": "Fog is", "continuation": "wet"}, {"context": "Sand is not", "continuation": "wet"}]
ENTITY = [
  {"question": "What is Ann?", "answers": ["poet", "cook"], "relation": "P106", "subject": "Ann"},
  {"question": "What is Bo?", "answers": ["cook"], "relation": "P106", "subject": "Bo"},
]
SCHEMA = [
  {"context_options": ["Ann saw Bo so Ann", "Ann saw Bo so Bo"], "continuation": "waved.", "gold": 1},
  {"context_options": ["Cy saw Di so Cy", "Cy saw Di so Di"], "continuation": "ran.", "gold": 0},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  texts = [json.dumps(record, ensure_ascii=False) for record in CHOICES + CLOZE + ENTITY + SCHEMA] * 5
  return train_sentencepiece(texts, str(tmp_path_factory.mktemp("tokenizer") / "t.model"), vocab_size=340)


@pytest.fixture
def make(tmp_path, tokenizer):
  """Registers a task over some records."""

  def register_records(name, records, **options):
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return register(name, str(path), tokenizer.path, task_name=f"{name}_for_test", **options)

  return register_records


def read(task):
  return list(task.get_dataset(sequence_length=None, split="test", shuffle=False).as_numpy_iterator())


def test_examples(make, tokenizer):
  examples = read(make("arc_easy", CHOICES, shots=0))
  assert [e["idx"].tolist() for e in examples] == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1], [2, 2]]
  assert [bool(e["is_correct"]) for e in examples] == [False, True, True, False, False, False, True]
  first = examples[1]
  assert first["inputs_pretokenized"].decode() == "Question: Is fog wet?\nAnswer:"
  assert first["targets_pretokenized"].decode() == " yes" and first["retrieval"].decode() == "Is fog wet?"
  assert first["answers"].shape == (0,) and first["group"] == first["subject"] == b""
  for e in examples:
    context, continuation = e["inputs_pretokenized"].decode(), e["targets_pretokenized"].decode()
    assert e["inputs"].dtype == e["targets"].dtype == e["idx"].dtype == np.int32
    assert e["inputs"].tolist() == tokenizer.encode(context)
    assert [*e["inputs"], *e["targets"]] == tokenizer.encode(context + continuation)


def test_other_kinds(make):
  first, second = read(make("winograd", SCHEMA, shots=0, max_items=1))
  assert first["inputs_pretokenized"] == b"Ann saw Bo so Ann" and second["inputs_pretokenized"] == b"Ann saw Bo so Bo"
  assert first["targets_pretokenized"] == second["targets_pretokenized"] == b" waved."
  assert first["retrieval"] == second["retrieval"] == b"Ann saw Bo so waved." and second["is_correct"]
  entity = read(make("entity_questions", ENTITY))[0]
  assert entity["answers"].tolist() == [b"poet", b"cook"] and entity["group"] == b"P106" and entity["subject"] == b"Ann"
  assert entity["targets_pretokenized"] == b" poet"


def test_a_task_is_replaced(make):
  assert len(read(make("arc_easy", CHOICES, shots=1))) == 7
  assert len(read(make("arc_easy", CHOICES, shots=1, max_items=2))) == 4


@pytest.mark.parametrize(
  "name, records", [("arc_easy", CHOICES), ("cloze", CLOZE), ("entity_questions", ENTITY), ("winograd", SCHEMA)]
)
def test_examples_are_our_own_requests(make, tmp_path, tokenizer, name, records):
  """What SeqIO's users read is what our scoring reads without TensorFlow."""
  examples = read(make(name, records, shots=1))
  requests = read_requests(name, str(tmp_path / f"{name}.jsonl"), tokenizer, shots=1)
  assert len(examples) == len(requests) >= len(records)
  for example, request in zip(examples, requests):
    assert {key: value.decode() if isinstance(value, bytes) else value.tolist() for key, value in example.items()} == {
      "inputs": list(request.inputs),
      "targets": list(request.targets),
      "inputs_pretokenized": request.context,
      "targets_pretokenized": request.continuation,
      "retrieval": request.retrieval,
      "idx": [request.item, request.option],
      "is_correct": request.is_gold,
      "answers": [answer.encode() for answer in request.answers],
      "group": request.group,
      "subject": request.subject,
    }


def test_metric_functions(make):
  choices = make("arc_easy", CHOICES, shots=0)
  (metric,) = choices.score_metric_fns
  examples = read(choices)
  targets = [choices.postprocess_fn("", example=e, is_target=True) for e in examples]
  assert metric(targets, [-9.0 * len(e["targets"]) if not e["is_correct"] else -8.0 for e in examples])["accuracy"] == 1
  entity = make("entity_questions", ENTITY)
  (metric,) = entity.predict_metric_fns
  got = metric(read(entity), [" a cook, yes", " poet"])
  assert got == {"accuracy": 0.5, "stderr": pytest.approx(0.125**0.5), "count": 2}


def evaluate(task, folder, **functions):
  evaluator = seqio.Evaluator(
    task.name,
    seqio.PrefixLMFeatureConverter(pack=False),
    eval_split="test",
    sequence_length={"inputs": 64, "targets": 64},
    logger_cls=[seqio.JSONLogger],
    log_dir=str(folder),
    async_compute_metrics=False,
  )
  result, _ = evaluator.evaluate(compute_metrics=True, step=1, **functions)
  got = result.result()[task.name]
  return {name: getattr(value, "value", value) for name, value in got.items()}


def test_seqio_s_evaluator(make, tmp_path, tokenizer):
  cloze = make("cloze", CLOZE)
  got = evaluate(cloze, tmp_path, score_fn=lambda ds: [(int(i), (-1.5, i == 0)) for i, _ in reversed(list(ds))])
  tokens = sum(len(e["targets"]) for e in read(cloze))
  assert got["accuracy"] == 0.5 and got["perplexity"] == pytest.approx(np.exp(3 / tokens))
  choices = make("arc_easy", CHOICES, shots=0)
  got = evaluate(choices, tmp_path, score_fn=lambda ds: [(int(i), -float(i)) for i, _ in ds])
  assert got["accuracy_unnormalized"] == pytest.approx(1 / 3) and got["count"] == 3
  entity = make("entity_questions", ENTITY)
  rows = [tokenizer.encode(" cook") + [tokenizer.eot_id]] * 2
  got = evaluate(entity, tmp_path, predict_fn=lambda ds: [(int(i), rows[i]) for i, _ in ds])
  assert got["accuracy"] == 1
