"""Readers of public evaluation sets in their original formats.

Every reader takes the path of a file, plain or compressed as .gz, and returns the items in the order of the file. White
space around texts is removed. If the file is damaged or has another format, the reader raises an InputError that names
the file and the line.

`Item.retrieval` is the text that the memory is chosen by (paper, Section 7.2). It is the question; for language
modelling it is the context; for a schema it is the words that all its options begin with, and the continuation.
Few-shot examples are never part of it.
"""

import dataclasses
import itertools
import re

from hiermem_jax.data.tasks.records import Record, csv_records, json_document, json_lines, read_content
from hiermem_jax.errors import InputError

_LM_REMEDY = "give JSON lines with context and continuation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """One item of an evaluation set.

  Attributes:
    query: text in front of the answer, without delimiter. Of a schema, the words that all its options begin with.
    choices: the options. Language modelling and schemas have one continuation, generation has the first answer.
    gold: number of the correct option.
    retrieval: text that the memory is chosen by.
    contexts: of a schema, the text in front of the continuation for each option; otherwise None.
    answers: of generation, all accepted answers.
    group: relation of an entity question, otherwise "".
    subject: what the question is about, if the file says so, otherwise "".
  """

  query: str
  choices: tuple[str, ...]
  gold: int = 0
  retrieval: str
  contexts: tuple[str, ...] | None = None
  answers: tuple[str, ...] = ()
  group: str = ""
  subject: str = ""


def read_language_modeling(path: str) -> list[Item]:
  """LLM-Foundry's language modelling, one object a line: `context`, `continuation`."""
  return [_continued(r.text("context"), r.text("continuation")) for r in json_lines(path, _LM_REMEDY)]


def read_multiple_choice(path: str) -> list[Item]:
  """LLM-Foundry's multiple choice, one object a line: `query`, `choices`, `gold`."""
  return [_choice(r) for r in json_lines(path, "give LLM-Foundry's multiple choice: query, choices and gold")]


def read_schema(path: str) -> list[Item]:
  """LLM-Foundry's schema tasks, one object a line: `context_options`, `continuation`, `gold`."""
  items = []
  for record in json_lines(path, "give LLM-Foundry's schema format: context_options, continuation and gold"):
    contexts, continuation = record.texts("context_options", least=2), record.text("continuation")
    words = zip(*(context.split(" ") for context in contexts))
    shared = " ".join(same[0] for same in itertools.takewhile(lambda same: len(set(same)) == 1, words))
    items.append(
      Item(
        query=shared,
        choices=(continuation,),
        gold=record.index("gold", len(contexts)),
        retrieval=f"{shared} {continuation}".strip(),
        contexts=contexts,
      )
    )
  return items


def read_question_answering(path: str) -> list[Item]:
  """LLM-Foundry's question answering, one object a line: `context` ending in "Answer:", `answer`, `aliases`."""
  items = []
  for record in json_lines(path, "give LLM-Foundry's question answering: context, answer and aliases"):
    answers = (record.text("answer"), *record.texts("aliases", least=0))
    items.append(_generated(record.text("context"), tuple(dict.fromkeys(answers))))
  return items


def read_hellaswag(path: str) -> list[Item]:
  """HellaSwag, one object a line: the original's `ctx` (or `ctx_a`, `ctx_b`), `endings`, `label`, or LLM-Foundry's.

  The query is "activity_label: ctx", or `ctx` alone if there is no label. WikiHow's marks such as [step] are removed.
  """
  items = []
  for record in json_lines(path, "give HellaSwag's ctx, endings and label, or query, choices and gold"):
    if "query" in record.fields:
      items.append(_choice(record))
      continue
    names = ("ctx",) if "ctx" in record.fields else ("ctx_a", "ctx_b")
    query = " ".join(record.text(name) for name in names if record.fields.get(name) != "")
    if "activity_label" in record.fields:
      query = f"{record.text('activity_label')}: {query}"
    query, endings = _without_marks(query), record.texts("endings", least=2)
    gold = record.index("label", len(endings))
    items.append(Item(query=query, choices=tuple(map(_without_marks, endings)), gold=gold, retrieval=query))
  return items


def read_piqa(path: str) -> list[Item]:
  """PIQA, one object a line: `goal`, `sol1`, `sol2`, and `label` (0 or 1), here or in a label file in the same folder.

  The label file of valid.jsonl is valid-labels.lst, one label a line.
  """
  labels = f"{path.removesuffix('.gz').removesuffix('.jsonl')}-labels.lst"
  records = json_lines(path, f"give PIQA's goal, sol1 and sol2, and label here or in {labels}")
  if "label" in records[0].fields:
    golds = [record.index("label", 2) for record in records]
  else:
    golds = _read_labels(labels, path, len(records))
  return [
    Item(query=r.text("goal"), choices=(r.text("sol1"), r.text("sol2")), gold=gold, retrieval=r.text("goal"))
    for r, gold in zip(records, golds)
  ]


def read_questions(path: str) -> list[Item]:
  """NQ-open and EntityQuestions, one object a line: `question`, and a list `answers` or `answer`.

  The fields `relation` and `subject` are read if they exist. Other fields, such as passages, are not read.
  """
  items = []
  for record in json_lines(path, "give JSON lines with question and a list of answers"):
    answers = record.texts("answer" if "answer" in record.fields else "answers")
    group, subject = (record.text(name) if name in record.fields else "" for name in ("relation", "subject"))
    items.append(_generated(record.text("question"), answers, group=group, subject=subject))
  return items


def read_squad(path: str) -> list[Item]:
  """SQuAD 1.1, the original JSON, or LLM-Foundry's `context` and `continuation`.

  From the original, the context is the passage, "Question: ..." and "Answer:", each on a line of its own. The
  continuation is the first of the answers.
  """
  document = json_document(path, "give SQuAD's data, paragraphs and qas, or context and continuation in JSON lines")
  if document is None:
    return read_language_modeling(path)
  items = []
  for article in document.records("data"):
    for paragraph in article.records("paragraphs"):
      passage = paragraph.text("context")
      for qa in paragraph.records("qas"):
        context = f"{passage}\nQuestion: {qa.text('question')}\nAnswer:"
        items.append(_continued(context, qa.records("answers")[0].text("text")))
  return items


def read_coqa(path: str) -> list[Item]:
  """CoQA, the original JSON, or LLM-Foundry's `context` and `continuation`.

  From the original, every turn is an item. The context is the story, then "Question: ..." and "Answer: ..." of the
  turns so far, and the turn's own question; the continuation is the turn's answer.
  """
  document = json_document(path, "give CoQA's story, questions and answers, or context and continuation in JSON lines")
  if document is None:
    return read_language_modeling(path)
  items = []
  for story in document.records("data"):
    context = story.text("story")
    questions, answers = story.records("questions"), story.records("answers")
    if len(questions) != len(answers):
      raise story.error(f"there are {len(questions)} questions and {len(answers)} answers")
    for question, answer in zip(questions, answers):
      context = f"{context}\nQuestion: {question.text('input_text')}\nAnswer:"
      items.append(_continued(context, answer.text("input_text")))
      context = f"{context} {answer.text('input_text')}"
  return items


def read_elements(path: str) -> list[Item]:
  """The chemical elements, a CSV file with the columns `atomic_number`, `name` and `symbol`."""
  items = []
  for record in csv_records(path, "give a CSV file with the columns atomic_number, name and symbol"):
    name, number = record.text("name"), record.text("atomic_number")
    if not number.isdecimal():
      raise record.error(f"field 'atomic_number' is {number!r}, not a number")
    items.append(_generated(f"The atomic number of {name} is", (number,), subject=name))
  return items


def _continued(context: str, continuation: str) -> Item:
  return Item(query=context, choices=(continuation,), retrieval=context)


def _choice(record: Record) -> Item:
  query, choices = record.text("query"), record.texts("choices", least=2)
  return Item(query=query, choices=choices, gold=record.index("gold", len(choices)), retrieval=_question(query))


def _generated(query: str, answers: tuple[str, ...], group: str = "", subject: str = "") -> Item:
  return Item(
    query=query, choices=answers[:1], answers=answers, retrieval=_question(query), group=group, subject=subject
  )


def _question(text: str) -> str:
  """The question alone, if the file has it with "Question:" and "Answer:" around it."""
  return text.removeprefix("Question: ").removesuffix("\nAnswer:")


def _without_marks(text: str) -> str:
  text = re.sub(r"\[.*?\]", "", text.replace(" [title]", ". "))
  return re.sub(" +", " ", text).strip()


def _read_labels(path: str, items_path: str, size: int) -> list[int]:
  lines = read_content(path).split()
  for number, line in enumerate(lines, start=1):
    if line not in ("0", "1"):
      raise InputError(f"{path}, line {number}: {line!r} is not a label; give 0 or 1")
  if len(lines) != size:
    raise InputError(f"{path}: {len(lines)} labels for {size} items; give the label file of {items_path}")
  return [int(line) for line in lines]
