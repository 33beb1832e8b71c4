"""Files in the formats of the public evaluation sets, read and misread."""

import gzip
import json
import os
import pathlib

import pytest

from hiermem_jax.data.tasks import formats
from hiermem_jax.data.tasks.formats import Item
from hiermem_jax.data.tasks.table import TASKS
from hiermem_jax.errors import InputError


def lines(*records):
  return "".join(json.dumps(record) + "\n" for record in records)


def write(folder, content, name="set.jsonl"):
  path = folder / name
  path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
  return str(path)


CLOZE = {"context": "The dog says ", "continuation": "woof"}
CHOICE = {"query": "Question: Is fog wet?", "choices": ["no", "yes"], "gold": 1}
SCHEMA = {"context_options": ["Ann saw Bo so Ann", "Ann saw Bo so Bo"], "continuation": "waved.", "gold": 1}
TRIVIA = {"context": "Question: Who?\nAnswer:", "answer": "Ann", "aliases": ["Annie", "Ann"]}
PIQA = {"goal": "Open a jar", "sol1": "Twist the lid. ", "sol2": "Twist the jar.", "label": 0}
HELLASWAG = {
  "ind": 4,
  "activity_label": "Ironing",
  "ctx_a": "A man irons a shirt. [step] Slowly.",
  "ctx_b": "he",
  "ctx": "A man irons a shirt. [step] Slowly. he",
  "endings": ["stops.", "sings [substeps] loudly."],
  "label": 1,
}
NQ = {"question": "who wrote it", "answer": ["Ann", "Bo"]}
ENTITY = {"question": "What does Ann do?", "answers": ["poet"], "relation": "P106", "subject": "Ann", "doc_id": "w"}
SQUAD = {
  "version": "1.1",
  "data": [
    {
      "title": "Fog",
      "paragraphs": [
        {
          "context": "Fog is wet.",
          "qas": [
            {"id": "1", "question": "How is fog?", "answers": [{"text": "wet", "answer_start": 7}, {"text": "is wet"}]},
            {"id": "2", "question": "What is wet?", "answers": [{"text": "Fog"}]},
          ],
        }
      ],
    }
  ],
}
COQA = {
  "version": "1.0",
  "data": [
    {
      "story": "Ann has a dog.",
      "questions": [{"input_text": "Who?", "turn_id": 1}, {"input_text": "Has what?", "turn_id": 2}],
      "answers": [{"input_text": "Ann", "span_text": "Ann has"}, {"input_text": "a dog"}],
    }
  ],
}


def continued(context, continuation):
  return Item(query=context, choices=(continuation,), retrieval=context)


CHOICE_ITEM = Item(query="Question: Is fog wet?", choices=("no", "yes"), gold=1, retrieval="Is fog wet?")
HELLASWAG_QUERY = "Ironing: A man irons a shirt. Slowly. he"
HELLASWAG_ITEM = Item(query=HELLASWAG_QUERY, choices=("stops.", "sings loudly."), gold=1, retrieval=HELLASWAG_QUERY)

GOOD = {
  "cloze": (formats.read_language_modeling, lines(CLOZE), continued("The dog says", "woof")),
  "squad as cloze": (formats.read_squad, lines(CLOZE, CLOZE), continued("The dog says", "woof")),
  "coqa as cloze": (formats.read_coqa, lines(CLOZE), continued("The dog says", "woof")),
  "multiple choice": (formats.read_multiple_choice, "\n" + lines(CHOICE), CHOICE_ITEM),
  "schema": (
    formats.read_schema,
    lines(SCHEMA),
    Item(
      query="Ann saw Bo so",
      choices=("waved.",),
      gold=1,
      retrieval="Ann saw Bo so waved.",
      contexts=("Ann saw Bo so Ann", "Ann saw Bo so Bo"),
    ),
  ),
  "question answering": (
    formats.read_question_answering,
    lines(TRIVIA),
    Item(query="Question: Who?\nAnswer:", choices=("Ann",), answers=("Ann", "Annie"), retrieval="Who?"),
  ),
  "hellaswag": (formats.read_hellaswag, lines(HELLASWAG), HELLASWAG_ITEM),
  "hellaswag label as text": (formats.read_hellaswag, lines(HELLASWAG | {"label": "1"}), HELLASWAG_ITEM),
  "hellaswag in parts": (
    formats.read_hellaswag,
    lines({k: v for k, v in HELLASWAG.items() if k != "ctx"}),
    HELLASWAG_ITEM,
  ),
  "hellaswag without a second part": (
    formats.read_hellaswag,
    lines({"activity_label": "Ironing", "ctx_a": "He irons.", "ctx_b": "", "endings": ["a", "b"], "label": 0}),
    Item(query="Ironing: He irons.", choices=("a", "b"), retrieval="Ironing: He irons."),
  ),
  "hellaswag of LLM-Foundry": (formats.read_hellaswag, lines(CHOICE), CHOICE_ITEM),
  "piqa": (
    formats.read_piqa,
    lines(PIQA),
    Item(query="Open a jar", choices=("Twist the lid.", "Twist the jar."), retrieval="Open a jar"),
  ),
  "nq": (
    formats.read_questions,
    lines(NQ),
    Item(query="who wrote it", choices=("Ann",), answers=("Ann", "Bo"), retrieval="who wrote it"),
  ),
  "entity questions": (
    formats.read_questions,
    lines(ENTITY),
    Item(
      query="What does Ann do?",
      choices=("poet",),
      answers=("poet",),
      retrieval="What does Ann do?",
      group="P106",
      subject="Ann",
    ),
  ),
  "squad": (formats.read_squad, json.dumps(SQUAD), continued("Fog is wet.\nQuestion: How is fog?\nAnswer:", "wet")),
  "coqa": (formats.read_coqa, json.dumps(COQA, indent=1), continued("Ann has a dog.\nQuestion: Who?\nAnswer:", "Ann")),
  "elements": (
    formats.read_elements,
    "atomic_number,name,symbol\n2,Helium,He\n",
    Item(
      query="The atomic number of Helium is",
      choices=("2",),
      answers=("2",),
      retrieval="The atomic number of Helium is",
      subject="Helium",
    ),
  ),
}


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz"])
@pytest.mark.parametrize("reader, content, item", GOOD.values(), ids=GOOD)
def test_first_item(tmp_path, reader, content, item, name):
  assert reader(write(tmp_path, content, name))[0] == item


@pytest.mark.parametrize("gold", [0, 1])
def test_either_answer_may_be_right(tmp_path, gold):
  (item,) = formats.read_piqa(write(tmp_path, lines(PIQA | {"label": gold})))
  assert item.gold == gold
  (item,) = formats.read_hellaswag(write(tmp_path, lines(HELLASWAG | {"label": str(gold)})))
  assert item.gold == gold


def test_every_question_of_squad_and_coqa(tmp_path):
  squad = formats.read_squad(write(tmp_path, json.dumps(SQUAD)))
  assert squad[1] == continued("Fog is wet.\nQuestion: What is wet?\nAnswer:", "Fog")
  coqa = formats.read_coqa(write(tmp_path, json.dumps(COQA)))
  turns = "Ann has a dog.\nQuestion: Who?\nAnswer: Ann\nQuestion: Has what?\nAnswer:"
  assert coqa[1] == continued(turns, "a dog") and len(squad) == len(coqa) == 2


def test_shared_words_of_a_schema_end_at_a_word(tmp_path):
  options = ["The wine on the bed, as the bed", "The wine on the bed, as the blanket"]
  (item,) = formats.read_schema(write(tmp_path, lines(SCHEMA | {"context_options": options})))
  assert item.retrieval == "The wine on the bed, as the waved."
  (item,) = formats.read_schema(write(tmp_path, lines(SCHEMA | {"context_options": ["Ann", "Bo"]})))
  assert item.retrieval == "waved."


@pytest.mark.parametrize("name", ["valid.jsonl", "valid.jsonl.gz"])
def test_label_file_of_piqa(tmp_path, name):
  record = {k: v for k, v in PIQA.items() if k != "label"}
  path = write(tmp_path, lines(record, record), name)
  with pytest.raises(InputError, match=r"valid-labels.lst: No such file"):
    formats.read_piqa(path)
  labels = tmp_path / "valid-labels.lst"
  labels.write_text("1\n0\n")
  assert [item.gold for item in formats.read_piqa(path)] == [1, 0]
  labels.write_text("1\n2\n")
  with pytest.raises(InputError, match=r"valid-labels.lst, line 2: '2' is not a label; give 0 or 1"):
    formats.read_piqa(path)
  labels.write_text("1\n")
  with pytest.raises(InputError, match=r"valid-labels.lst: 1 labels for 2 items; give .*valid.jsonl"):
    formats.read_piqa(path)


def without(record, field):
  return {k: v for k, v in record.items() if k != field}


BAD = {
  "not JSON": (formats.read_language_modeling, lines(CLOZE) + "\n{nonsense\n", "line 3: not a JSON object"),
  "a list": (formats.read_language_modeling, "[1]\n", "line 1: not a JSON object"),
  "empty": (formats.read_multiple_choice, "\n", "line 1: there are no items; give LLM-Foundry's multiple choice"),
  "missing": (formats.read_multiple_choice, lines(CHOICE, without(CHOICE, "gold")), "line 2: field 'gold' is missing"),
  "out of range": (formats.read_multiple_choice, lines(CHOICE | {"gold": 2}), "'gold' is 2, not one of 0 to 1"),
  "true is no number": (formats.read_multiple_choice, lines(CHOICE | {"gold": True}), "'gold' is True, not one of"),
  "one choice": (formats.read_multiple_choice, lines(CHOICE | {"choices": ["a"]}), "'choices' has 1 entries, fewer"),
  "no list": (formats.read_multiple_choice, lines(CHOICE | {"choices": "ab"}), "'choices' is not a list"),
  "empty choice": (formats.read_multiple_choice, lines(CHOICE | {"choices": ["a", " "]}), r"'choices\[1\]' is empty"),
  "number": (formats.read_language_modeling, lines(CLOZE | {"context": 3}), "'context' is not a string"),
  "surrogate": (formats.read_language_modeling, lines(CLOZE | {"context": "\ud800"}), "holds a lone surrogate"),
  "schema": (formats.read_schema, lines(SCHEMA | {"gold": 2}), "line 1: field 'gold' is 2"),
  "trivia": (
    formats.read_question_answering,
    lines(without(TRIVIA, "aliases")),
    "field 'aliases' is missing, the record has 'context', 'answer'; give",
  ),
  "hellaswag": (formats.read_hellaswag, lines(HELLASWAG | {"label": ""}), "'label' is '', not one of 0 to 1"),
  "hellaswag text": (formats.read_hellaswag, lines({"endings": ["a", "b"], "label": 0}), "'ctx_a' is missing"),
  "piqa": (
    formats.read_piqa,
    lines(PIQA, without(PIQA, "label")),
    "line 2: field 'label' is missing, the record has 'goal', 'sol1', 'sol2'; give PIQA's",
  ),
  "nq": (formats.read_questions, lines(without(NQ, "answer")), "field 'answers' is missing"),
  "entity": (formats.read_questions, lines(ENTITY | {"answers": []}), "field 'answers' has 0 entries"),
  "squad as neither": (formats.read_squad, '{"title": "x"}', "line 1: field 'context' is missing"),
  "squad": (
    formats.read_squad,
    json.dumps({"data": [{"paragraphs": [{"context": "x", "qas": [{"question": "y"}]}]}]}),
    r"set.jsonl, data\[0\], paragraphs\[0\], qas\[0\]: field 'answers' is missing, the record has 'question'; give SQuAD's",
  ),
  "squad of lists": (formats.read_squad, '{"data": [[]]}', r"field 'data\[0\]' is not an object"),
  "coqa": (
    formats.read_coqa,
    json.dumps({"data": [COQA["data"][0] | {"answers": [{"input_text": "x"}]}]}),
    r"data\[0\]: there are 2 questions and 1 answers",
  ),
  "elements": (formats.read_elements, "atomic_number,name,symbol\n2,Helium,He\nx,Y,Z\n", "line 3: .* 'x', not a num"),
  "elements without names": (formats.read_elements, "number,name\n1,H\n", "line 2: field 'atomic_number' is missing"),
  "elements cut off": (formats.read_elements, "name,atomic_number\nHelium\n", "'atomic_number' is not a string"),
}


@pytest.mark.parametrize("reader, content, message", BAD.values(), ids=BAD)
def test_bad_file(tmp_path, reader, content, message):
  with pytest.raises(InputError, match=message) as error:
    reader(write(tmp_path, content))
  assert "set.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
  missing = str(tmp_path / "nowhere.jsonl")
  with pytest.raises(InputError, match="nowhere.jsonl: No such file or directory; give an existing file"):
    formats.read_schema(missing)
  path = tmp_path / "x.jsonl.gz"
  for content in (b"plain", gzip.compress(b"x" * 1000)[:-9]):
    path.write_bytes(content)
    with pytest.raises(InputError, match="x.jsonl.gz: not a gzip file, or cut off"):
      formats.read_schema(str(path))
  path = tmp_path / "x.jsonl"
  path.write_bytes(b"\n\n\xff\n")
  with pytest.raises(InputError, match="x.jsonl, line 3: not UTF-8"):
    formats.read_schema(str(path))


# The published numbers, where they are of these very files.
COUNTS = {name: spec.samples for name, spec in TASKS.items()} | {"nq_open": 3610, "entity_questions": 22068}


@pytest.mark.skipif("HIERMEM_EVAL_DATA" not in os.environ, reason="HIERMEM_EVAL_DATA names no folder")
@pytest.mark.parametrize("name", [name for name in TASKS if name != "cloze"])
def test_public_file(name):
  folder = pathlib.Path(os.environ["HIERMEM_EVAL_DATA"])
  found = [path for path in (folder / TASKS[name].file, folder.parent / TASKS[name].file) if path.is_file()]
  if not found:
    pytest.skip(f"there is no {TASKS[name].file}")
  items = TASKS[name].reader(str(found[0]))
  assert len(items) == COUNTS[name]
  assert all(item.retrieval and item.query for item in items)
  if TASKS[name].kind == "multiple_choice":
    options = sum(1 / len(item.choices) for item in items) / len(items)
    assert options == pytest.approx(TASKS[name].chance, abs=0.01)
