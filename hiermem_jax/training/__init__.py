"""Training: optimizer, step, checkpoints and the loop around them.

Hands out `OptimizerConfig`, `loop.train` and `checkpoint.CheckpointStore`. A step is a pure function of (state, batch,
key); the loop takes an iterator of batches and does not know how they are stored. No TensorFlow here.
"""

from hiermem_jax.training.optimizer import OptimizerConfig
from hiermem_jax.training.state import TrainState

__all__ = ["OptimizerConfig", "TrainState"]
