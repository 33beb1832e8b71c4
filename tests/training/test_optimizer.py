"""Learning rates by hand, and updates against PyTorch's AdamW and, part by part, against optax's."""

import functools
import math
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hiermem_jax import configuration
from hiermem_jax.errors import InputError
from hiermem_jax.models import AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.models.anchor import init_anchor
from hiermem_jax.models.bank import RowGradient, sum_rows
from hiermem_jax.parallel.layout import abstract_arrays, array_layouts
from hiermem_jax.parallel.mesh import MeshConfig, abstract_mesh
from hiermem_jax.training import OptimizerConfig
from hiermem_jax.training.config import TrainingRun
from hiermem_jax.training.optimizer import PartSettings, apply_updates
from hiermem_jax.training.state import init_state

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def config(**changes):
  settings = {"peak_learning_rate": 0.01, "final_learning_rate": 0.001, "warmup_steps": 10, "weight_decay": 0.1}
  return OptimizerConfig(**settings | changes)


@pytest.mark.parametrize("kind, decay_steps", [("cosine", None), ("constant", None), ("wsd", None), ("wsd", 20)])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_schedule(warmup, kind, decay_steps):
  """The first step has a rate; then half a cosine to the final rate, the peak, or the peak and a line to the final rate."""
  schedule = config(warmup_steps=warmup, schedule_kind=kind, decay_steps=decay_steps).schedule(50)
  for step in range(55):
    if step < warmup:
      expected = 0.01 * (step + 1) / warmup
    elif kind == "cosine":
      expected = 0.001 + 0.009 * (1 + math.cos(math.pi * min(1, (step - warmup) / (50 - warmup)))) / 2
    elif kind == "constant":
      expected = 0.01
    else:
      falling = decay_steps or 5
      expected = 0.01 - 0.009 * min(1, max(0, step - (50 - falling)) / falling)
    assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("steps", [3, 10])
def test_warmup_that_leaves_no_steps(steps):
  with pytest.raises(InputError, match=r"OptimizerConfig.warmup_steps = 10 leaves nothing of the run's"):
    config().schedule(steps)


@pytest.mark.parametrize(
  "changes, match",
  [
    (
      {"decay_steps": 5},
      "OptimizerConfig.decay_steps = 5: schedule_kind = 'cosine' has no such steps; bind 'wsd', or None",
    ),
    ({"schedule_kind": "wsd", "decay_steps": 41}, "OptimizerConfig.decay_steps = 41: the warmup of 10 leaves 40 of"),
    ({"bank": PartSettings(warmup_steps=50)}, "PartSettings.warmup_steps = 50 leaves nothing of the run's 50 steps"),
    (
      {"levels": (None, PartSettings(schedule_kind="wsd", decay_steps=41))},
      "PartSettings.decay_steps = 41: the warmup of 10 leaves 40 of the run's 50 steps; bind fewer",
    ),
    ({"levels": (None,)}, "OptimizerConfig.levels has 1 entries: the tree has 2 levels; bind one entry for each"),
  ],
)
def test_settings_that_do_not_fit_the_run(changes, match):
  with pytest.raises(InputError, match=match):
    config(**changes).build(50, MemoryConfig(rows=(1, 1), branching=2), 4)


@pytest.mark.parametrize(
  "name, bad, good",
  [
    ("peak_learning_rate", (0.0, -1.0, math.nan), 1e-9),
    ("final_learning_rate", (-1e-9,), 0.0),
    ("warmup_steps", (-1,), 0),
    ("decay_steps", (0,), 1),
    ("weight_decay", (-0.1,), 0.0),
    ("beta1", (-0.1, 1.0), 0.0),
    ("beta2", (-0.1, 1.0), 0.0),
    ("epsilon", (0.0,), 1e-30),
    ("clip_norm", (0.0,), 1e-30),
  ],
)
def test_numbers_that_no_optimizer_can_have(name, bad, good):
  makers = [config] + [PartSettings] * (name not in ("epsilon", "clip_norm"))
  for make in makers:
    owner = type(make()).__name__
    for value in bad:
      with pytest.raises(InputError, match=f"{owner}.{name} = {value}: bind "):
        make(**{name: value})
    make(**{name: good})


@pytest.mark.parametrize("clip_norm", [1.0, 100.0])
@pytest.mark.parametrize("table_rows", [3, 8])
def test_dense_updates_equal_pytorch(clip_norm, table_rows):
  """Small and large gradients, clipped by one norm over all parameters; decay is decoupled and spares nothing.

  The gradient of the table is that of four sequences, two of which may share a row; in half of the steps none has memory,
  and moments and weights still decay.
  """
  torch = pytest.importorskip("torch")
  memory = MemoryConfig(rows=(1,), branching=table_rows - 1)
  settings = config(warmup_steps=2, clip_norm=clip_norm, epsilon=1e-3, beta1=0.8, beta2=0.9)
  transformation, schedule = settings.build(8, memory, 4), settings.schedule(8)
  rng = np.random.default_rng(0)
  params = {"anchor": rng.standard_normal((4, 3)), "bank": {"level_1": rng.standard_normal((table_rows, 5))}}
  params = jax.tree.map(lambda x: x.astype(np.float32), params)
  theirs = jax.tree.map(lambda x: torch.nn.Parameter(torch.tensor(x)), params)
  adamw = torch.optim.AdamW(jax.tree.leaves(theirs), lr=1.0, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)
  state = transformation.init(params)
  update = jax.jit(transformation.update)
  for step, scale in enumerate([1, 0.01, 30, 1, 0.1, 0.001, 3, 1]):
    anchor = (scale * rng.standard_normal((4, 3))).astype(np.float32)
    index = rng.integers(0, table_rows, 4) if step < 4 else np.full(4, table_rows)
    rows = (scale * rng.standard_normal((4, 5))).astype(np.float32)
    dense = np.zeros((table_rows + 1, 5), np.float32)
    np.add.at(dense, index, rows)
    grads = {"anchor": anchor, "bank": {"level_1": sum_rows(index.astype(np.int32), rows, table_rows)}}
    updates, state = update(grads, state, params)
    params = apply_updates(params, updates, jax.random.key(0))
    theirs["anchor"].grad, theirs["bank"]["level_1"].grad = torch.tensor(anchor), torch.tensor(dense[:-1])
    torch.nn.utils.clip_grad_norm_(jax.tree.leaves(theirs), clip_norm)
    adamw.param_groups[0]["lr"] = float(schedule(step))
    adamw.step()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-5, atol=1e-6), params, theirs)


def with_own_settings():
  """The anchor, the bank and level 2 each have something of their own; level 1 has what the bank has."""
  return config(
    warmup_steps=2,
    clip_norm=3.0,
    epsilon=1e-3,
    no_decay=("norms", "embeddings"),
    anchor=PartSettings(peak_learning_rate=0.004, beta2=0.99),
    bank=PartSettings(weight_decay=0.0, schedule_kind="constant", warmup_steps=4),
    levels=(None, PartSettings(peak_learning_rate=0.03, beta1=0.7, weight_decay=0.2)),
  )


def test_parts_equal_optax_part_by_part():
  """One clip over all, then an AdamW of its own for what decays of the anchor, what does not, and each table."""
  memory = MemoryConfig(rows=(1, 1), branching=2)
  steps, rng = 8, np.random.default_rng(0)
  made = with_own_settings()
  transformation = made.build(steps, memory, 4)

  def rise(peak, warmup):
    return lambda step: peak * jnp.minimum(1, (step + 1) / warmup)

  def cosine(step):  # with a fifth of the peak's rate 0.01 in place of which it is 0.004
    after = 0.004 * (0.1 + 0.9 * (1 + jnp.cos(jnp.pi * (step - 2) / 6)) / 2)
    return jnp.where(step < 2, rise(0.004, 2)(step), after)

  adam = {"b1": 0.9, "b2": 0.95, "eps": 1e-3}
  groups = {
    "matrix": optax.adamw(cosine, **adam | {"b2": 0.99}, weight_decay=0.1),
    "spared": optax.adam(cosine, **adam | {"b2": 0.99}),
    "level_1": optax.adam(rise(0.01, 4), **adam),
    "level_2": optax.adamw(rise(0.03, 4), **adam | {"b1": 0.7}, weight_decay=0.2),
  }
  labels = {
    "anchor": {
      "embed": {"embedding": "spared"},
      "final_norm": {"norm": {"scale": "spared"}},
      "w1": {"kernel": "matrix"},
    },
    "bank": {"level_1": "level_1", "level_2": "level_2"},
  }
  theirs = optax.chain(optax.clip_by_global_norm(3.0), optax.partition(groups, labels))
  shapes = {"embed": {"embedding": (4, 3)}, "final_norm": {"norm": {"scale": (3,)}}, "w1": {"kernel": (3, 2)}}
  shapes = {"anchor": shapes, "bank": {"level_1": (3, 5), "level_2": (5, 4)}}

  def draw():
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: rng.standard_normal(shape).astype(np.float32), shapes, is_leaf=is_shape)

  params = expected = draw()
  state, their_state = transformation.init(params), theirs.init(params)
  update, their_update = jax.jit(transformation.update), jax.jit(theirs.update)
  for _ in range(steps):
    dense = draw()
    rows = {name: RowGradient(jnp.arange(len(table)), jnp.asarray(table)) for name, table in dense["bank"].items()}
    updates, state = update({"anchor": dense["anchor"], "bank": rows}, state, params)
    params = apply_updates(params, updates, jax.random.key(0))
    their_updates, their_state = their_update(dense, their_state, expected)
    expected = optax.apply_updates(expected, their_updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_what_has_no_decay(tied):
  """A step without gradients moves exactly what decays: not the gains of the norms, not the embedding; the head does."""
  anchor = AnchorConfig(
    num_layers=1, width=8, num_heads=1, head_dim=4, mlp_width=8, vocab_size=12, tied_embeddings=tied, dtype="float32"
  )
  params = {"anchor": nn.unbox(init_anchor(jax.random.key(0), anchor))}
  zeros = jax.tree.map(jnp.zeros_like, params)

  def moved(**changes):
    transformation = config(warmup_steps=0, **changes).build(4)
    updates, _ = transformation.update(zeros, transformation.init(params), params)
    leaves = jax.tree_util.tree_leaves_with_path(updates["anchor"])
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves if np.asarray(leaf).any()}

  everything = moved()
  assert len(everything) == len(jax.tree.leaves(params))
  norms = {f"layers/{name}/norm/scale" for name in ("attention_norm", "feed_forward_norm")}
  norms |= {f"layers/attention/{name}_norm/norm/scale" for name in ("query", "key")} | {"final_norm/norm/scale"}
  assert everything - moved(no_decay=("norms",)) == norms
  assert everything - moved(no_decay=("embeddings",)) == {"embed/embedding"}
  assert everything - moved(no_decay=("embeddings", "norms")) == norms | {"embed/embedding"}
  assert ("head/kernel" in everything) != tied
  frozen = config(warmup_steps=0, no_decay=("norms",)).build(4, frozen_anchor=True)
  assert frozen.update({"anchor": {}}, frozen.init(params), params)[0] == {"anchor": {}}


def test_state_of_parts_lies_where_their_parameters_lie():
  """Moments are split over devices like what they are of, and settings of parts add no arrays."""
  anchor = AnchorConfig(num_layers=2, width=16, num_heads=2, head_dim=8, mlp_width=32, vocab_size=32)
  model = ModelConfig(anchor=anchor, memory=MemoryConfig(rows=(1, 1), branching=2))
  mesh = abstract_mesh(MeshConfig(model=2).shape(8))
  states = {}
  for name, made in (("common", config()), ("own", with_own_settings())):
    optimizer = made.build(50, model.memory, 4)
    init = functools.partial(init_state, jax.random.key(0), model, optimizer)
    states[name] = abstract_arrays(init, mesh)
  leaves = [array_layouts(state) for state in states.values()]
  assert [layout.name for layout in leaves[0]] == [layout.name for layout in leaves[1]]
  assert leaves[0] == leaves[1]
  split = {layout.name: layout.spec for layout in leaves[1] if any(layout.spec)}
  for name, spec in split.items():
    if name.startswith("params/anchor/"):
      assert split[name.replace("params/anchor", "opt_state/anchor/0/mu")] == spec
      assert split[name.replace("params/anchor", "opt_state/anchor/0/nu")] == spec
  assert any("w1" in name for name in split) and any("opt_state/bank/level_2/mu" in name for name in split)


def test_rates_that_are_reported():
  """The common rate, and that of each part whose schedule is another."""
  memory = MemoryConfig(rows=(1, 0, 1), branching=2)
  assert config().schedules(50, memory).keys() == {"learning_rate"}
  own = config(bank=PartSettings(weight_decay=0.0), levels=(None, None, PartSettings(peak_learning_rate=0.05)))
  schedules = own.schedules(50, memory)
  assert schedules.keys() == {"learning_rate", "learning_rate/level_3"}
  for step in range(50):  # five times the peak, and so of everything
    assert float(schedules["learning_rate/level_3"](step)) == pytest.approx(5 * float(schedules["learning_rate"](step)))
  assert own.schedules(50).keys() == {"learning_rate"}  # of a run without memory
  assert config(anchor=PartSettings(final_learning_rate=0.0)).schedules(9 + 2).keys() == {
    "learning_rate",
    "learning_rate/anchor",
  }


def test_the_example_of_the_manual(tmp_path):
  """On top of A2, through gin: what the manual says that it does."""
  manual = (_ROOT / "docs/manual.md").read_text()
  (example,) = [block for block in re.findall(r"```gin\n(.*?)```", manual, re.DOTALL) if "PartSettings" in block]
  (tmp_path / "own.gin").write_text(example)
  configuration.load([str(_ROOT / "gin/runs/a2.gin"), str(tmp_path / "own.gin")], ["train.dataset = 'x'"])
  assert "deep/PartSettings.beta2 = 0.999" in configuration.dry_run("train", run_dir="r")
  run = configuration.bound_arguments("train", TrainingRun)
  run.check()
  anchor, tables = run.optimizer.for_anchor(), run.optimizer.for_tables(run.model.memory)
  assert anchor.no_decay == ("norms", "embeddings")
  assert (anchor.peak_learning_rate, anchor.weight_decay, anchor.beta2) == (1e-4, 1e-3, 0.95)
  for name, beta2, kind in (("level_1", 0.95, "cosine"), ("level_2", 0.95, "cosine"), ("level_3", 0.999, "constant")):
    found = tables[name]
    assert (found.peak_learning_rate, found.weight_decay, found.beta2) == (1e-3, 0.0, beta2)
    assert found.final_learning_rate == pytest.approx(1e-4) and found.schedule_kind == kind
  assert run.optimizer.schedules(run.steps, run.model.memory).keys() == {
    "learning_rate", "learning_rate/level_1", "learning_rate/level_2", "learning_rate/level_3"
  }  # fmt: skip


def test_choice_per_level():
  memory = MemoryConfig(rows=(2, 2, 0, 1), branching=4)  # tables of 5, 17 and 257 rows
  assert config().row_updates(memory, 8) == dict.fromkeys(("level_1", "level_2", "level_4"), "dense")
  auto = config(bank_update="auto")
  assert auto.row_updates(memory, 17) == {"level_1": "dense", "level_2": "dense", "level_4": "lazy"}
  assert auto.row_updates(memory, 16) == {"level_1": "dense", "level_2": "lazy", "level_4": "lazy"}
  mixed = config(bank_update=("lazy", "dense", "dense", "lazy"))
  assert mixed.row_updates(memory, 8) == {"level_1": "lazy", "level_2": "dense", "level_4": "lazy"}
  with pytest.raises(InputError, match="the tree has 4 levels; bind one entry for each"):
    config(bank_update=("lazy",)).row_updates(memory, 8)


@pytest.mark.parametrize("lazy", [True, False])
def test_tables_are_rounded_independently(lazy):
  """Two tables alike, with equal updates of half a spacing: which weights go up is drawn for each."""
  table, value = jnp.ones((3, 1000), jnp.bfloat16), jnp.full((3, 1000), 2.0**-8)
  update = RowGradient(jnp.arange(3), value) if lazy else value
  params = {"anchor": {}, "bank": {"level_1": table, "level_2": table}}
  updated = apply_updates(params, {"anchor": {}, "bank": {"level_1": update, "level_2": update}}, jax.random.key(0))
  up = [np.asarray(updated["bank"][name], np.float32) > 1 for name in ("level_1", "level_2")]
  assert 0.4 < (up[0] == up[1]).mean() < 0.6
