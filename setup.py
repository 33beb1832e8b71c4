"""Where the packages of a wheel are: the folder gin/ of configurations goes into hiermem_jax, as hiermem_jax/gin."""

import pathlib

from setuptools import find_packages, setup

_GIN = [f"hiermem_jax.{'.'.join(path.parts)}" for path in pathlib.Path("gin").glob("**/") if path.is_dir()]

setup(
  packages=[*find_packages(include=["hiermem_jax*", "tpu_setup*"]), *_GIN],
  package_dir={"hiermem_jax.gin": "gin"},
)
