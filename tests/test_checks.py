"""What is known before the first stage starts is refused there, in one line, and creates nothing."""

import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from hiermem_jax import checks, configuration
from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.model import init_params
from hiermem_jax.parallel.mesh import abstract_mesh
from hiermem_jax.training.config import Objective, TrainingRun
from hiermem_jax.training.optimizer import OptimizerConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
JSONL = ("prepare.train = @JsonlSource()", "JsonlSource.pattern = '/none/*.jsonl'")


def check(*bindings, verb="run", run_dir=None, gin_file="tests/smoke.gin"):
  configuration.load([gin_file], list(bindings))
  configuration.dry_run(verb, run_dir=run_dir or "")
  checks.before(configuration.planned(), run_dir)


@pytest.mark.parametrize(
  "bindings, message",
  [
    (["OptimizerConfig.warmup_steps = 5"], "OptimizerConfig.warmup_steps = 5 leaves nothing of the run's 5 steps"),
    (["baseline/train.steps = 1"], "OptimizerConfig.warmup_steps = 1 leaves nothing of the run's 1 steps"),
    (["MemoryConfig.branching = 3"], "cotrain/train, packed/train: its tree has 4 leaves, MemoryConfig .* has 9"),
    (["TreeConfig.depth = 3"], "its tree has 8 leaves, MemoryConfig .* has 4; bind the tree's branching"),
    (["TreeConfig.branching = 4", "TreeConfig.depth = 1"], "its tree has branching 4 and depth 1, MemoryConfig has br"),
    (["cluster.tokenizer_vocab_size = 513"], "anchor/train, packed/train: its tokenizer has 513 pieces, .* is 512"),
    (["prepare.tree = None"], "cotrain/train, packed/train: prepared without a cluster tree"),
    (["OptimizerConfig.bank_update = ('lazy',)"], "the tree has 2 levels"),
    (["cotrain/Objective.frozen_anchor = True", "cotrain/train.init_from = None"], "train.init_from = None: a frozen"),
    (["evaluate.modes = ('fetched', 'best')"], "mode 'best': choose from"),
    (["evaluate.modes = ('levels 3',)"], r"none on levels \[3\]"),
    (["evaluate.modes = ('rag none',)"], "mode 'rag none': without documents"),
    (JSONL, "no file matches /none/"),
    (["evaluate.rag = @RagConfig()", "RagConfig.documents = @JsonlSource()", JSONL[1]], "no file matches /none/"),
    (
      ["train.validation = @ValidationConfig()", "ValidationConfig.dataset = 'packed/train'",
       "ValidationConfig.others = (('b', '/none/b'),)"],
      "^/none/b/manifest.json: No such file or directory; give ValidationConfig.others",
    ),
    (["train.dataset = '/none/train'"], "^/none/train/manifest.json: No such file or directory; give train.dataset"),
    (["prepare.tokenizer = '/none/t.model'"], "^/none/t.model: no such tokenizer; bind prepare.tokenizer"),
    (["prepare.tree = '/none/tree'"], "^/none/tree: no cluster tree there; run cluster first"),
    (["cotrain/train.init_from = '/none/a'"], "^/none/a: no checkpoint there; train it first or bind "),
    (["evaluate.baseline = '/none/a'"], "^/none/a: no checkpoint there; train it first or bind "),
    (["cluster.tokenizer_vocab_size = None", "cluster.tokenizer = '/none/t'"], "^/none/t: no such tokenizer"),
  ],
)  # fmt: skip
def test_refused_before_the_first_stage(bindings, message):
  with pytest.raises(InputError, match=message):
    check(*bindings)


@pytest.mark.parametrize(
  "binding, message",
  [
    ("TreeConfig.depth = 3", "cluster: its tree has 8 leaves, MemoryConfig .* has 4"),
    ("TreeConfig.branching = 4\nTreeConfig.depth = 1", "cluster: its tree has branching 4 and depth 1"),
    ("AnchorConfig.vocab_size = 511", "cluster: its tokenizer has 512 pieces, AnchorConfig.vocab_size is 511"),
  ],
)
def test_describe_refuses_what_will_not_fit(binding, message):
  configuration.load(["tests/smoke.gin"], ["ModelConfig.memory = @MemoryConfig()", *binding.splitlines()])
  with pytest.raises(InputError, match=message):
    configuration.call("describe")


def test_what_earlier_stages_make_need_not_be_there(tmp_path):
  check(run_dir=str(tmp_path / "run"))
  with pytest.raises(InputError, match="baseline: no checkpoint there"):  # a stage that comes too late makes nothing
    check("anchor/train.init_from = 'baseline'", run_dir=str(tmp_path / "run"))
  with pytest.raises(InputError, match=f"{tmp_path}/run/packed/train/manifest.json: No such file"):
    order = "(@cluster, @anchor/train, @prepare, @baseline/train, @cotrain/train, @evaluate)"
    check(f"run.stages = {order}", run_dir=str(tmp_path / "run"))
  assert not list(tmp_path.iterdir())


def test_a_training_that_resumes_reads_no_other(tmp_path, write_packed):
  bindings = ("ModelConfig.memory = None", f"train.dataset = '{tmp_path}/data'", "train.init_from = 'gone'")
  write_packed(str(tmp_path / "data"), [(0, [1, 2], [1, 1])])
  with pytest.raises(InputError, match="gone: no checkpoint there"):
    check(*bindings, verb="train", run_dir=str(tmp_path))
  (tmp_path / "checkpoints/1").mkdir(parents=True)
  check(*bindings, verb="train", run_dir=str(tmp_path))


def test_space_on_the_disk(tmp_path, monkeypatch):
  free = {"bytes": 10**12}
  monkeypatch.setattr(shutil, "disk_usage", lambda place: types.SimpleNamespace(free=free["bytes"]))
  check(run_dir=str(tmp_path / "run"))
  free["bytes"] = 1000
  with pytest.raises(
    InputError, match=f"{tmp_path}/run: 0.0 GB are free there, and checkpoints need about .*cotrain/t"
  ):
    check(run_dir=str(tmp_path / "run"))


@pytest.mark.parametrize("frozen", [False, True])
def test_bytes_of_a_checkpoint_are_those_of_the_state(frozen):
  anchor = AnchorConfig(num_layers=2, width=16, num_heads=2, head_dim=8, mlp_width=32, vocab_size=64)
  model = ModelConfig(anchor=anchor, memory=MemoryConfig(rows=(2, 0, 4), branching=3, dtype="bfloat16"))
  optimizer = OptimizerConfig(
    peak_learning_rate=1.0, final_learning_rate=1.0, warmup_steps=0, weight_decay=0.0, bank_moment_dtype="bfloat16"
  )
  run = TrainingRun(
    model=model, optimizer=optimizer, steps=2, batch_size=2, objective=Objective(frozen_anchor=frozen), init_from="a"
  )

  def state():
    params = jax.tree.map(jnp.asarray, init_params(jax.random.key(0), model))
    return params, run.transformation().init(params)

  leaves = jax.tree.leaves(jax.eval_shape(state))
  large = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
  assert run.state_bytes == pytest.approx(large, rel=0.01)  # but for the counters


@pytest.mark.slow
def test_devices_that_are_not_there(tmp_path):
  """JAX_PLATFORMS=cuda on a machine without a GPU is one line, before anything."""
  command = [sys.executable, "-m", "hiermem_jax.run", "--gin_file=tests/smoke.gin", f"--run_dir={tmp_path}/run"]
  for flags in ([], ["--validate_only"]):
    result = subprocess.run(
      [*command, *flags],
      capture_output=True,
      text=True,
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cuda"},
      check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (
      line.startswith("error: JAX_PLATFORMS=cuda: jax finds no such device here") and "Traceback" not in result.stderr
    )
    assert not list(tmp_path.iterdir())


def test_meshes_that_do_not_fit():
  configuration.load(["tests/smoke.gin"], ["MeshConfig.model = 3"])
  configuration.dry_run("run", run_dir="")
  with pytest.raises(InputError, match="model axis of 3"):
    checks.devices(configuration.planned(), mesh=True)
  checks.devices(configuration.planned(), mesh=False)
  configuration.load(["tests/smoke.gin"], ["train.microbatches = 3"])
  configuration.dry_run("run", run_dir="")
  with pytest.raises(
    InputError, match="train.microbatches = 3: does not divide the 8 sequences that each of 1 devices"
  ):
    checks.devices(configuration.planned(), mesh=True)


def test_lengths_that_the_context_axis_does_not_divide(monkeypatch):
  """Those that an earlier stage will pack."""
  mesh = abstract_mesh((1, 1, 3, 1))
  monkeypatch.setattr("hiermem_jax.parallel.make_mesh", lambda config: mesh)
  configuration.load(["tests/smoke.gin"], ["AnchorConfig.num_heads = 3"])
  configuration.dry_run("run", run_dir="")
  with pytest.raises(InputError, match="MeshConfig.context = 3: sequences of [0-9]+ tokens cannot be split"):
    checks.devices(configuration.planned(), mesh=True)


@pytest.mark.parametrize("name", ["run[1]", "run*", "a\\b"])
def test_a_directory_whose_checkpoints_could_not_be_read_back(tmp_path, name):
  with pytest.raises(InputError, match="in its path, and what is saved there could not be read back; use another"):
    check(run_dir=str(tmp_path / name))
  assert not any(tmp_path.iterdir())
