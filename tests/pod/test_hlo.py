"""Counting collectives, FLOPs and bytes in the text of compiled programs: on short modules written by hand, whose counts are
known, and on programs that this machine compiles."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermem_jax.pod.collectives import collectives, replica_groups
from hiermem_jax.pod.cost import cost
from hiermem_jax.pod.hlo import Array, Module
from hiermem_jax.pod.tensor_names import argument_name, scope_name

_HEAD = "HloModule jit_step, is_scheduled=true, num_partitions=8\n\n"
_ADD = "%add (a: f32[], b: f32[]) -> f32[] {\n  ROOT %sum = f32[] add(%a, %b)\n}\n\n"
_ALL = "replica_groups=[1,8]<=[8]"


def entry(*lines: str) -> str:
  return "ENTRY %main (x: bf16[64,128]) -> bf16[] {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def only(text: str, **options):
  (found,) = collectives(text, **options)
  return found


@pytest.mark.parametrize(
  "kind, extra, sent",
  [
    # 64 * 128 bfloat16 = 16,384 bytes of operand, groups of 8
    ("all-gather", f"{_ALL}, dimensions={{0}}", 16384 * 7),
    ("reduce-scatter", f"{_ALL}, dimensions={{0}}, to_apply=%add", 16384 * 7 / 8),
    ("all-reduce", f"{_ALL}, to_apply=%add", 2 * 16384 * 7 / 8),
    ("all-to-all", f"{_ALL}, dimensions={{0}}", 16384 * 7 / 8),
    ("collective-permute", "source_target_pairs={{0,1},{1,0}}", 16384),
  ],
)
@pytest.mark.parametrize("suffix", ["", "-start"])
def test_bytes_of_each_kind(kind, extra, sent, suffix):
  text = _HEAD + entry(
    "%x = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name=\"state.params[\\'anchor\\'][\\'embed\\']\"}",
    f"%c = (bf16[64,128]{{1,0}}, bf16[64,128]{{1,0}}) {kind}{suffix}(%x), channel_id=1, {extra}",
    "ROOT %done = bf16[64,128]{1,0} copy(%c)",
  )
  found = only(text)
  assert (found.kind, found.dtype, found.tensor, found.count) == (kind, "bf16", "embed", 1)
  assert found.bytes == sent
  assert found.network == "ICI"


_LOOP = """
%body (p: (s32[], f32[32])) -> (s32[], f32[32]) {{
  %p = (s32[], /*index=1*/f32[32]{{0:T(128)S(1)}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[32]{{0}} get-tuple-element(%p), index=1
  %step = s32[] constant(2)
  %next = s32[] add(%i, %step)
  %r = f32[32]{{0}} all-reduce(%x), replica_groups={{{{0,1}},{{2,3}}}}, to_apply=%add, metadata={{op_name="{op_name}"}}
  ROOT %t = (s32[], f32[32]{{0}}) tuple(%next, %r)
}}

%condition (p: (s32[], f32[32])) -> pred[] {{
  %q = (s32[], f32[32]{{0}}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %limit = s32[] constant({limit})
  ROOT %less = pred[] compare(%j, %limit), direction={direction}
}}

"""


def loop(attributes="", limit=9, direction="LT", start="constant(1)", op_name="jit(step)/jvp(Anchor)/layers/out/add"):
  return (
    _HEAD
    + _ADD
    + _LOOP.format(limit=limit, direction=direction, op_name=op_name)
    + entry(
      f"%start = s32[] {start}",
      "%copied = s32[] copy(%start)",
      "%x = f32[32]{0} parameter(0)",
      "%init = (s32[], f32[32]{0}) tuple(%copied, %x)",
      f"ROOT %w = (s32[], f32[32]{{0}}) while(%init), condition=%condition, body=%body{attributes}",
    )
  )


@pytest.mark.parametrize(
  "text, count",
  [
    (loop(), len(range(1, 9, 2))),
    (loop(limit=10), len(range(1, 10, 2))),
    (loop(limit=9, direction="LE"), len(range(1, 10, 2))),
    (loop(limit=9, direction="NE"), len(range(1, 9, 2))),
    (loop(', backend_config={"known_trip_count":{"n":"35"}}'), 35),
  ],
)
def test_collective_in_a_loop_counts_once_per_iteration(text, count):
  found = only(text)
  assert (found.count, found.group, found.tensor) == (count, 2, "layers/out")
  assert found.bytes == count * 2 * 32 * 4 * 1 / 2


def test_loop_of_unknown_length_is_an_error():
  with pytest.raises(ValueError, match="all-reduce in body: the loop around it has no known number of iterations"):
    collectives(loop(start="parameter(1)"))


def test_not_a_module():
  with pytest.raises(ValueError, match="no ENTRY"):
    Module("hello")


def chain(role: str, name: str, operand: str) -> str:
  """A fusion of the TPU compiler that carries an asynchronous gather on: all of them quote it."""
  custom = (
    f'%call = bf16[64,8] custom-call(%g), custom_call_target="{role}"' if role else "%call = bf16[64,8] negate(%g)"
  )
  return (
    f"%fused_{name} (p0: bf16[8,8]) -> bf16[64,8] {{\n"
    "  %p0 = bf16[8,8]{1,0} parameter(0)\n"
    f"  %g = bf16[64,8]{{1,0}} all-gather(%p0), channel_id=7, {_ALL}, dimensions={{0}},"
    ' frontend_attributes={chain_id="3"}\n'
    f"  ROOT {custom}\n}}\n\n"
  )


def test_chain_of_asynchronous_fusions_is_one_collective():
  roles = {"start": "AsyncCollectiveStart", "middle": "", "done": "AsyncCollectiveDone"}
  text = _HEAD + "".join(chain(role, name, "p0") for name, role in roles.items())
  text += entry(
    "%w = bf16[8,8]{1,0} parameter(0), metadata={op_name=\"state.params[\\'layers\\'][\\'w1\\'][\\'kernel\\']\"}",
    *(f"%{name} = bf16[64,8]{{1,0}} fusion(%w), kind=kCustom, calls=%fused_{name}" for name in roles),
    "ROOT %r = bf16[64,8]{1,0} copy(%done)",
  )
  found = only(text)
  assert (found.kind, found.tensor, found.count, found.bytes) == ("all-gather", "layers/w1", 1, 8 * 8 * 2 * 7)


@pytest.mark.parametrize("started_outside, count", [(True, 1), (False, 5)])
def test_asynchronous_collective_that_goes_on_in_a_loop_counts_where_it_starts(started_outside, count):
  """The compiler hides a gather behind a loop by moving a part of it in each of five iterations."""
  text = _HEAD + chain("AsyncCollectiveStart", "start", "p0") + chain("", "middle", "p0")
  text += (
    "%body (p: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {\n"
    "  %p = (s32[], bf16[8,8]{1,0}) parameter(0)\n  %i = s32[] get-tuple-element(%p), index=0\n"
    '  %w = bf16[8,8]{1,0} get-tuple-element(%p), index=1, metadata={op_name="layers/w1"}\n'
    "  %g = bf16[64,8]{1,0} fusion(%w), kind=kCustom, calls=%fused_middle\n"
    "  ROOT %t = (s32[], bf16[8,8]{1,0}) tuple(%i, %w)\n}\n\n"
    "%condition (p: (s32[], bf16[8,8])) -> pred[] {\n  %p = (s32[], bf16[8,8]{1,0}) parameter(0)\n"
    "  ROOT %c = pred[] constant(true)\n}\n\n"
  )
  start = "%s = bf16[64,8]{1,0} fusion(%w), kind=kCustom, calls=%fused_start"
  text += entry(
    "%w = bf16[8,8]{1,0} parameter(0), metadata={op_name=\"state.params[\\'w1\\']\"}",
    start if started_outside else "%s = bf16[8,8]{1,0} copy(%w)",
    "%zero = s32[] constant(0)",
    "%init = (s32[], bf16[8,8]{1,0}) tuple(%zero, %w)",
    "ROOT %l = (s32[], bf16[8,8]{1,0}) while(%init), condition=%condition, body=%body,"
    ' backend_config={"known_trip_count":{"n":"5"}}',
  )
  if not started_outside:
    text = text.replace("AsyncCollectiveStart", "Other")
  assert sum(found.count for found in collectives(text)) == count


def test_all_reduce_whose_fusion_keeps_a_slice_is_a_reduce_scatter():
  text = (
    _HEAD
    + _ADD
    + "%fused (p0: f32[64]) -> f32[8] {\n  %p0 = f32[64]{0} parameter(0)\n"
    + f"  %r = f32[64]{{0}} all-reduce(%p0), channel_id=1, {_ALL}, to_apply=%add\n"
    + "  %i = u32[] partition-id()\n  ROOT %s = f32[8]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={8}\n}\n\n"
    + entry(
      "%g = f32[64]{0} parameter(0)",
      "ROOT %f = f32[8]{0} fusion(%g), kind=kCustom, calls=%fused,"
      ' metadata={op_name="jit(step)/transpose(jvp(Anchor))/layers/w1/dot_general"}',
    )
  )
  found = only(text)
  assert (found.kind, found.bytes) == ("reduce-scatter", 256 * 7 / 8)


def test_combined_and_wrapped_collectives():
  text = (
    _HEAD
    + _ADD
    + "%wrapped (w: s32[8]) -> s32[8] {\n  %w = s32[8]{0} parameter(0)\n"
    + f"  ROOT %a = s32[8]{{0}} all-to-all(%w), {_ALL}, dimensions={{0}},"
    + ' metadata={op_name="jit(step)/push/shard_map/level_2/all_to_all"}\n}\n\n'
    + entry(
      "%p = f32[16]{0} parameter(0)",
      '%a1 = f32[16]{0} negate(%p), metadata={op_name="jit(step)/transpose(jvp(Anchor))/while/body/layers/w1/mul"}',
      '%a2 = bf16[4]{0} convert(%a1), metadata={op_name="jit(step)/optimizer/level_1/mul"}',
      f"%r = (f32[16]{{0}}, bf16[4]{{0}}) all-reduce(%a1, %a2), {_ALL}, to_apply=%add",
      "%s = ((s32[8]), s32[8]) async-start(%p), calls=%wrapped",
      "ROOT %d = s32[8] async-done(%s)",
    )
  )
  found = {(c.kind, c.dtype, c.tensor): c.bytes for c in collectives(text)}
  assert found == {
    ("all-reduce", "f32", "layers/w1 gradient"): 2 * 64 * 7 / 8,
    ("all-reduce", "bf16", "optimizer level_1"): 2 * 8 * 7 / 8,
    ("all-to-all", "s32", "push level_2"): 32 * 7 / 8,
  }


@pytest.mark.parametrize(
  "transfer, target, kind, sent",
  [
    ("ALL_REDUCE", '"{1,2,3}x{0:15}"', "all-reduce", 2 * 4096 * 2 / 3),
    ("ALL_GATHER", '"{1:3}x{0:15}"', "all-gather", 4096 * 2),
    ("REDUCE_SCATTER", '"{1,2,3}x{0:15}"', "reduce-scatter", 4096 * 2 / 3),
    ("ALL_TO_ALL", "{{100000,200000,300000},{100001,200001,300001}}", "all-to-all", 4096 * 2 / 3),
    ("ONE_TO_ONE", "{{100000->200000},{200000->100000}}", "collective-permute", 4096),
  ],
)
def test_transfers_between_slices(transfer, target, kind, sent):
  text = _HEAD + entry(
    "%x = f32[1024]{0} parameter(0)",
    '%g = f32[1024]{0} negate(%x), metadata={op_name="jit(step)/push/shard_map/level_3/mul"}',
    "%t = token[] after-all()",
    "%s = (f32[1024]{0}, u32[], token[]) send(%g, %t), channel_id=2, is_host_transfer=true, frontend_attributes={"
    f'_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target={target},'
    f'_xla_megascale_transfer_type="{transfer}"}}',
    "ROOT %done = token[] send-done(%s)",
  )
  found = only(text, devices_per_slice=8)
  assert (found.kind, found.tensor, found.network) == (kind, "push level_3", "DCN")
  assert found.bytes == pytest.approx(sent)


@pytest.mark.parametrize("groups, network", [("{{0,1,2,3},{4,5,6,7}}", "ICI"), ("[4,2]<=[2,4]T(1,0)", "DCN")])
def test_groups_that_span_slices_use_the_data_centre_network(groups, network):
  text = _HEAD + entry("%x = f32[8] parameter(0)", f"ROOT %r = f32[8] all-reduce(%x), replica_groups={groups}")
  assert only(text, devices_per_slice=4).network == network
  assert only(text).network == "ICI"


def test_replica_groups_in_every_notation():
  grid = np.arange(16).reshape(2, 4, 2)

  def along(devices, *axes):
    """Brute force: devices that differ in `axes` only are a group."""
    groups = {}
    for index in itertools.product(*map(range, devices.shape)):
      key = tuple(None if axis in axes else i for axis, i in enumerate(index))
      groups.setdefault(key, set()).add(int(devices[index]))
    return sorted(map(sorted, groups.values()))

  def read(text):
    return sorted(map(sorted, replica_groups(f"channel_id=1, replica_groups={text}, use_global_device_ids=true", 16)))

  assert read("{}") == [list(range(16))]
  assert read("{{0,2},{1,3}}") == [[0, 2], [1, 3]]
  assert read("[2,8]<=[16]") == along(grid, 1, 2)
  assert read("[4,4]<=[2,4,2]T(0,2,1)") == along(grid, 1)
  assert read("mesh['a'=2,'b'=4,'c'=2] {'b'}") == along(grid, 1)
  assert read("mesh['a'=2,'b'=4,'c'=2] {'a','c'}") == along(grid, 0, 2)
  assert read("mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'b'}") == along(np.arange(16).reshape(8, 2).T, 1)
  order = [3, 1, 2, 0]
  assert read(f"mesh['a'=2,'b'=2], device_ids=({','.join(map(str, order))}) {{'a'}}") == [[0, 1], [2, 3]]
  # 'b':(2)4 is the part of size 4 of an axis of 8 that has a part of size 2 before it
  assert read("mesh['a'=2,'b'=8] {'b':(2)4}") == along(np.arange(16).reshape(2, 2, 4), 2)
  assert read("mesh['a'=2,'b'=8] {'b':(1)2}") == along(np.arange(16).reshape(2, 2, 4), 1)
  with pytest.raises(ValueError, match="replica groups cannot be read"):
    replica_groups("replica_groups=?", 16)


def test_names():
  assert scope_name("jit(step)/jvp(Anchor.hidden)/while/body/closed_call/layers/attention/query/dot_general") == (
    "layers/attention/query"
  )
  assert scope_name("jit(step)/transpose(jvp(Anchor))/layers/while/body/layers/w1/bsd,brd->bsr/dot_general") == (
    "layers/w1 gradient"
  )
  assert scope_name("jit(step)/fetch/shard_map/level_2/all_to_all") == "fetch level_2"
  assert scope_name("jit(step)/optimizer/reduce_sum") == "optimizer"
  assert scope_name("jit(step)/jvp()/while/body/closed_call/checkpoint/dot_general") == ""
  assert argument_name(r"state.params[\'anchor\'][\'layers\'][\'w1\'][\'kernel\']") == "layers/w1"
  assert argument_name("key") == "key"


@pytest.mark.parametrize("dtype, size", [("f32", 4), ("bf16", 2), ("pred", 1), ("s8", 1), ("f8e4m3fn", 1), ("c64", 8)])
def test_sizes_of_element_types(dtype, size):
  assert Array(dtype, (3, 5)).bytes == 15 * size
  assert Array("token", ()).bytes == 0


@pytest.mark.parametrize(
  "layout, padded",
  [
    ("bf16[4,100,32]{2,1,0:T(8,128)(2,1)}", 4 * 104 * 128 * 2),
    ("bf16[4,100,32]{1,2,0:T(8,128)(2,1)}", 4 * 32 * 128 * 2),  # the second dimension is innermost
    ("f32[4,2048,12,16]{3,2,1,0:T(8,128)}", 4 * 2048 * 16 * 128 * 4),
    ("f32[100]{0:T(128)}", 128 * 4),
    ("pred[5000]{0:T(1024)(128)(4,1)}", 5 * 1024),
    ("bf16[3,50]{1,0:T(4,128)(2,1)S(1)}", 4 * 128 * 2),
    ("f32[]{:T(128)}", 128 * 4),
    ("f32[3,50]{1,0}", 150 * 4),
  ],
)
def test_tiles_pad(layout, padded):
  module = Module(_HEAD + entry(f"ROOT %x = {layout} parameter(0)"))
  (array,) = module.root("main").arrays
  assert array.bytes == padded
  assert array.data_bytes == np.prod(array.dims, initial=1) * {"bf16": 2, "f32": 4, "pred": 1}[array.dtype]
  assert array.space == ("S(1)" in layout)


def test_padding_is_counted_in_memory_and_not_on_the_wire():
  text = _HEAD + entry(
    "%x = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)",
    f"ROOT %r = bf16[64,32]{{1,0:T(8,128)(2,1)}} all-reduce(%x), {_ALL}, to_apply=%add",
  )
  assert only(text).bytes == 2 * 64 * 32 * 2 * 7 / 8
  assert cost(text).hbm_bytes == 2 * 64 * 128 * 2


def test_consumers_are_named_and_sorted():
  scope = "jit(step)/transpose(jvp(Anchor))/while/body/layers/attention"
  text = _HEAD + entry(
    "%x = f32[64,128]{1,0} parameter(0), metadata={op_name=\"state.params[\\'anchor\\'][\\'head\\']\"}",
    f'%y = f32[64,128]{{1,0}} multiply(%x, %x), metadata={{op_name="{scope}/mul"}}',
    f'%z = f32[64,128]{{1,0}} multiply(%y, %y), metadata={{op_name="{scope}/mul"}}',
    "%start = (f32[64,128]{1,0:S(1)}, f32[64,128]{1,0}, u32[]{:S(2)}) copy-start(%x)",
    "%near = f32[64,128]{1,0:S(1)} copy-done(%start)",
    '%flash.7 = f32[64,128]{1,0} custom-call(%z), custom_call_target="tpu_custom_call"',
    "ROOT %sum = f32[64,128]{1,0} add(%flash.7, %near)",
  )
  array = 64 * 128 * 4
  found = cost(text)
  assert [dataclasses.astuple(consumer) for consumer in found.consumers] == [
    ("layers/attention gradient", "mul", 2, 6 * array),
    ("flash", "kernel", 1, 2 * array),
    ("layers/attention gradient", "add", 1, 2 * array),
    ("head", "copy", 1, array),
  ]
  assert found.hbm_bytes == 11 * array and found.kernels == 1


def test_flops_count_every_iteration():
  def step(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()

  compiled = jax.jit(step).lower(jnp.ones((16, 64)), jnp.ones((7, 64, 64))).compile()
  assert cost(compiled.as_text()).flops == 7 * 2 * 16 * 64 * 64
  assert compiled.cost_analysis()["flops"] < 3 * 2 * 16 * 64 * 64  # which is why


@pytest.mark.parametrize(
  "window, labels, left, right, out",
  [
    ("", "bf_io->bf", "f32[16,64]", "f32[64,32]", "f32[16,32]"),
    # a batch of 4 products, [4,16,64] x [4,64,32], as the TPU compiler writes it
    ("window={size=4 stride=3 pad=0_0 lhs_dilate=4}, ", "0bf_0io->0bf", "f32[4,16,64]", "f32[4,64,32]", "f32[4,16,32]"),
  ],
)
def test_products_written_as_convolutions(window, labels, left, right, out):
  text = _HEAD + entry(
    f"%a = {left} parameter(0)",
    f"%b = {right} parameter(1)",
    f"ROOT %c = {out} convolution(%a, %b), {window}dim_labels={labels}",
  )
  assert cost(text).flops == 2 * 16 * 64 * 32 * (4 if window else 1)


def test_bytes_through_nested_fusions_and_in_place_results():
  text = _HEAD + (
    "%inner (q0: f32[100,256], q1: s32[]) -> f32[1,256] {\n"
    "  %q0 = f32[100,256]{1,0} parameter(0)\n  %q1 = s32[] parameter(1)\n"
    "  ROOT %s = f32[1,256]{1,0} dynamic-slice(%q0, %q1), dynamic_slice_sizes={1,256}\n}\n\n"
    "%renamed (r0: f32[50,256]) -> f32[50,256] {\n  %r0 = f32[50,256]{1,0} parameter(0)\n"
    "  ROOT %r = f32[50,256]{1,0} bitcast(%r0)\n}\n\n"
    "%outer (p0: f32[100,256], p1: s32[], p2: f32[50,256]) -> (f32[100,256], f32[50,256], f32[50,256]) {\n"
    "  %p0 = f32[100,256]{1,0} parameter(0)\n  %p1 = s32[] parameter(1)\n  %p2 = f32[50,256]{1,0} parameter(2)\n"
    "  %row = f32[1,256]{1,0} fusion(%p0, %p1), kind=kLoop, calls=%inner\n"
    "  %stack = f32[100,256]{1,0} dynamic-update-slice(%p0, %row, %p1, %p1)\n"
    "  %flat = f32[100,256]{1,0} bitcast(%stack)\n"
    "  %same = f32[50,256]{1,0} fusion(%p2), kind=kLoop, calls=%renamed\n"
    "  %half = f32[50,256]{1,0} convert(%same)\n"
    "  ROOT %t = (f32[100,256]{1,0}, f32[50,256]{1,0}, f32[50,256]{1,0}) tuple(%flat, %half, %p2)\n}\n\n"
  )
  text += entry(
    "%table = f32[100,256]{1,0} parameter(0)",
    "%i = s32[]{:S(6)} parameter(1)",
    "%x = f32[50,256]{1,0} parameter(2)",
    "ROOT %f = (f32[100,256]{1,0}, f32[50,256]{1,0}, f32[50,256]{1,0}) fusion(%table, %i, %x), calls=%outer",
  )
  # One row is read and one written in place; 50 are read and 50 written; the operand that is handed on costs nothing.
  assert cost(text).hbm_bytes == (1 + 1 + 50 + 50) * 1024


def test_bytes_are_of_the_slice_and_not_of_arrays_on_the_chip():
  text = _HEAD + (
    "%fused (p0: f32[100,256], p1: s32[]) -> f32[1,256] {\n"
    "  %p0 = f32[100,256]{1,0} parameter(0)\n  %p1 = s32[] parameter(1)\n"
    "  ROOT %s = f32[1,256]{1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,256}\n}\n\n"
  )
  text += entry(
    "%table = f32[100,256]{1,0} parameter(0)",
    "%i = s32[]{:S(6)} parameter(1)",
    "%row = f32[1,256]{1,0} fusion(%table, %i), kind=kLoop, calls=%fused",
    "%near = f32[1,256]{1,0:S(1)} negate(%row)",
    "%updated = f32[100,256]{1,0} dynamic-update-slice(%table, %near, %i, %i)",
    "ROOT %all = f32[100,256]{1,0} negate(%updated)",
  )
  kib = 1024  # a row; `row` reads and writes one, `near` reads one, `updated` writes one, `all` reads and writes 100
  assert cost(text).hbm_bytes == (2 + 1 + 1 + 200) * kib
