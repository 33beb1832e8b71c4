"""Every parameter count that the paper publishes, from the configurations' arithmetic (paper, Sections 2, 4; Tables 2, 4-8)."""

import pytest

from hiermem_jax.models.config import AnchorConfig, MemoryConfig, ModelConfig

A1 = AnchorConfig(num_layers=35, width=512, num_heads=12, head_dim=32, mlp_width=2048, tied_embeddings=True)
B1 = AnchorConfig(num_layers=24, width=1024, num_heads=16, head_dim=64, mlp_width=2816)
C1 = AnchorConfig(num_layers=24, width=2048, num_heads=16, head_dim=128, mlp_width=5632)

A2 = MemoryConfig(rows=(256, 64, 16, 0))
B2 = MemoryConfig(rows=(512, 128, 32, 0))
C2 = MemoryConfig(rows=(768, 256, 16, 0))


def ratio_anchor(layers):
  """An anchor of Table 8: the 410M one with fewer layers."""
  return AnchorConfig(num_layers=layers, width=1024, num_heads=16, head_dim=64, mlp_width=2816)


def host(layers, width):
  """A pretrained model of Table 2. Only depth and width matter to a bank; the other sizes are placeholders."""
  return AnchorConfig(num_layers=layers, width=width, num_heads=1, head_dim=2, mlp_width=1)


def printed(value, like):
  """`value` rounded to as many decimals as the printed number has."""
  return f"{value:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize(
  ("anchor", "count"),
  [
    (A1, 163_510_016),
    (B1, 411_665_408),
    (C1, 1_439_893_504),
    (ratio_anchor(12), 257_475_584),
    (ratio_anchor(17), 321_721_344),
    (ratio_anchor(19), 347_419_648),
    (ratio_anchor(21), 373_117_952),
    (ratio_anchor(22), 385_967_104),
    (ratio_anchor(24), 411_665_408),
  ],
)
def test_anchors(anchor, count):
  assert anchor.params == count


def test_older_openlm_160m():
  """The same formula gives the wider 160M model of the earlier paper by the same code base (arXiv 2405.13226)."""
  assert AnchorConfig(num_layers=12, width=768, num_heads=12, head_dim=64, mlp_width=2048).params == 162_435_840


@pytest.mark.parametrize(
  ("anchor", "memory", "fetched", "bank", "bf16_gigabytes"),
  [
    (A1, A2, 18_063_360, 4_624_220_160, "9.25"),
    (B1, B2, 49_545_216, 12_683_575_296, "25.4"),
    (C1, C2, 153_354_240, 21_139_292_160, "42.3"),
    (A1, MemoryConfig(rows=(256, 64, 16, 4)), 18_278_400, 18_717_081_600, "37.4"),
  ],
)
def test_main_configurations(anchor, memory, fetched, bank, bf16_gigabytes):
  assert ModelConfig(anchor=anchor, memory=memory).fetched_params == fetched
  assert ModelConfig(anchor=anchor, memory=memory).bank_params == bank
  assert printed(2 * ModelConfig(anchor=anchor, memory=memory).bank_params / 1e9, bf16_gigabytes) == bf16_gigabytes


@pytest.mark.parametrize(
  ("anchor", "memory", "blocks", "levels"),
  [
    (A1, A2, (13_762_560, 3_440_640, 860_160), ("220.200960", "880.803840", "3523.215360")),
    (B1, B2, (37_748_736, 9_437_184, 2_359_296), ("604", "2416", "9664")),
    (C1, C2, (113_246_208, 37_748_736, 2_359_296), ("1812", "9664", "9664")),
  ],
)
def test_blocks_and_levels(anchor, memory, blocks, levels):
  """Sizes of one block, and of a level in millions."""
  assert tuple(ModelConfig(anchor=anchor, memory=memory).block_params(level) for level in (1, 2, 3)) == blocks
  for level, total in enumerate(levels, start=1):
    assert printed(ModelConfig(anchor=anchor, memory=memory).level_params(level) / 1e6, total) == total
  assert (
    ModelConfig(anchor=anchor, memory=memory).block_params(4)
    == ModelConfig(anchor=anchor, memory=memory).level_params(4)
    == 0
  )


@pytest.mark.parametrize(("anchor", "memory", "width"), [(A1, A2, 2384), (B1, B2, 3488), (C1, C2, 6672)])
def test_runtime_mlp_width(anchor, memory, width):
  assert anchor.mlp_width + memory.total_units == width


@pytest.mark.parametrize(("anchor", "memory"), [(A1, A2), (B1, B2), (C1, C2)])
def test_memory_adds_a_tenth_of_the_compute(anchor, memory):
  """Table 3 prints 1.1 times the anchor's FLOPs at a context of 1024 tokens."""
  model = ModelConfig(anchor=anchor, memory=memory)
  assert printed(model.flops_per_token(1024) / anchor.flops_per_token(1024), "1.1") == "1.1"


@pytest.mark.parametrize(
  ("anchor", "rows", "fetched_millions", "bank_billions"),
  [
    (host(18, 640), (512, 128, 32, 0), "23.2", "5.9"),  # Gemma 3 270M
    (host(24, 896), (512, 128, 32, 0), "43.4", "11.1"),  # Qwen2.5 0.5B
    (host(16, 2048), (768, 256, 16, 0), "102.2", "14.1"),  # Llama 3.2 1B, as its table has it
    (host(16, 2048), (768, 256, 32, 0), "103.8", "20.5"),  # Llama 3.2 1B, as its text has it
  ],
)
def test_pretrained_hosts(anchor, rows, fetched_millions, bank_billions):
  memory = MemoryConfig(rows=rows)
  assert printed(ModelConfig(anchor=anchor, memory=memory).fetched_params / 1e6, fetched_millions) == fetched_millions
  assert printed(ModelConfig(anchor=anchor, memory=memory).bank_params / 1e9, bank_billions) == bank_billions


@pytest.mark.parametrize(
  ("rows", "fetched_millions", "invariant"),
  [
    ((0, 16, 4, 1), "1.1", 86_016),
    ((98, 42, 18, 0), "8.5", 86_048),
    ((256, 64, 16, 0), "18.1", 86_016),
    ((768, 96, 12, 0), "47.1", 86_016),
    ((1792, 112, 7, 0), "102.7", 86_016),
    ((5376, 0, 0, 0), "289", 86_016),
    ((256, 64, 16, 4), "18.3", 348_160),
    ((328, 156, 74, 0), "30", 348_288),
    ((1216, 164, 22, 3), "75.5", 348_160),
    ((4096, 320, 17, 2), "238.4", 348_160),
  ],
)
def test_sweep_of_the_160m_anchor(rows, fetched_millions, invariant):
  """Table 7: within a group, the rows of all clusters add up to the same number."""
  memory = MemoryConfig(rows=rows)
  assert printed(ModelConfig(anchor=A1, memory=memory).fetched_params / 1e6, fetched_millions) == fetched_millions
  assert sum(memory.clusters(level) * memory.rows[level - 1] for level in memory.levels) == invariant
  assert ModelConfig(anchor=A1, memory=memory).bank_params == 53_760 * invariant
  assert printed(ModelConfig(anchor=A1, memory=memory).bank_params / 1e9, "4.6") == (
    "4.6" if invariant < 100_000 else "18.7"
  )


@pytest.mark.parametrize(
  ("layers", "rows", "fetched", "bank"),
  [
    (12, (3840, 336, 6, 0), 154_165_248, 6_341_787_648),
    (17, (1445, 256, 8, 0), 89_250_816, 6_341_246_976),
    (19, (870, 226, 9, 0), 64_496_640, 6_341_099_520),
    (21, (384, 200, 10, 0), 38_320_128, 6_341_787_648),
    (22, (264, 94, 16, 0), 25_276_416, 6_341_001_216),
  ],
)
def test_ratio_study(layers, rows, fetched, bank):
  """Table 8: about 410M parameters at run time, about 6.3B in the bank."""
  anchor, memory = ratio_anchor(layers), MemoryConfig(rows=rows)
  assert ModelConfig(anchor=anchor, memory=memory).fetched_params == fetched
  assert ModelConfig(anchor=anchor, memory=memory).bank_params == bank
  assert printed((anchor.params + fetched) / 1e6, "41") in ("411", "412")


def test_tokens_per_parameter():
  """Appendix D: 4096 blocks of 860,160 parameters, 2**40 tokens, 312 tokens for each parameter."""
  memory = MemoryConfig(rows=(0, 0, 16, 0))
  assert memory.levels == (3,)
  assert memory.clusters(3) == 4096
  assert ModelConfig(anchor=A1, memory=memory).block_params(3) == 860_160
  assert printed(ModelConfig(anchor=A1, memory=memory).bank_params / 1e9, "3.523") == "3.523"
  assert int(2**40 / ModelConfig(anchor=A1, memory=memory).bank_params) == 312


def test_tree():
  """Section 2.1: 16, 256, 4096 and 65,536 clusters."""
  assert [A2.clusters(level) for level in (1, 2, 3, 4)] == [16, 256, 4096, 65_536]
  assert A2.num_leaves == 65_536
