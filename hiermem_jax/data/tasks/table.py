"""The tasks of the paper's evaluation (Section 3 and Appendix B), with the prompts of LLM-Foundry, and three more."""

import dataclasses
from collections.abc import Callable

from hiermem_jax.data.tasks import formats
from hiermem_jax.data.tasks.formats import Item
from hiermem_jax.data.tasks.prompts import Prompting
from hiermem_jax.errors import InputError

COMMON, SPECIFIC, EXTRA = "CK", "SK", "extra"
GENERATED_KINDS = ("generation", "number")  # tasks whose answer is generated text; of the others options are scored

_ANSWER = "\nAnswer: "
_QUESTION = "Question: "


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec(Prompting):
  """A task: how its items become text (see `Prompting`), how its file is read and how answers are judged.

  Attributes:
    name: of the task.
    group: "CK" common knowledge, "SK" specific knowledge, "extra" outside the averages.
    kind: how answers are judged: "multiple_choice", "schema", "language_modeling", "generation" or "number"; see
      metrics.py.
    reader: reads its files.
    file: usual name of its file.
    samples: the published number of items; None where none is published.
    chance: accuracy of guessing at random.
  """

  name: str
  group: str
  kind: str
  reader: Callable[[str], list[Item]]
  file: str
  samples: int | None = None
  chance: float = 0.0


_SPECS = (
  TaskSpec(
    name="lambada",
    group=COMMON,
    kind="language_modeling",
    reader=formats.read_language_modeling,
    file="lambada_openai.jsonl",
    samples=5153,
  ),
  TaskSpec(
    name="boolq",
    group=COMMON,
    kind="multiple_choice",
    reader=formats.read_multiple_choice,
    file="boolq.jsonl",
    samples=3270,
    chance=0.5,
    delimiter=_ANSWER,
  ),
  TaskSpec(
    name="squad",
    group=COMMON,
    kind="language_modeling",
    reader=formats.read_squad,
    file="squad.jsonl",
    samples=10570,
    shots=3,
  ),
  TaskSpec(
    name="winograd",
    group=COMMON,
    kind="schema",
    reader=formats.read_schema,
    file="winograd.jsonl",
    samples=273,
    chance=0.5,
    shots=3,
  ),
  TaskSpec(
    name="winogrande",
    group=COMMON,
    kind="schema",
    reader=formats.read_schema,
    file="winogrande.jsonl",
    samples=1267,
    chance=0.5,
    shots=5,
  ),
  TaskSpec(
    name="coqa",
    group=COMMON,
    kind="language_modeling",
    reader=formats.read_coqa,
    file="coqa.jsonl",
    samples=7983,
  ),
  TaskSpec(
    name="hellaswag",
    group=SPECIFIC,
    kind="multiple_choice",
    reader=formats.read_hellaswag,
    file="hellaswag_val.jsonl",
    samples=10042,
    chance=0.25,
  ),
  TaskSpec(
    name="arc_easy",
    group=SPECIFIC,
    kind="multiple_choice",
    reader=formats.read_multiple_choice,
    file="arc_easy.jsonl",
    samples=2376,
    chance=0.25,
    shots=3,
    delimiter=_ANSWER,
  ),
  TaskSpec(
    name="arc_challenge",
    group=SPECIFIC,
    kind="multiple_choice",
    reader=formats.read_multiple_choice,
    file="arc_challenge.jsonl",
    samples=1172,
    chance=0.25,
    shots=3,
    delimiter=_ANSWER,
  ),
  TaskSpec(
    name="triviaqa",
    group=SPECIFIC,
    kind="generation",
    reader=formats.read_question_answering,
    file="triviaqa_sm_sub.jsonl",
    samples=3000,
    shots=3,
  ),
  TaskSpec(
    name="piqa",
    group=SPECIFIC,
    kind="multiple_choice",
    reader=formats.read_piqa,
    file="piqa_valid.jsonl",
    samples=1838,
    chance=0.5,
    prelimiter=_QUESTION,
    delimiter=_ANSWER,
  ),
  TaskSpec(
    name="openbook_qa",
    group=SPECIFIC,
    kind="multiple_choice",
    reader=formats.read_multiple_choice,
    file="openbook_qa.jsonl",
    samples=500,
    chance=0.25,
    shots=10,
  ),
  TaskSpec(
    name="nq_open",
    group=SPECIFIC,
    kind="generation",
    reader=formats.read_questions,
    file="nq_open_dev.jsonl",
    samples=2655,  # of Liu et al. (2024); NQ-open's own development file has 3,610
    prelimiter=_QUESTION,
    delimiter=_ANSWER,
  ),
  TaskSpec(
    name="entity_questions",
    group=EXTRA,
    kind="generation",
    reader=formats.read_questions,
    file="entityquestions_dev.jsonl",
    prelimiter=_QUESTION,
    delimiter=_ANSWER,
  ),
  TaskSpec(
    name="elements",
    group=EXTRA,
    kind="number",
    reader=formats.read_elements,
    file="elements.csv",
    samples=118,
  ),
  TaskSpec(
    name="cloze",
    group=EXTRA,
    kind="language_modeling",
    reader=formats.read_language_modeling,
    file="cloze.jsonl",
  ),
)

TASKS: dict[str, TaskSpec] = {spec.name: spec for spec in _SPECS}


def register_task(spec: TaskSpec) -> None:
  """Adds a task, which `TaskSet.names` then takes; for a module that a gin file imports.

  Raises:
    InputError: there is another task of that name.
  """
  if TASKS.setdefault(spec.name, spec) != spec:
    raise InputError(f"task '{spec.name}': there is one of this name; give yours another name")


def task_spec(name: str) -> TaskSpec:
  """The task of that name.

  Raises:
    InputError: there is none.
  """
  if name not in TASKS:
    own = "or import the module that registers yours in the gin file"
    raise InputError(f"there is no task '{name}'; give one of {', '.join(TASKS)}, {own}")
  return TASKS[name]
