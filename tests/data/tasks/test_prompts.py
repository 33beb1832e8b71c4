"""What the model reads, to the letter."""

import dataclasses

import pytest

from hiermem_jax.data.tasks.formats import Item
from hiermem_jax.data.tasks.prompts import Prompting, text_pairs
from hiermem_jax.data.tasks.table import TASKS

QUESTION = Item(query="Question: Is fog wet?", choices=("no", "yes"), gold=1, retrieval="")
PAIR = (
  Item(query="Ann is a", choices=("poet", "cook"), gold=1, retrieval=""),
  Item(query="Bo is a", choices=("king", "poet", "cook"), gold=1, retrieval=""),
)
SCHEMA = (
  Item(query="Ann or", contexts=("Ann or Ann", "Ann or Bo"), choices=("sang.",), gold=1, retrieval=""),
  Item(query="Cy or", contexts=("Cy or Cy", "Cy or Di"), choices=("ran.",), gold=1, retrieval=""),
)
TRIVIA = (
  Item(query="Question: Who?\nAnswer:", choices=("Ann",), answers=("Ann", "Annie"), retrieval=""),
  Item(query="Question: What?\nAnswer:", choices=("Fog",), answers=("Fog",), retrieval=""),
)
ELEMENT = Item(query="The atomic number of Helium is", choices=("2",), answers=("2",), retrieval="")


def first(items, task, shots):
  return next(text_pairs(items, dataclasses.replace(TASKS[task], shots=shots)))


def test_zero_shots():
  assert first([QUESTION], "arc_easy", 0) == [
    ("Question: Is fog wet?\nAnswer:", " no"),
    ("Question: Is fog wet?\nAnswer:", " yes"),
  ]
  assert first(PAIR, "openbook_qa", 0) == [("Ann is a", " poet"), ("Ann is a", " cook")]
  assert first(PAIR, "piqa", 0)[1] == ("Question: Ann is a\nAnswer:", " cook")
  assert first(SCHEMA, "winograd", 0) == [("Ann or Ann", " sang."), ("Ann or Bo", " sang.")]
  assert first(TRIVIA, "triviaqa", 0) == [("Question: Who?\nAnswer:", " Ann")]
  assert first([ELEMENT], "elements", 0) == [("The atomic number of Helium is", " 2")]
  nq = Item(query="who wrote it", choices=("Ann",), answers=("Ann",), retrieval="")
  assert first([nq], "nq_open", 0) == [("Question: who wrote it\nAnswer:", " Ann")]
  cloze = Item(query="The dog says", choices=("woof",), retrieval="")
  assert first([cloze], "lambada", 0) == [("The dog says", " woof")]


def test_one_shot():
  assert first(PAIR, "openbook_qa", 1) == [("Bo is a poet\nAnn is a", " poet"), ("Bo is a poet\nAnn is a", " cook")]
  assert first(PAIR, "piqa", 1)[0] == ("Question: Bo is a\nAnswer: poet\nQuestion: Ann is a\nAnswer:", " poet")
  assert first(SCHEMA, "winograd", 1)[1] == ("Cy or Di ran.\nAnn or Bo", " sang.")
  assert first(TRIVIA, "triviaqa", 1) == [("Question: What?\nAnswer: Fog\nQuestion: Who?\nAnswer:", " Ann")]


@pytest.mark.parametrize(
  "name, text",
  [
    ("lambada", "<q> <a>"),
    ("boolq", "<q>\nAnswer: <a>"),
    ("squad", "<q> <a>"),
    ("coqa", "<q> <a>"),
    ("hellaswag", "<q> <a>"),
    ("arc_easy", "<q>\nAnswer: <a>"),
    ("arc_challenge", "<q>\nAnswer: <a>"),
    ("triviaqa", "<q> <a>"),
    ("piqa", "Question: <q>\nAnswer: <a>"),
    ("openbook_qa", "<q> <a>"),
    ("nq_open", "Question: <q>\nAnswer: <a>"),
    ("entity_questions", "Question: <q>\nAnswer: <a>"),
    ("elements", "<q> <a>"),
    ("cloze", "<q> <a>"),
  ],
)
def test_every_task_s_text(name, text):
  """LLM-Foundry's prelimiters and continuation delimiters, and those of Appendix B."""
  items = [
    Item(query="<q>", choices=("<a>",), retrieval=""),
    Item(query="<r>", choices=("<b>", "<c>"), gold=1, retrieval=""),
  ]
  ((pair,), _) = text_pairs(items, dataclasses.replace(TASKS[name], shots=1))
  example = text.replace("<q>", "<r>").replace("<a>", "<c>")
  assert "".join(pair) == f"{example}\n{text}"
  assert pair[1] == " <a>"


def test_few_shot_examples():
  items = [Item(query=f"<{i}>", choices=("no", f"({i})"), gold=1, retrieval="") for i in range(20)]

  def contexts(prompting):
    return [context for ((context, _), _) in text_pairs(items, prompting)]

  got = contexts(Prompting(shots=5))
  assert got == contexts(Prompting(shots=5)) != contexts(Prompting(shots=5, seed=1))
  for i, context in enumerate(got):
    *examples, last = context.split("\n")
    assert last == f"<{i}>" and len(set(examples)) == 5 and f"<{i}> ({i})" not in examples
    assert all(line == f"<{j}> ({j})" for line in examples for j in [line[1 : line.index(">")]])
  assert {line for context in got for line in context.split("\n")[:-1]} == {f"<{i}> ({i})" for i in range(20)}
  assert len(contexts(Prompting(shots=19))[0].split("\n")) == 20  # all the others


SHOTS = {
  "squad": 3,
  "winograd": 3,
  "winogrande": 5,
  "arc_easy": 3,
  "arc_challenge": 3,
  "triviaqa": 3,
  "openbook_qa": 10,
}


@pytest.mark.parametrize("name", TASKS)
def test_table(name):
  spec = TASKS[name]
  assert spec.name == name and spec.delimiter.endswith(" ") and spec.shots == SHOTS.get(name, 0)


def test_groups():
  groups = [spec.group for spec in TASKS.values()]
  assert groups.count("CK") == 6 and groups.count("SK") == 7 and groups.count("extra") == 3
