r"""Creates TPU slices, runs hiermem_jax on them, and deletes them.

  python -m tpu_setup create --topology=v5e:16x16
  python -m tpu_setup bootstrap
  python -m tpu_setup launch --run_dir=gs://BUCKET/runs/a2 -- train --gin_file=gin/runs/a2.gin ...

README.md in this folder leads from an empty project to a finished run. --dry_run prints the commands and runs none.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from hiermem_jax.errors import InputError
from hiermem_jax.sweep import interruptible
from hiermem_jax.verbs import VERBS
from tpu_setup import config as configuration
from tpu_setup import costs, gke, jobs
from tpu_setup.gcloud import GcloudSlice
from tpu_setup.local import LocalSlice
from tpu_setup.shell import CommandError, Shell
from tpu_setup.slices import ACTIVE, Slice, TroubleError
from tpu_setup.sweep import run as run_sweep
from tpu_setup.watch import watch

_VERBS = [verb.name for verb in VERBS.values() if verb.distributed]
_COMMANDS = {
  "create": "ask for the slice and wait until it is there",
  "bootstrap": "code, environment and bucket on every host, which must then agree",
  "launch": "start a verb on every host: launch --run_dir=... -- train --gin_file=...",
  "status": "state of the slice and of the run on each host",
  "logs": "the last lines of every host's log",
  "watch": "create, set up and start whatever is missing or has ended, until the run has finished (as launch)",
  "sweep": "the runs of a sweep file of experiments/, several slices at a time",
  "stop": "end the run on every host, after it has saved",
  "delete": "give the slice back",
  "costs": "chip-hours and price of a training: costs -- --gin_file=gin/runs/a2.gin",
  "gke": "print a JobSet for kubectl apply: gke --run_dir=... --image=... -- train --gin_file=...",
}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    "python -m tpu_setup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  for name, text in _COMMANDS.items():
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    if name in ("launch", "watch", "gke"):
      command.add_argument("--run_dir", required=True, help="gs://BUCKET/..., or a path that every host sees")
    if name == "watch":
      command.add_argument("--delete", action="store_true", help="give the slice back when the run has finished")
    if name == "logs":
      command.add_argument("--host", type=int, help="of this host alone, from 0")
      command.add_argument("--lines", type=int, default=20)
    if name == "sweep":
      command.add_argument("sweep", type=pathlib.Path, help="e.g. experiments/fig3_kinds_depth/sweep.json")
      command.add_argument("--runs_root", required=True, help="gs://BUCKET/..., or a path that every host sees")
      command.add_argument("--parallel", type=int, default=1, help="slices at a time")
      command.add_argument("--only", default="", help="a regular expression: runs whose name has it")
    if name == "costs":
      command.add_argument("--utilisation", type=float, default=0.4, help="share of the chip's peak FLOPs")
    if name == "gke":
      command.add_argument("--image", default="", help="container image")
    command.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    configuration.add_flags(command)
  return parser


def _job(arguments: argparse.Namespace, rest: Sequence[str]) -> jobs.Job:
  if not rest or rest[0] not in _VERBS:
    raise InputError(f"what to run is missing; write -- and then one of {', '.join(_VERBS)} with its flags")
  return jobs.Job(rest[0], rest[1:], arguments.run_dir)


def _show_status(slice_: Slice) -> None:
  state = slice_.state()
  print(f"{slice_.config.name}: {state}" + ("" if state == slice_.detail() else f" ({slice_.detail()})"))
  if state == ACTIVE:
    hosts = slice_.hosts()
    for host, status in zip(hosts, jobs.statuses(slice_, hosts)):
      print(f"{host}  {status.state:<10}  {status.last_line}")


def _run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
  config = configuration.load(arguments.config, vars(arguments))
  shell = Shell(arguments.dry_run, config.tries, config.backoff_seconds)

  def make(each: configuration.Config) -> Slice:
    return (GcloudSlice if each.provider == "gcloud" else LocalSlice)(each, shell)

  slice_, command = make(config), arguments.command
  if command not in ("costs", "gke"):
    config.require_project()
  if rest and command not in ("launch", "watch", "gke", "costs"):
    raise InputError(f"{command}: takes nothing after --")
  if command in ("bootstrap", "launch", "logs", "stop"):
    jobs.require_active(slice_)
  if command == "create":
    slice_.create()
    print(f"{config.name}: active" if not shell.dry_run else "# then waits until it is ACTIVE")
  elif command == "bootstrap":
    jobs.bootstrap(slice_)
  elif command == "launch":
    jobs.launch(slice_, _job(arguments, rest))
  elif command == "status":
    _show_status(slice_)
  elif command == "logs":
    print("\n".join(jobs.logs(slice_, arguments.host, arguments.lines)))
  elif command == "watch" and shell.dry_run:
    slice_.create()
    jobs.bootstrap(slice_)
    jobs.launch(slice_, _job(arguments, rest))
    print(f"# again after every failure, until {_job(arguments, rest).mark} exists")
  elif command == "watch":
    watch(slice_, _job(arguments, rest))
    if arguments.delete:
      slice_.delete()
  elif command == "sweep":
    failed = run_sweep(arguments.sweep, arguments.runs_root, config, arguments.parallel, make, only=arguments.only)
    if failed:
      raise TroubleError(f"failed: {', '.join(failed)}; the same command tries them again")
  elif command == "stop":
    jobs.stop(slice_)
  elif command == "delete":
    slice_.delete()
  elif command == "costs":
    print(costs.report(config, costs.training_flops(rest), arguments.utilisation))
  elif command == "gke":
    job = _job(arguments, rest)
    flags = [slice_.on_host(flag) for flag in job.flags]
    print(gke.manifest(config, job.verb, flags, slice_.on_host(job.run_dir), arguments.image, config.tries))
  return 0


def main(argv: Sequence[str]) -> int:
  """Runs a command line and returns the exit status.

  The status is 2 when the user must change something, and 1 when the same command may succeed later.
  """
  argv = list(argv)
  at = argv.index("--") if "--" in argv else len(argv)
  arguments = _parser().parse_args(argv[:at])
  try:
    with interruptible():
      return _run(arguments, argv[at + 1 :])
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except (TroubleError, CommandError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except BrokenPipeError:  # of `--dry_run | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except KeyboardInterrupt:
    print("interrupted; what runs on the hosts goes on", file=sys.stderr)
    return 130


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
