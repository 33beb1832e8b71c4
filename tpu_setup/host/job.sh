#!/usr/bin/env bash
# The run itself: `python ARGUMENTS` in the code's directory, its log, its exit status; and, when it has ended well, the
# completion mark RUN_DIR/finished, which the first host writes.
set -uo pipefail
job=$HOME/hiermem/job
echo $$ > "$job/pid.new" && mv "$job/pid.new" "$job/pid"
trap : TERM  # is passed on by stop.sh; this shell stays to write the status down
# shellcheck source=tpu_setup/host/flags.sh
source "$(dirname "$(readlink -f "$0")")/flags.sh"
cd "$HOME/hiermem/code" || exit 1
started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
echo "== $started host $INDEX: python $(cat "$job/command")" >> "$job/log"
PYTHONPATH=. "$HOME/hiermem/python" "$@" >> "$job/log" 2>&1
status=$?
if [[ $status == 0 && $INDEX == 0 ]]; then
  echo "$started to $(date -u +%Y-%m-%dT%H:%M:%SZ), code $(cat COMMIT)" > "$RUN_DIR/finished"
fi
# The host's disk goes with the slice; the run directory stays.
mkdir -p "$RUN_DIR/logs" && cp "$job/log" "$RUN_DIR/logs/$started.host_$INDEX.log"
echo "$status" > "$job/status.new" && mv "$job/status.new" "$job/status"
