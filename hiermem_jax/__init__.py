"""Language models with hierarchical parametric memories, in JAX and Flax."""

__version__ = "0.2.0"
