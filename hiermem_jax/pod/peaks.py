"""Published peaks of accelerators, which model FLOPs utilisation is a share of."""

import jax

from hiermem_jax.pod.topology import CHIPS

# jax's `device_kind` of the TPUs in `CHIPS`.
_TPUS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "TPU7x": "tpu7x"}
# Dense bfloat16 FLOP/s by the start of `device_kind`, from NVIDIA's data sheets (their figures with sparsity, halved).
_GPUS = {"NVIDIA A100": 312e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12}


def peak_flops(device: jax.Device) -> float | None:
  """Dense bfloat16 FLOP/s of one jax device, None where it is not known (a CPU, another chip)."""
  kind = device.device_kind
  if kind in _TPUS:
    chip = CHIPS[_TPUS[kind]]
    return chip.peak_flops / chip.devices
  # The longest name that fits: "NVIDIA H100 PCIe" before "NVIDIA H100".
  name = max((name for name in _GPUS if kind.startswith(name)), key=len, default=None)
  return _GPUS[name] if name else None
