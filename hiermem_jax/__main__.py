"""`python -m hiermem_jax` lists the verbs; `python -m hiermem_jax VERB ...` runs one, as `hiermem VERB ...` does."""

from hiermem_jax import cli

if __name__ == "__main__":
  cli.command()
