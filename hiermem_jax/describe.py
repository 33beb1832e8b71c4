r"""Prints the arithmetic of a run without touching a device.

  python -m hiermem_jax.describe --gin_file=gin/runs/a2.gin [--json]

Parameters of the anchor, of what a sequence fetches and of the bank; forward FLOPs per token with and without memory;
bytes per level of the bank in bfloat16 and in float32 with AdamW's two moments.
"""

import json

from hiermem_jax.errors import InputError
from hiermem_jax.models.config import AnchorConfig, MemoryConfig


def describe(*, as_json: bool = False, context_length: int = 2048) -> None:
  """Prints the sizes bound to `train.anchor` and `train.memory`, as text or JSON.

  Args:
    as_json: print JSON.
    context_length: positions that the attention FLOPs are averaged over.
  """
  from hiermem_jax import configuration

  anchor = configuration.bound_argument("train", "anchor")
  if anchor is None:
    raise InputError("train.anchor is not bound: name a run with --gin_file, e.g. gin/runs/a2.gin")
  sizes = arithmetic(anchor, configuration.bound_argument("train", "memory"), context_length)
  print(json.dumps(sizes, indent=2) if as_json else as_text(sizes))


def arithmetic(anchor: AnchorConfig, memory: MemoryConfig | None, context_length: int) -> dict:
  """Sizes of a run (paper, Section 2.1 and Tables 1, 4-8). FLOPs are forward only; training costs three times them."""
  plain = anchor.flops_per_token(context_length)
  levels = [
    {
      "level": level,
      "clusters": memory.clusters(level),
      "rows": memory.rows[level - 1],
      "block_params": memory.block_params(anchor, level),
      "params": memory.level_params(anchor, level),
      "bytes_bfloat16": 2 * memory.level_params(anchor, level),
      "bytes_training": 12 * memory.level_params(anchor, level),
    }
    for level in (memory.levels if memory else ())
  ]
  return {
    "anchor_params": anchor.params,
    "fetched_params": memory.fetched_params(anchor) if memory else 0,
    "bank_params": memory.bank_params(anchor) if memory else 0,
    "flops_per_token": plain + (memory.flops_per_token(anchor) if memory else 0),
    "flops_per_token_no_memory": plain,
    "context_length": context_length,
    "anchor_bytes_bfloat16": 2 * anchor.params,
    "fetched_bytes_bfloat16": 2 * memory.fetched_params(anchor) if memory else 0,
    "bank_bytes_bfloat16": 2 * memory.bank_params(anchor) if memory else 0,
    "levels": levels,
  }


def as_text(sizes: dict) -> str:
  """The same as a readable page."""
  ratio = sizes["flops_per_token"] / sizes["flops_per_token_no_memory"]
  lines = [
    f"anchor parameters          {sizes['anchor_params']:>18,}   {_gb(sizes['anchor_bytes_bfloat16'])} in bfloat16",
    f"fetched parameters         {sizes['fetched_params']:>18,}   {_gb(sizes['fetched_bytes_bfloat16'])} per sequence",
    f"bank parameters            {sizes['bank_params']:>18,}   {_gb(sizes['bank_bytes_bfloat16'])} in bfloat16"
    " (generic memory not counted)",
    f"forward FLOPs per token    {sizes['flops_per_token']:>18,}   at context length {sizes['context_length']}",
    f"  without memory           {sizes['flops_per_token_no_memory']:>18,}   ratio {ratio:.3f}; training costs 3x",
  ]
  if sizes["levels"]:
    lines.append("")
    lines.append("level  clusters   rows   block parameters   level parameters   bfloat16    float32 + AdamW moments")
    lines += [
      f"{level['level']:>5}  {level['clusters']:>8,}  {level['rows']:>5}  {level['block_params']:>17,}"
      f"  {level['params']:>17,}  {_gb(level['bytes_bfloat16'])}   {_gb(level['bytes_training'])}"
      for level in sizes["levels"]
    ]
  return "\n".join(lines)


def _gb(count: int) -> str:
  return f"{count / 1e9:>7.3f} GB"


if __name__ == "__main__":
  from hiermem_jax import cli

  cli.main("describe")
