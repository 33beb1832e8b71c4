#!/usr/bin/env bash
# Prints three lines: running, exited N, died or none; the command; the last line of its log. Where bad input ended the
# run (2), the third line is the run's own line that begins with error:, whatever a library printed after it.
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
if [[ -s $job/status && $(cat "$job/status") == 2 ]]; then
  awk '/^== / { error = "" } /^error: / { error = $0 } { last = $0 } END { print error ? error : last }' "$job/log"
else
  tail -n 1 "$job/log" 2> /dev/null || true
fi
