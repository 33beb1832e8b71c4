# shellcheck shell=bash
# Environment of a run, by the kind of chip (CHIP). Sourced by job.sh. Change one thing at a time, and measure.

export PYTHONUNBUFFERED=1  # logs appear at once
export TF_CPP_MIN_LOG_LEVEL=1  # no informational lines of TensorFlow and XLA

if [[ $CHIP == cpu ]]; then
  export JAX_PLATFORMS=cpu
  export JAX_NUM_CPU_DEVICES="$DEVICES"
else
  # Without this a host whose chips are not found would silently train on its CPU, and the others wait for it.
  export JAX_PLATFORMS=tpu,cpu
  # Keeps large host buffers in huge pages; libtpu warns at start when it is off.
  echo always | sudo -n tee /sys/kernel/mm/transparent_hugepage/enabled > /dev/null 2>&1 || true
fi

# libtpu's own flags; what is given from outside is taken instead.
#   --megascale_abort_on_hangs=true                          multi-slice: a run that waits for a lost slice ends, and is started again
# Nothing is set for speed: every flag that was tried on this model's step (see experiments/pods) left the schedule as it
# was. What others use, to try by hand:
#   --xla_tpu_enable_async_collective_fusion=true            gathers of FSDP run beside the matmuls (on by default since 2024)
#   --xla_tpu_scoped_vmem_limit_kib=98304                    larger tiles on v6e: more of VMEM for one fusion
#   --megascale_graph_hang_threshold=600s                    multi-slice: patience before a hang is called one
export LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:---megascale_abort_on_hangs=true}"
