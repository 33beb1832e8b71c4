"""The chain of verbs; whole chains run in test_cli, and in two processes in multihost/test_verbs."""

from hiermem_jax.parallel import distributed
from hiermem_jax.run import run


def test_stages_run_in_order_and_the_first_process_alone_prepares(monkeypatch):
  """Verbs that cannot be distributed run inside `on_first`, all others in every process."""
  done, alone = [], []

  def on_first(function):
    alone.append(True)
    function()
    alone.pop()

  def stage(name):
    def run(*, run_dir):
      done.append((name, run_dir, bool(alone)))

    run.__name__ = name
    return run

  monkeypatch.setattr(distributed, "on_first", on_first)
  names = ("cluster", "prepare", "train", "train", "merge", "evaluate")
  run(run_dir="runs/x", stages=tuple(map(stage, names)))
  assert done == [(name, "runs/x", name in ("cluster", "prepare")) for name in names]
