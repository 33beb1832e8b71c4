"""The evaluation tasks of the paper (Appendix B), as its table has them."""

import pytest

from hiermem_jax.data.tasks.table import TASKS

# Group, samples, few-shot examples, kind, accuracy of guessing in per cent.
PAPER = """
  lambada       CK   5153   0  language_modeling  0
  boolq         CK   3270   0  multiple_choice   50
  squad         CK  10570   3  language_modeling  0
  winograd      CK    273   3  schema            50
  winogrande    CK   1267   5  schema            50
  coqa          CK   7983   0  language_modeling  0
  hellaswag     SK  10042   0  multiple_choice   25
  arc_easy      SK   2376   3  multiple_choice   25
  arc_challenge SK   1172   3  multiple_choice   25
  triviaqa      SK   3000   3  generation         0
  piqa          SK   1838   0  multiple_choice   50
  openbook_qa   SK    500  10  multiple_choice   25
  nq_open       SK   2655   0  generation         0
"""
ROWS = [line.split() for line in PAPER.strip().splitlines()]


@pytest.mark.parametrize("name, group, samples, shots, kind, chance", ROWS, ids=[name for name, *_ in ROWS])
def test_task(name, group, samples, shots, kind, chance):
  spec = TASKS[name]
  assert (spec.group, spec.samples, spec.shots, spec.kind) == (group, int(samples), int(shots), kind)
  assert 100 * spec.chance == int(chance)


def test_only_these_count_in_the_averages():
  assert {name for name, spec in TASKS.items() if spec.group != "extra"} == {name for name, *_ in ROWS}
