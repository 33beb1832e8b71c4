"""The file of a task as requests, without SeqIO."""

import json

import pytest

from hiermem_jax.data.tasks.requests import Request, read_requests
from hiermem_jax.errors import InputError

CHOICES = [
  {"query": "Question: Is fog wet?", "choices": ["no", "yes"], "gold": 1},
  {"query": "Question: Is sand wet?", "choices": ["no", "yes, very"], "gold": 0},
  {"query": "Question: Is rain wet?", "choices": ["no", "yes", "perhaps"], "gold": 2},
]


class Letters:
  """A token is a letter."""

  def encode_batch(self, texts):
    return [list(map(ord, text)) for text in texts]


@pytest.fixture
def requests(tmp_path):
  """The requests of some records."""

  def read(name, records, **options):
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_requests(name, str(path), Letters(), **options)

  return read


def ids(text):
  return tuple(map(ord, text))


def test_a_request_per_option(requests):
  found = requests("arc_easy", CHOICES, shots=0)
  places = [(request.item, request.option, request.is_gold) for request in found]
  assert places == [
    (0, 0, False),
    (0, 1, True),
    (1, 0, True),
    (1, 1, False),
    (2, 0, False),
    (2, 1, False),
    (2, 2, True),
  ]
  context = "Question: Is fog wet?\nAnswer:"
  assert found[1] == Request(
    item=0, option=1, is_gold=True, context=context, continuation=" yes", inputs=ids(context), targets=ids(" yes"),
    retrieval="Is fog wet?",
  )  # fmt: skip


def test_a_generation_task_has_its_answers_and_subject(requests):
  (found,) = requests(
    "entity_questions",
    [{"question": "What is Ann?", "answers": ["poet", "cook"], "relation": "P106", "subject": "Ann"}],
  )
  assert (found.continuation, found.answers, found.is_gold) == (" poet", ("poet", "cook"), True)
  assert (found.group, found.subject, found.retrieval) == ("P106", "Ann", "What is Ann?")


def test_limits_keep_the_few_shot_examples_of_the_whole_file(requests):
  whole = requests("arc_easy", CHOICES, shots=2)
  assert requests("arc_easy", CHOICES, shots=2, max_items=2) == whole[:4]
  gold = {"Is fog wet?": "yes", "Is sand wet?": "no", "Is rain wet?": "perhaps"}
  for request in whole:
    *examples, (question, answer) = (part.split("\nAnswer:") for part in request.context.split("Question: ")[1:])
    assert answer == "" and question == request.retrieval
    assert {q: a.strip() for q, a in examples} == {q: a for q, a in gold.items() if q != question}


def test_bad_arguments(requests):
  with pytest.raises(InputError, match="there is no task 'arc'; give one of lambada, boolq"):
    requests("arc", CHOICES)
  with pytest.raises(InputError, match="arc_easy.jsonl: 3 items, shots = 3; give 0 to 2 shots"):
    requests("arc_easy", CHOICES)
  with pytest.raises(InputError, match="task arc_easy: max_items = 0; give 1 or more"):
    requests("arc_easy", CHOICES, max_items=0)
