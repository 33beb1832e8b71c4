r"""Compiles the training step of a run for a TPU pod, on a machine that has no TPU, and reports what it needs.

  python -m hiermem_jax.compile_pod --topology=v5e:16x16 --gin_file=gin/runs/a2.gin

The same step that `train` runs, lowered with abstract arrays and compiled by libtpu (pip install "hiermem_jax[tpu]").
Prints memory per device against the chip's, FLOPs, every collective with its bytes, the fetch of the bank beside the
least that it could send, and which of compute, HBM and network bounds the step. Exits with status 1 when the step does
not fit. Of a run on sequences of several lengths (PackConfig.buckets) the step of each length is compiled, and the page
is about the one that needs most memory.
"""

if __name__ == "__main__":  # before the imports below, which take seconds: --help and a refused flag answer at once
  from hiermem_jax import cli

  cli.main("compile_pod")

import dataclasses
import json
import sys

from absl import logging

from hiermem_jax.data.corpus.config import ONE_LENGTH, Prepared
from hiermem_jax.errors import InputError
from hiermem_jax.training.config import TrainingRun

_SHOWN = 24  # collectives on the page; the rest is one line
_GIB = 2**30
_OF_LENGTH = ("length", "batch_size", "hbm", "fits", "seconds", "bound_by", "mfu_bound")
_BOUNDS = {
  "flops": "compute",
  "hbm": "HBM bandwidth, least bytes",
  "ici": "the network inside a slice",
  "dcn": "the network between slices",
}


def compile_pod(
  *,
  run: TrainingRun,
  prepared: Prepared = ONE_LENGTH,
  topology: str | None = None,
  num_slices: int | None = None,
  length: int | None = None,
  as_json: bool = False,
) -> None:
  """Compiles the step of a run and prints the report.

  Args:
    run: the run, with what is bound to `train`.
    prepared: the sequences that the run trains on, each length with its own batch (`Prepared.batches`).
    topology: chip and shape of a slice, e.g. "v5e:16x16", "v5p:4x4x8", "tpu7x:4x4x4".
    num_slices: slices, joined by the data-centre network. None is the number that `MeshConfig.slices` says, or 1.
    length: tokens of a sequence; None: all lengths that the run trains on.
    as_json: print JSON.

  Raises:
    InputError: libtpu is not installed, there is no such topology, or the run does not fit the mesh of its devices.
  """
  import jax

  from hiermem_jax.parallel import make_mesh
  from hiermem_jax.pod.report import pod_report
  from hiermem_jax.pod.topology import parse_topology, topology_devices
  from hiermem_jax.training.program import make_program

  if topology is None:
    raise InputError("--topology is missing; name chip and shape, e.g. --topology=v5e:16x16")
  if num_slices is not None:
    run = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, slices=num_slices))
  pod = parse_topology(topology, run.mesh.slices or 1)
  jax.config.update("jax_platforms", "cpu")  # the TPU that libtpu would otherwise look for is not needed
  mesh = make_mesh(run.mesh, topology_devices(pod))
  program, batches = make_program(run, mesh), prepared.batches(run.batch_size)
  if length is not None:
    batches = {length: batches.get(length, run.batch_size)}
  reports = []
  for length, sequences in batches.items():
    logging.info(
      "compiling for %d devices, %d sequences of %d; a scanned model takes one to a few minutes",
      *(mesh.size, sequences, length),
    )
    reports.append(pod_report(dataclasses.replace(program, batch_size=sequences), topology=pod, length=length))
  report = max(reports, key=lambda report: report["hbm"]["peak"])
  report["lengths"] = [{name: each[name] for name in _OF_LENGTH if name in each} for each in reports]
  print(json.dumps(report, indent=2) if as_json else as_text(report))
  if not report["fits"]:
    print(f"error: {report['reason']}", file=sys.stderr)
    sys.exit(1)


def as_text(report: dict) -> str:
  """The report as a readable page."""
  mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
  slices = f" x {report['slices']} slices" if report["slices"] > 1 else ""
  lines = [
    f"{report['topology']}{slices}: {report['devices']} devices, mesh {mesh};"
    f" {report['batch_size']} sequences of {report['length']} tokens per step",
    "",
    *_memory(report),
  ]
  if len(report["lengths"]) > 1:
    lines += ["", *_lengths(report["lengths"])]
  if "flops" in report:
    lines += ["", *_work(report), "", *_traffic(report["hbm_traffic"]), "", *_collectives(report["collectives"])]
    lines += ["", *_exchange(report["exchange"], report["microbatches"])] if report["exchange"] else []
    lines += ["", *_time(report)]
  return "\n".join(lines)


def _memory(report: dict) -> list[str]:
  hbm = report["hbm"]
  verdict = "fits" if report["fits"] else "DOES NOT FIT"
  temporaries = f"{hbm['temporaries'] / _GIB:>9.3f}"
  if not hbm["temporaries"]:
    temporaries = "        ?  not compiled: the arguments alone are too large"
  lines = [
    "HBM per device, GiB",
    f"  arguments (state, batch)  {hbm['arguments'] / _GIB:>9.3f}",
    f"  temporaries               {temporaries}",
    f"  peak                      {hbm['peak'] / _GIB:>9.3f}  of {hbm['usable'] / _GIB:.2f} that a program may use"
    f" ({hbm['published'] / _GIB:.0f} published): {verdict}",
  ]
  if report["remedies"]:
    lines += ["", "What would make it fit:", *(f"  - {remedy}" for remedy in report["remedies"])]
  return lines


def _lengths(reports: list[dict]) -> list[str]:
  lines = [
    "Lengths of sequences that the run trains on, each in batches of its own; this page is about the largest peak",
    "  length  sequences  temporaries GiB   peak GiB  bound by",
  ]
  for report in reports:
    hbm = report["hbm"]
    verdict = _BOUNDS[report["bound_by"]] if report["fits"] else "DOES NOT FIT"
    lines.append(
      f"  {report['length']:>6}  {report['batch_size']:>9}  {hbm['temporaries'] / _GIB:>15.3f}"
      f"  {hbm['peak'] / _GIB:>9.3f}  {verdict}"
    )
  return lines


def _work(report: dict) -> list[str]:
  flops = report["flops"]
  kernels = f"; {flops['kernels']} custom kernels not counted" if flops["kernels"] else ""
  return [
    "TFLOPs per device and step",
    f"  model                     {flops['model'] / 1e12:>9.3f}  three times the forward pass of every token",
    f"  compiled                  {flops['compiled'] / 1e12:>9.3f}  matrix products, recomputed ones too{kernels}",
    f"  XLA's cost analysis       {flops['cost_analysis'] / 1e12:>9.3f}  counts the body of a loop once",
  ]


def _traffic(traffic: dict) -> list[str]:
  least = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in traffic["least"].items())
  lines = [
    "GB of HBM read and written per device and step",
    f"  least                     {sum(traffic['least'].values()) / 1e9:>9.3f}  {least}",
    f"  compiled                  {traffic['counted'] / 1e9:>9.3f}  {traffic['ratio']:.2f} times the least; tiles with"
    " their padding; the largest:",
  ]
  lines += [
    f"    {row['bytes'] / 1e9:>9.3f}  {row['instructions']:>5}  {row['kind']:<20.20}  {row['name'][:70]}"
    for row in traffic["largest"]
  ]
  return lines


def _collectives(rows: list[dict]) -> list[str]:
  total = sum(row["bytes"] for row in rows)
  lines = [
    f"Collectives, sent per device and step: {total / 1e6:,.1f} MB",
    "        MB  count  kind                type   group  over  tensor",
  ]
  lines += [
    f"{row['bytes'] / 1e6:>10,.3f}  {row['count']:>5}  {row['kind']:<18}  {row['dtype']:<5}  {row['group']:>5}"
    f"  {row['network']:<4}  {row['tensor']}"
    for row in rows[:_SHOWN]
  ]
  if rest := rows[_SHOWN:]:
    count, size = sum(row["count"] for row in rest), sum(row["bytes"] for row in rest)
    lines.append(f"{size / 1e6:>10,.3f}  {count:>5}  {len(rest)} smaller kinds (--json lists them)")
  return lines


def _exchange(rows: list[dict], microbatches: int) -> list[str]:
  once = f", once for its {microbatches} microbatches" if microbatches > 1 else ""
  lines = [
    f"Fetch of the bank and return of its gradient, MB sent per device and step{once}",
    "  tensor          over  compiled   at least  ratio",
  ]
  for row in rows:
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
    lines.append(
      f"  {row['tensor']:<14}  {row['network']:<4}  {row['bytes'] / 1e6:>8.3f}  {row['bound'] / 1e6:>9.3f}  {ratio:>5}"
    )
  return lines


def _time(report: dict) -> list[str]:
  seconds = report["seconds"]
  lines = ["Time of a step if nothing else took any, at the chip's published peaks, ms"]
  lines += [f"  {_BOUNDS[name]:<26}{1e3 * value:>9.3f}" for name, value in seconds.items()]
  lines += [
    f"Bound by {_BOUNDS[report['bound_by']]}: at most {report['mfu_bound']:.1%} of the peak goes into the model (MFU)",
    f"Moving the compiled step's bytes takes {1e3 * report['compiled_hbm_seconds']:.3f} ms of HBM; with compute and"
    f" networks one after the other, MFU {report['mfu_in_turn']:.1%}",
  ]
  return lines
