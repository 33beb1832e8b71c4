"""What another package may look like: no subclass of ours, annotations as strings; and what is said where it does not fit."""

import gin
import pytest

from hiermem_jax import configuration
from hiermem_jax.data.tasks.table import TASKS, TaskSpec, register_task, task_spec
from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.memory import FFN
from hiermem_jax.plugins import import_attribute
from hiermem_jax.retrieval.encoders import FittedLsaEncoder, LsaEncoder, register_encoder

_MODULE = """
from __future__ import annotations

import dataclasses

from hiermem_jax.data.sources import register_source
from hiermem_jax.models.memory.ffn import FFN as KIND
from hiermem_jax.plugins import register_constructor


@register_source
@dataclasses.dataclass(frozen=True)
class Numbers:
  upto: int = 3

  def parts(self) -> list[str]:
    return ["all"]

  def read(self, part):
    yield from self.records()

  def records(self):
    yield from ({"text": str(i)} for i in range(self.upto))


@register_source
class Halved:
  def parts(self):
    return ["all"]


class Squares:
  def __init__(self, power=2):
    self.power = power

  def fit(self, texts):
    raise NotImplementedError


register_constructor(Squares)
"""


@pytest.fixture(autouse=True, scope="module")
def package(tmp_path_factory):
  folder = tmp_path_factory.mktemp("packages")
  (folder / "their_package").mkdir()
  (folder / "their_package/ext.py").write_text(_MODULE)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield
  gin.clear_config()


def resolved(tmp_path, *bindings):
  (tmp_path / "theirs.gin").write_text("\n".join(["import their_package.ext", *bindings]))
  configuration.load([str(tmp_path / "theirs.gin")], [])
  return configuration.dry_run("cluster", run_dir="r")


def test_classes_that_are_no_subclasses(tmp_path):
  text = resolved(tmp_path, "cluster.corpus = @Numbers()", "Numbers.upto = 5", "cluster.encoder = @Squares()")
  assert "Numbers.upto = 5" in text and "Squares.power = 2" in text and "import their_package.ext" in text
  source = configuration.bound_argument("cluster", "corpus")
  assert [record["text"] for record in source.records()] == list("01234")


@pytest.mark.parametrize(
  ("bindings", "message"),
  [
    (["cluster.corpus = @Numbers()", "Numbers.upto = 'a'"], r"Numbers\.upto = 'a': must be int"),
    (
      ["cluster.corpus = @Halved()"],
      r"cluster\.corpus = .*Halved.*must be Source, with parts, with read, with records",
    ),
    (["cluster.corpus = @Squares()"], r"cluster\.corpus = .*Squares.*must be Source"),
    (["cluster.corpus = @Numbers"], r"cluster\.corpus = @Numbers: .*write @Numbers\(\) to construct one"),
  ],
)
def test_what_does_not_fit_is_named(tmp_path, bindings, message):
  with pytest.raises(InputError, match=message):
    resolved(tmp_path, *bindings)


def test_an_encoder_that_other_processes_could_not_find_is_refused():
  class Mine(FittedLsaEncoder):
    kind = "mine"

  with pytest.raises(InputError, match=r"Mine\.kind = 'mine': no other process finds it; write '.*:.*Mine'"):
    register_encoder(LsaEncoder, Mine)
  with pytest.raises(InputError, match=r"int\.kind = '': no other process finds it; write 'builtins:int'"):
    register_encoder(LsaEncoder, int)


@pytest.mark.parametrize(
  ("statement", "message"),
  [
    ("import no_such_package.ext", "No module named 'no_such_package'.*PYTHONPATH$"),
    ("import a_name_that_is_taken", "hiermem_jax.JsonlSource is there already; give the class another name$"),
  ],
)
def test_modules_that_cannot_be_imported(tmp_path, monkeypatch, statement, message):
  taken = (
    "from hiermem_jax.plugins import register_constructor\nclass JsonlSource: ...\nregister_constructor(JsonlSource)\n"
  )
  (tmp_path / "a_name_that_is_taken.py").write_text(taken)
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "theirs.gin").write_text(statement)
  with pytest.raises(InputError, match=message):
    configuration.load([str(tmp_path / "theirs.gin")], [])


def test_a_memory_kind_by_module_and_name():
  anchor = AnchorConfig(
    num_layers=2, width=8, num_heads=1, head_dim=8, mlp_width=16, vocab_size=10, tied_embeddings=True
  )
  theirs, ours = (
    ModelConfig(anchor=anchor, memory=MemoryConfig(kind=kind, rows=(4,), branching=2))
    for kind in ("their_package.ext:KIND", "ffn")
  )
  assert theirs.bank_params == ours.bank_params > 0
  assert import_attribute("their_package.ext:KIND", "a kind") is FFN
  assert ModelConfig.from_json(theirs.to_json()) == theirs


@pytest.mark.parametrize(
  ("kind", "message"),
  [
    ("gelu", "MemoryConfig.kind = 'gelu': bind one of ffn, .*, kv, or 'module:KIND' that names a MemoryKind"),
    ("json:dumps", "MemoryConfig.kind = 'json:dumps': bind one of"),
    ("json:nothing", "MemoryConfig.kind is 'json:nothing': .*no attribute 'nothing'"),
    ("no_such_module:A", "No module named 'no_such_module'; install its package or add its folder to PYTHONPATH"),
    (":A", "MemoryConfig.kind is ':A'"),
  ],
)
def test_memory_kinds_that_are_not_there(kind, message):
  with pytest.raises(InputError, match=message):
    MemoryConfig(kind=kind, rows=(4,))


def test_a_task_has_a_name_of_its_own(monkeypatch):
  monkeypatch.setattr("hiermem_jax.data.tasks.table.TASKS", dict(TASKS))
  task = TaskSpec(name="theirs", group="extra", kind="generation", reader=list, file="theirs.jsonl")
  register_task(task)
  register_task(task)  # the module is imported again
  assert task_spec("theirs") is task
  with pytest.raises(InputError, match="task 'boolq': there is one of this name; give yours another name"):
    register_task(TaskSpec(name="boolq", group="extra", kind="generation", reader=list, file="b.jsonl"))
  with pytest.raises(InputError, match="there is no task 'mine'; .*theirs, or import the module that registers yours"):
    task_spec("mine")
