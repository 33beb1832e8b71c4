"""A checkpoint of one run is not taken for another's: every field that changes the model, the tree or the tokenizer."""

import dataclasses

import pytest

from hiermem_jax.errors import InputError
from hiermem_jax.training.config import CheckpointConfig, Objective

# Every field of the anchor but those that say how the same function is computed, and of the memory, with another value.
ANCHOR = {
  "num_layers": 2,
  "width": 4,
  "num_heads": 2,
  "head_dim": 2,
  "mlp_width": 4,
  "vocab_size": 14,
  "qk_norm": False,
  "rope_base": 50.0,
  "norm": "rmsnorm",
  "norm_eps": 1e-3,
  "tied_embeddings": True,
}
HOW = {
  "dtype": "bfloat16",
  "gradient_dtype": "bfloat16",
  "remat": "full",
  "unroll": 2,
  "attention": "splash",
  "splash_blocks": (128,) * 6,
  "logits_chunk": 1,
}
MEMORY = {"rows": (2, 2), "branching": 3, "dtype": "bfloat16", "kind": "kv", "layers": (0,), "part": 1}


def test_every_field_is_named_here(toy):
  assert {field.name for field in dataclasses.fields(toy.anchor)} == ANCHOR.keys() | HOW.keys()
  assert {field.name for field in dataclasses.fields(toy.memory)} == MEMORY.keys()


@pytest.mark.parametrize("field", ANCHOR)
def test_another_anchor_neither_resumes_nor_starts_from_it(toy, whole, tmp_path, field):
  anchor = dataclasses.replace(toy.anchor, **{field: ANCHOR[field]})
  with pytest.raises(InputError, match=f"its checkpoints have anchor .*{field}"):
    toy.run(whole[0], anchor=anchor, steps=16)
  with pytest.raises(InputError, match=f"its anchor is .*{field}=.* this run's is .*{field}="):
    toy.run(tmp_path, anchor=anchor, init_from=str(whole[0]))


@pytest.mark.parametrize("field", HOW)
def test_another_way_to_compute_the_same_resumes(toy, whole, field):
  state, scalars = toy.run(whole[0], anchor=dataclasses.replace(toy.anchor, **{field: HOW[field]}))
  assert scalars == {}  # it had been finished
  toy.assert_equal(state, whole[1])


@pytest.mark.parametrize("field", MEMORY)
def test_another_memory_does_not_resume(toy, whole, field):
  with pytest.raises(InputError, match=f"its checkpoints have memory .*{field}"):
    toy.run(whole[0], memory=dataclasses.replace(toy.memory, **{field: MEMORY[field]}), steps=16)


def test_with_and_without_memory_are_other_runs(toy, whole, tmp_path):
  with pytest.raises(InputError, match="its checkpoints have memory {.*}, this run has None"):
    toy.run(whole[0], memory=None, steps=16)
  toy.run(tmp_path, memory=None, steps=3)
  with pytest.raises(InputError, match="its checkpoints have memory None, this run has {"):
    toy.run(tmp_path, steps=4)


@pytest.mark.parametrize("name", ["tree_fingerprint", "tokenizer_fingerprint"])
@pytest.mark.parametrize("value", ["beef", None])
def test_another_tree_or_tokenizer_does_not_resume(toy, whole, name, value):
  with pytest.raises(InputError, match=f"its checkpoints have {name} .*, this run has {value}"):
    toy.run(whole[0], metadata={"tree_fingerprint": "feed", "tokenizer_fingerprint": "cafe"} | {name: value}, steps=16)


@pytest.mark.parametrize(
  "changes, named",
  [
    ({"dtype": "bfloat16"}, "dtype float32 .* this run's has bfloat16"),
    ({"kind": "kv"}, "kind ffn .* this run's has kv"),
    ({"layers": (0,)}, r"layers None .* this run's has \(0,\)"),
    ({"part": 1}, "part all .* this run's has 1"),
    ({"rows": (2, 1, 0)}, r"depth 2 .* this run's has 3"),
    ({"rows": (1, 1)}, r"rows of level_1 2 .* this run's has 1"),
  ],
)
def test_a_bank_of_another_memory_is_not_taken(toy, whole, tmp_path, changes, named):
  with pytest.raises(InputError, match=f"its bank has {named}"):
    toy.run(tmp_path, memory=dataclasses.replace(toy.memory, **changes), init_bank_from=str(whole[0]))


@pytest.mark.parametrize("field", ["width", "num_layers"])
def test_a_bank_beside_another_anchor_is_not_taken(toy, whole, tmp_path, field):
  """Of the anchor only the sizes matter of which a block is made."""
  anchor = dataclasses.replace(toy.anchor, **{field: ANCHOR[field]})
  with pytest.raises(InputError, match=f"its bank has {field}"):
    toy.run(tmp_path, anchor=anchor, init_bank_from=str(whole[0]))


@pytest.mark.parametrize("name", ["steps", "batch_size", "microbatches", "steps_per_call", "log_every", "max_skipped"])
def test_counts_of_a_run_are_positive(toy, name):
  run = toy.training_run({})
  with pytest.raises(InputError, match=rf"^train\.{name} = 0: bind a positive number$"):
    dataclasses.replace(run, **{name: 0})


def test_microbatches_that_do_not_divide_a_devices_sequences(toy, tmp_path):
  with pytest.raises(
    InputError, match=r"^train\.microbatches = 4: does not divide the 6 sequences that each of 1 devices"
  ):
    toy.run(tmp_path, microbatches=4)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "kind, field, bad, good",
  [
    (Objective, "z_loss", (-1e-4, -1.0), (0.0, 1e-4)),
    (Objective, "generic_probability", (-0.1, 1.1), (0.0, 1.0)),
    (CheckpointConfig, "every", (0,), (1,)),
    (CheckpointConfig, "keep", (0,), (1,)),
    (CheckpointConfig, "keep_every", (0,), (1, None)),
  ],
)
def test_settings_out_of_range(kind, field, bad, good):
  for value in bad:
    with pytest.raises(InputError, match=f"{kind.__name__}.{field} = {value}: bind"):
      kind(**{field: value})
  for value in good:
    assert getattr(kind(**{field: value}), field) == value


def test_an_attention_kernel_of_other_devices_is_refused_before_the_first_step(toy, tmp_path):
  anchor = dataclasses.replace(toy.anchor, head_dim=8, dtype="bfloat16", attention="cudnn")
  with pytest.raises(
    InputError, match="^AnchorConfig.attention = 'cudnn': a kernel for GPUs, this is a cpu; bind another$"
  ):
    toy.run(tmp_path, anchor=anchor)
