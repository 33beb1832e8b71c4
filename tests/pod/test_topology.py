"""TPU topologies without a TPU: names, distances, the compiler's refusals, and a small program compiled for one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hiermem_jax.errors import InputError
from hiermem_jax.pod import topology as topology_lib
from hiermem_jax.pod.collectives import collectives
from hiermem_jax.pod.cost import cost
from hiermem_jax.pod.topology import CHIPS, GIB, out_of_memory, parse_topology, topology_devices


@pytest.mark.parametrize(
  "name, devices",
  [("v4:2x2x1", 4), ("v5e:4x4", 16), ("v5e:1x1", 1), ("v5p:2x2x2", 8), ("v6e:2x4", 8), ("tpu7x:2x2x1", 8)],
)
def test_devices_are_those_of_one_slice(name, devices):
  topology = parse_topology(name)
  assert topology.devices_per_slice == devices
  assert len(topology_devices(topology)) == devices


def test_slices():
  devices = topology_devices(parse_topology("v5e:2x2", slices=2))
  assert [device.slice_index for device in devices] == [0] * 4 + [1] * 4


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:2x2x2", "v5e:0x2", "v5p:64x64x64", "v5litepod-16", ""])
def test_unknown_names(name):
  with pytest.raises(InputError, match=f"--topology={name}: ") as caught:
    parse_topology(name)
  assert "\n" not in str(caught.value)


def test_shape_that_libtpu_does_not_know():
  with pytest.raises(InputError, match="--topology=v5e:3x3: libtpu does not know it .*; name one that exists"):
    topology_devices(parse_topology("v5e:3x3"))


def test_libtpu_missing(monkeypatch):
  monkeypatch.setattr(topology_lib.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"libtpu is not installed.*pip install 'hiermem_jax\[tpu\]'"):
    topology_devices(parse_topology("v5e:2x2"))


@pytest.mark.parametrize(
  "name, ring", [("v5e:4x4", False), ("v5e:2x8", False), ("v5e:16x16", True), ("v5p:4x4x8", True)]
)
def test_mean_hops_is_the_mean_over_all_pairs(name, ring):
  topology = parse_topology(name)
  chips = list(itertools.product(*map(range, topology.shape)))

  def distance(a, b):
    steps = [abs(i - j) for i, j in zip(a, b)]
    return sum(min(s, n - s) if ring else s for s, n in zip(steps, topology.shape))

  pairs = (
    [distance(chips[0], b) for b in chips[1:]] if ring else [distance(a, b) for a in chips for b in chips if a != b]
  )
  assert topology.mean_hops() == pytest.approx(np.mean(pairs))


def test_peaks_keep_their_published_proportions():
  # All-reduce bandwidth that Google publishes for a pod of 256 v5e: 51.2 TB/s, 200 GB/s a chip; v6e: 102.4 TB/s.
  assert 256 * CHIPS["v5e"].ici_bandwidth == 51.2e12
  assert 256 * CHIPS["v6e"].ici_bandwidth == 102.4e12
  assert 256 * CHIPS["v5e"].dcn_bandwidth * 8 == 6.4e12  # "6.4 Tbps per pod"
  assert all(chip.usable_gib * chip.devices <= chip.hbm_gib + 1 for chip in CHIPS.values())


def test_refusals_of_the_compiler():
  refusal = RuntimeError(
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (56.42G) exceeds available"
    " HBM (15.75G)."
  )
  assert out_of_memory(refusal) == (56.42 * GIB, 15.75 * GIB)
  older = RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.5G of 15.75G hbm. Exceeded")
  assert out_of_memory(older) == (17.5 * GIB, 15.75 * GIB)
  assert (
    out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 99M of 16M vmem"))
    is None
  )
  assert out_of_memory(RuntimeError("INVALID_ARGUMENT: no")) is None


def test_refusal_of_this_compiler_is_understood():
  (device,) = topology_devices(parse_topology("v5e:1x1"))
  sharding = NamedSharding(Mesh([device], ("x",)), PartitionSpec())
  x = jax.ShapeDtypeStruct((5 * 2**28,), jnp.float32, sharding=sharding)  # 5 GiB, of which three are needed and more
  with pytest.raises(jax.errors.JaxRuntimeError) as caught:
    jax.jit(lambda x: (x + jnp.roll(x, 1), x * 2, x * 3)).lower(x).compile()
  needed, available = out_of_memory(caught.value)
  assert available == CHIPS["v5e"].usable_gib * GIB
  assert needed >= 20 * GIB


def test_scanned_fsdp_layers_compiled_for_four_chips():
  layers, width, batch = 5, 512, 64
  mesh = Mesh(np.asarray(topology_devices(parse_topology("v5e:2x2"))), ("data",))

  def layer(x, w):
    with jax.named_scope("layer"):
      return jnp.tanh(x @ jax.lax.all_gather(w, "data", tiled=True)), None

  def local(x, weights):  # [b, width], [layers, width / 4, width]
    y, _ = jax.lax.scan(layer, x, weights)
    with jax.named_scope("fetch"), jax.named_scope("level_1"):
      return jax.lax.all_to_all(y, "data", split_axis=1, concat_axis=0, tiled=True)

  spec = PartitionSpec("data")
  step = jax.shard_map(
    local, mesh=mesh, in_specs=(spec, PartitionSpec(None, "data")), out_specs=PartitionSpec(None, "data")
  )
  arguments = (
    jax.ShapeDtypeStruct((batch, width), jnp.bfloat16, sharding=NamedSharding(mesh, spec)),
    jax.ShapeDtypeStruct(
      (layers, width, width), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(None, "data"))
    ),
  )
  text = jax.jit(step).lower(*arguments).compile().as_text()
  found = {(c.kind, c.dtype): c for c in collectives(text)}
  gather, exchange = found["all-gather", "bf16"], found["all-to-all", "bf16"]
  assert (gather.count, gather.bytes, gather.network) == (layers, layers * width * width * 2 * 3 / 4, "ICI")
  assert (exchange.tensor, exchange.count) == ("fetch level_1", 1)
  assert exchange.bytes == batch / 4 * width * 2 * 3 / 4
  assert len(found) == 2
  assert cost(text).flops == layers * 2 * (batch / 4) * width * width


def test_hbm_bytes_of_layers_that_do_not_fit_on_the_chip():
  """Each of four products reads and writes an activation of 256 MiB and reads a weight of 32 MiB."""
  rows, width, layers = 32768, 4096, 4
  sharding = NamedSharding(Mesh(topology_devices(parse_topology("v5e:1x1")), ("x",)), PartitionSpec())
  x = jax.ShapeDtypeStruct((rows, width), jnp.bfloat16, sharding=sharding)
  weights = [jax.ShapeDtypeStruct((width, width), jnp.bfloat16, sharding=sharding)] * layers

  def step(x, weights):
    for w in weights:
      x = jax.nn.gelu(x @ w)
    return x

  counted = cost(jax.jit(step).lower(x, weights).compile().as_text())
  assert counted.flops == layers * 2 * rows * width * width
  assert counted.hbm_bytes == pytest.approx(layers * 2 * (2 * rows * width + width * width), rel=0.02)
