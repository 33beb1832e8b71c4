"""The table of the regimes from made-up results: means, orderings, the plot."""

import json
import pathlib

from hiermem_jax import configuration

_SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "experiments/table1_regimes/table1.py"
REGIMES = ("anchor", "cotrain", "frozen", "joint", "alone")


def line(corpus, seed, order):
  """Perplexities 1, 2, 3, ... in the order given; fetched memory 0.5 below generic."""
  regimes = {}
  for regime in REGIMES:
    base = 2.0 + order.index(regime) + seed
    rare = base if corpus == "wikipedia" else 0.9 - base / 100

    def measures(shift, base=base, rare=rare):
      return {"perplexity": base + shift, "common": base + shift, "rare": rare + shift / 100}

    modes = (
      {"none": measures(0)} if regime in ("anchor", "alone") else {"generic": measures(0), "fetched": measures(-0.5)}
    )
    regimes[regime] = modes
  return {"corpus": corpus, "seed": seed, "steps": dict.fromkeys(REGIMES, 10), "regimes": regimes}


def test_report(run, tmp_path):
  as_in_the_paper = ["cotrain", "frozen", "joint", "alone", "anchor"]
  lines = [line("wikipedia", 0, as_in_the_paper), line("wikipedia", 1, [*reversed(as_in_the_paper)])]
  (tmp_path / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
  done = run("table1_regimes/table1", "report", tmp_path / "results.jsonl")
  rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in done.out.splitlines() if row.startswith("|")]
  cells = {row[0]: row[1:] for row in rows}
  # 2 in seed 0 and 7 in seed 1 (the last of the reversed order, and one more): mean 4.5, standard deviation 5 / sqrt 2.
  assert cells["A2: co-trained after the anchor"][-1] == "4.50 ± 3.54 / 4.00 ± 3.54"
  assert cells["A2 better than A3, perplexity, fetched"] == ["yes", "no"]
  assert cells["A2 fetched better than its generic, rare"] == ["yes", "yes"]
  assert (tmp_path / "table1.png").stat().st_size > 10_000


def test_its_runs_resolve():
  for corpus, bindings in (("world", ()), ("wikipedia", ("CORPUS = 'a.jsonl'", "VALIDATION = 'b.jsonl'"))):
    configuration.load([str(_SCRIPT.with_name(f"{corpus}.gin"))], bindings)
    text = configuration.dry_run("run", run_dir="")
    assert "frozen/Objective.frozen_anchor = True" in text and "joint/train.init_from = None" in text
