"""Evaluation sets as SeqIO tasks, and SeqIO's own evaluator on them."""

import json

import numpy as np
import pytest

seqio = pytest.importorskip("seqio")

from hiermem_jax.data.tasks.registry import register  # noqa: E402
from hiermem_jax.data.text.tokenizer import train_sentencepiece  # noqa: E402
from hiermem_jax.errors import InputError  # noqa: E402

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


def test_a_task_is_replaced_and_limits_keep_the_exemplars(make):
  whole = read(make("arc_easy", CHOICES, shots=1))
  again = read(make("arc_easy", CHOICES, shots=1, max_items=2))
  assert [e["inputs_pretokenized"] for e in again] == [e["inputs_pretokenized"] for e in whole[:4]]
  assert b"fog wet?\nAnswer:" not in again[0]["inputs_pretokenized"].split(b"Answer:")[0]


def test_bad_arguments(make):
  with pytest.raises(InputError, match="there is no task 'arc'; give one of lambada, boolq"):
    make("arc", CHOICES)
  with pytest.raises(InputError, match="arc_easy.jsonl: 3 items, shots = 3; give 0 to 2 shots"):
    make("arc_easy", CHOICES)
  with pytest.raises(InputError, match="task arc_easy: max_items = 0; give 1 or more"):
    make("arc_easy", CHOICES, max_items=0)


def test_a_continuation_has_tokens_where_it_melts_into_the_context(tmp_path, tokenizer, monkeypatch):
  monkeypatch.setattr(type(tokenizer), "encode_batch", lambda self, texts: [[1, 2] for _ in texts])
  path = tmp_path / "x.jsonl"
  path.write_text(json.dumps(CLOZE[0]))
  (only,) = read(register("cloze", str(path), tokenizer.path, task_name="melting_for_test"))
  assert only["inputs"].tolist() == [1] and only["targets"].tolist() == [2]


def test_metric_functions(make):
  choices = make("arc_easy", CHOICES, shots=0)
  (metric,) = choices.score_metric_fns
  examples = read(choices)
  targets = [choices.postprocess_fn("", example=e, is_target=True) for e in examples]
  assert metric(targets, [-9.0 * len(e["targets"]) if not e["is_correct"] else -8.0 for e in examples])["accuracy"] == 1
  entity = make("entity_questions", ENTITY)
  (metric,) = entity.predict_metric_fns
  assert metric(read(entity), [" a cook, yes", " poet"]) == {"accuracy": 0.5, "stderr": 0.125**0.5, "count": 2}


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
