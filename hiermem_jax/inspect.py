r"""Shows what a run's cluster tree, memory blocks and training text look like; writes nothing.

  python -m hiermem_jax.inspect --run_dir=runs/quickstart --tree

--tree: levels of the tree, sizes of the clusters and how balanced they are. --leaf=7.57: what is in cluster 57 of level
2, below cluster 7 of level 1, and how large their blocks are. --text="...": the path of a text, the runners-up on each
level, and how sure the route is. --token_budget: how the training tokens are spread over the leaves, and what each
block is trained on. Several may be given; --json prints them as JSON. Model, tree and corpus are those of the
configuration that the run directory keeps.
"""

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refused flag answer at once
  from hiermem_jax import cli

  cli.main("inspect")

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hiermem_jax.errors import InputError

if TYPE_CHECKING:
  from hiermem_jax.evaluation.inspection import SavedRun

_LISTED = 8  # starved leaves that are named


def inspect(
  *,
  run: "SavedRun",
  tree: bool = False,
  leaf: str | None = None,
  text: str | None = None,
  token_budget: bool = False,
  as_json: bool = False,
) -> None:
  """Prints what is asked for.

  Args:
    run: where everything is.
    tree: levels, sizes and balance.
    leaf: path of a cluster, e.g. '7.57'; a path of fewer levels is a cluster above the leaves.
    text: a text to route.
    token_budget: tokens by leaf and by block.
    as_json: print JSON instead of text.

  Raises:
    InputError: nothing is asked for, there is no such cluster, or something is missing or damaged.
  """
  if not (tree or token_budget) and leaf is None and text is None:
    raise InputError("inspect: nothing to show; give --tree, --leaf=PATH, --text=TEXT or --token_budget")
  from hiermem_jax.evaluation import inspection
  from hiermem_jax.retrieval.retriever import load_retriever
  from hiermem_jax.retrieval.tree import ClusterTree

  found: dict[str, Any] = {}
  loaded = ClusterTree.load(run.tree)
  path = None if leaf is None else inspection.parse_path(leaf, loaded)
  if tree:
    found["tree"] = inspection.describe_tree(run, loaded)
  if path is not None:
    found["leaf"] = inspection.describe_cluster(run, loaded, path)
  if text is not None:
    found["text"] = inspection.describe_route(load_retriever(run.tree), text)
  if token_budget:
    found["token_budget"] = inspection.token_budget(run, loaded)
  if as_json:
    print(json.dumps(found, indent=2, ensure_ascii=False))
  else:
    print("\n\n".join(_PAGES[name](about) for name, about in found.items()))


def _tree_page(about: Mapping[str, Any]) -> str:
  from hiermem_jax.evaluation.report import aligned

  head = f"tree {about['fingerprint']}: {about['depth']} levels, {about['branching']} ways, {about['leaves']:,} leaves"
  lines = [["level", "clusters", "empty", "smallest", "median", "mean", "largest", "largest / mean", "balance"]]
  for level in about["levels"]:
    counts = [f"{level[name]:,.0f}" for name in ("clusters", "empty", "min", "median")]
    ratios = [f"{level['largest_over_mean']:.2f}", f"{level['balance']:.2f}"]
    lines.append([str(level["level"]), *counts, f"{level['mean']:,.1f}", f"{level['max']:,}", *ratios])
  return f"{head}\nsizes in {about['unit']}; balance 1 is equal sizes\n\n{aligned(lines)}"


def _leaf_page(about: Mapping[str, Any]) -> str:
  lines = []
  for level in about["levels"]:
    size = f"{level['size']:,} {about['unit']}"
    lines.append(f"level {level['level']}, cluster {level['cluster']}: {size}")
    lines.append(f"  terms   {', '.join(level['terms']) or 'none that stand out'}")
    lines += [f"  {'titles' if number == 0 else '':<6}  {title}" for number, title in enumerate(level["titles"])]
    if "norm" in level:
      others = f"mean of the level {level['mean_norm']:.3g}, generic memory {level['generic_norm']:.3g}"
      lines.append(f"  norm    {level['norm']:.3g} ({others})")
  return "\n".join(lines)


def _text_page(about: Mapping[str, Any]) -> str:
  from hiermem_jax.evaluation.report import aligned

  lines = [["level", "cluster", "distance", "margin", "runners-up (distance)"]]
  for level in about["levels"]:
    others = ", ".join(f"{one['cluster']} ({one['distance']:.3f})" for one in level["runners_up"])
    lines.append(
      [str(level["level"]), str(level["cluster"]), f"{level['distance']:.3f}", f"{100 * level['margin']:.1f}%", others]
    )
  other, margin = about["other_leaf"], about["margin"]
  said = f"nearest other leaf {other['path']} at {other['distance']:.3f}: margin {100 * margin:.1f}%"
  if margin < 0:
    said += "; the descent level by level has missed it"
  return f"path {about['path']}\n\n{aligned(lines)}\n\n{said}"


def _budget_page(about: Mapping[str, Any]) -> str:
  from hiermem_jax.evaluation.report import aligned

  exact = "" if about["counted"] else ", of which each sequence is taken to have the mean number"
  lines = [f"{about['dataset']}: {about['sequences']:,} sequences, {about['tokens']:,} tokens{exact}"]
  if "passes" in about:
    own = f"{100 * about['own_share']:.1f}% of the sequences train their own path"
    lines.append(f"the training passes over it {about['passes']:.2f} times; {own}")
  table = [["level", "clusters", "smallest", "median", "mean", "largest", "empty", "starved", "block", "trained on"]]
  for level in about["levels"]:
    cells = [f"{level[name]:,.0f}" for name in ("clusters", "min", "median", "mean", "max", "empty", "starved")]
    block = [f"{level[name]:,.0f}" if name in level else "–" for name in ("block_params", "trained_tokens_median")]
    table.append([str(level["level"]), *cells, *block])
  lines += ["", aligned(table), ""]
  lines.append("Tokens below a cluster; starved: fewer than a tenth of the level's mean. Block: its parameters;")
  lines.append("trained on: tokens that the median block sees in the whole training.")
  tokens = about["leaf_tokens"]
  poorest = sorted(range(len(tokens)), key=lambda leaf: tokens[leaf])[:_LISTED]
  lines.append(f"Leaves with the fewest tokens: {', '.join(f'{leaf} ({tokens[leaf]:,})' for leaf in poorest)}")
  return "\n".join(lines)


_PAGES = {"tree": _tree_page, "leaf": _leaf_page, "text": _text_page, "token_budget": _budget_page}
