"""Compiled programs are kept in the run directory, so that a run that goes on does not compile again.

jax finds an entry by the program, its options, the version of jaxlib and the kind of device and host, so machines of
several kinds may use one directory. Of several processes the first one alone writes; all read, as they share the run
directory. An entry is a program that will be run: whoever may write there may run code here.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

NAME, NONE = "compilation_cache", "none"


@contextlib.contextmanager
def kept(run_dir: str, chosen: str | None = None) -> Iterator[None]:
  """Has jax keep compiled programs in a directory, and take them from there, while the block runs.

  A place that jax has been told already, by JAX_COMPILATION_CACHE_DIR or by its configuration, stays unless another one
  is chosen.

  Args:
    run_dir: directory of the run; by default they are kept below it.
    chosen: another directory; "none" changes nothing.
  """
  import jax

  told = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # jax adds its options at run time
  if chosen == NONE or (chosen is None and told):
    yield
    return
  directory = os.path.join(run_dir, NAME) if chosen is None else chosen
  with _set("jax_compilation_cache_dir", directory if "://" in directory else os.path.abspath(directory)):
    yield


@contextlib.contextmanager
def bypassed() -> Iterator[None]:
  """Has jax compile anew while the block runs: what is compiled for devices that are not here cannot be read again."""
  with _set("jax_enable_compilation_cache", False):
    yield


@contextlib.contextmanager
def _set(option: str, value: Any) -> Iterator[None]:
  """Sets an option of jax for a while. jax looks at those of its cache once, until the cache is reset."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache as cache

  before = getattr(jax.config, option)
  jax.config.update(option, value)
  cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update(option, before)
    cache.reset_cache()
