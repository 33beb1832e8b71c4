"""A model small enough to compile in seconds, and its batches, for the processes that tests start.

24 sequences: on eight devices of data each has 3, fewer than table level_1 has rows (4); on meshes with less data each has
6 or more, so that the exchange sends each of its rows once. Level 2 has no table.
"""

import numpy as np

from hiermem_jax.models import NO_MEMORY, AnchorConfig, MemoryConfig, ModelConfig
from hiermem_jax.training import OptimizerConfig

ANCHOR = AnchorConfig(num_layers=2, width=16, num_heads=2, head_dim=6, mlp_width=12, vocab_size=18, dtype="float32")
MEMORY = MemoryConfig(rows=(4, 0, 2), branching=3)
MODEL = ModelConfig(anchor=ANCHOR, memory=MEMORY)
GENERIC = MEMORY.num_leaves
LENGTH, STEPS = 6, 4

# Duplicates within and across devices, siblings, the generic memory and none.
_USED = [5, 5, 26, GENERIC, NO_MEMORY, 3, 0, GENERIC, 5, 4, NO_MEMORY, 13]
LEAF = np.array([*_USED, 14, 26, 1, 2, 5, NO_MEMORY, 5, GENERIC, 13, 26, 26, 0], np.int32)
BATCH = len(LEAF)

# By hand. Row of each leaf that is used, per table; the last row of a table is the generic memory's.
TOUCHED = {"level_1": [0, 1, 2, 3], "level_3": [0, 1, 2, 3, 4, 5, 13, 14, 26, 27]}


def optimizer(bank_update) -> OptimizerConfig:
  """AdamW from the first step on; the large epsilon keeps it from magnifying rounding where a gradient is almost zero."""
  return OptimizerConfig(
    peak_learning_rate=0.02,
    final_learning_rate=0.01,
    warmup_steps=0,
    weight_decay=0.1,
    epsilon=1e-3,
    clip_norm=0.5,
    bank_update=bank_update,
  )


def batch(step: int) -> dict[str, np.ndarray]:
  """The batch of a step, a function of its number alone."""
  rng = np.random.default_rng(step)
  inputs, targets = rng.integers(0, ANCHOR.vocab_size, (2, BATCH, LENGTH)).astype(np.int32)
  return {
    "decoder_input_tokens": inputs,
    "decoder_target_tokens": targets,
    "decoder_segment_ids": np.ones_like(inputs),
    "decoder_positions": np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1)),
    "decoder_loss_weights": rng.integers(0, 2, inputs.shape).astype(np.float32),
    "memory_leaf": rng.permutation(LEAF),
  }


def batches(start: int, rows=slice(None)):
  """The stream that the training loop takes, or the part of each batch at `rows`."""
  for step in range(start, STEPS):
    yield {name: array[rows] for name, array in batch(step).items()}
