#!/usr/bin/env bash
# Starts `python ARGUMENTS` on this host and returns; job.sh does the rest. One run at a time.
#   CHIP, DEVICES: see flags.sh     RUN_DIR: of the run     INDEX: number of this host, over all
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
job=$HOME/hiermem/job

if [[ $(bash "$here/status.sh" | head -n 1) == running ]]; then
  echo "error: a run is going on; stop it first" >&2
  exit 2
fi
mkdir -p "$job"
rm -f "$job/status" "$job/pid"
printf '%q ' "$@" > "$job/command"
export CHIP DEVICES RUN_DIR INDEX
# In tmux one can attach and look (tmux -L hiermem attach); where there is none, any session of its own will do.
if [[ $CHIP != cpu ]] && command -v tmux > /dev/null; then
  tmux -L hiermem new-session -d -s run env CHIP="$CHIP" RUN_DIR="$RUN_DIR" INDEX="$INDEX" bash "$here/job.sh" "$@"
else
  setsid --fork bash "$here/job.sh" "$@" > /dev/null 2>&1 < /dev/null
fi
for _ in {1..50}; do
  [[ -s $job/pid ]] && exit 0
  sleep 0.1
done
echo "error: the run did not start; look at $job" >&2
exit 2
