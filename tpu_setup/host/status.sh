#!/usr/bin/env bash
# Prints three lines: running, exited N, died or none; the command; the last line of its log.
set -euo pipefail
job=$HOME/hiermem/job

if [[ -s $job/status ]]; then
  echo "exited $(cat "$job/status")"
elif [[ ! -s $job/pid ]]; then
  echo none
elif pid=$(cat "$job/pid") && tr '\0' ' ' < "/proc/$pid/cmdline" 2> /dev/null | grep -q job.sh; then
  echo running
else
  echo died
fi
cat "$job/command" 2> /dev/null || true
echo
tail -n 1 "$job/log" 2> /dev/null || true
