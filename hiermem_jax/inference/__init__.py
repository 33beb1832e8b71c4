"""Using a trained model: greedy generation with a key/value cache.

Hands out `make_greedy`. Needs jax and flax only.
"""

from hiermem_jax.inference.generation import make_greedy

__all__ = ["make_greedy"]
