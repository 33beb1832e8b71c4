#!/usr/bin/env bash
# Ends the run on this host: SIGTERM, so that it saves; after STOP_SECONDS, SIGKILL.
set -euo pipefail
pid=$(cat "$HOME/hiermem/job/pid" 2> /dev/null) || exit 0

alive() {
  kill -0 -- "-$pid" 2> /dev/null && pgrep -g "$pid" > /dev/null
}

alive || exit 0
kill -TERM -- "-$pid" || true
for ((waited = 0; waited < STOP_SECONDS; waited++)); do
  alive || exit 0
  sleep 1
done
kill -KILL -- "-$pid" 2> /dev/null || true
